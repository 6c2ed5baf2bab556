# SPDX-License-Identifier: Apache-2.0
"""What a network is worth on a labelled split, in torch or on an engine."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from blabberseg_ros.atomic import write_text
from blabberseg_ros.backends.fpseg import FpSegBackend
from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.cityscapes import Annotation, Frame, list_frames, read_image
from blabberseg_ros.fpseg_tools.classes import ClassList, read_classes
from blabberseg_ros.fpseg_tools.devices import device_named
from blabberseg_ros.fpseg_tools.embedding_store import EmbeddingStore
from blabberseg_ros.fpseg_tools.engine_network import TORCH, is_bundle, open_on_engine
from blabberseg_ros.fpseg_tools.judge import Decode, Judge
from blabberseg_ros.fpseg_tools.metrics import Figures, figures_of
from blabberseg_ros.fpseg_tools.networks import (
    CLASSES_AT_ONCE,
    Preprocessor,
    check_source,
    decode_all,
    encoder_key,
    open_network,
)
from blabberseg_ros.fpseg_tools.presence import class_presence, draw_examples, label_presence
from blabberseg_ros.fpseg_tools.progress import bar
from blabberseg_ros.fpseg_tools.settings import (
    as_mapping,
    require,
    require_folder,
    require_writable,
)
from blabberseg_ros.models.fpseg_config import FpSegConfig


@dataclass(frozen=True)
class EvaluateSettings:
    """What is judged, and on what.

    Attributes:
        data_root: data set in the layout of Cityscapes.
        network: bundle, checkpoint (FPSeg) or result of tuning; engines need a bundle.
        out: folder for `figures.json` and the table of labels.
        embeddings: folder of `fpseg embed` to spare the encoder, for `engine: torch`; null
            encodes the images.
        classes: YAML list of classes; null takes Cityscapes' 33.
        split: to judge on.
        annotation: which label maps.
        engine: `torch`, or an engine by name (`auto`, `onnxruntime-cpu`, `tensorrt`, ...).
        attention_bias: `live` or `zero`, for .pt and .pth checkpoints without embeddings, which
            say it otherwise.
        p_neg_max: largest share of the pooled IoU's examples whose frame lacks the class.
        test_n_class_examples_per_epoch: examples of each class behind the pooled IoU.
        frames: to judge on, evenly spaced; null takes all.
        workers: threads that read.
        seed: of the pooled IoU's examples.
        device: `cpu`, `cuda` or `auto`.
    """

    data_root: Path
    network: str
    out: Path
    embeddings: Path | None = None
    classes: Path | None = None
    split: str = 'val'
    annotation: Annotation = 'gtFine'
    engine: str = TORCH
    attention_bias: Literal['live', 'zero'] | None = None
    p_neg_max: float = 0.2
    test_n_class_examples_per_epoch: int = 500
    frames: int | None = None
    workers: int = 4
    seed: int = 0
    device: str = 'auto'

    def __post_init__(self) -> None:
        """Refuse values that are out of bounds or contradict each other."""
        require(min(self.test_n_class_examples_per_epoch, self.workers, self.frames or 1) >= 1,
                'test_n_class_examples_per_epoch, workers and frames must be 1 or more')
        require(0 <= self.p_neg_max <= 1, 'p_neg_max must be from 0 to 1')
        require(self.engine == TORCH or self.embeddings is None,
                'embeddings are for engine: torch; an engine encodes the images itself')
        require(self.engine == TORCH or is_bundle(self.network),
                'an engine runs a bundle; make one with `blabberseg fpseg export`')


def evaluate(settings: EvaluateSettings) -> Figures:
    """Judge a network and write the figures.

    Raises:
        ParameterError: a path or a setting is wrong.
        BundleError: the network cannot be read.
        EngineError: the engine cannot be used.
    """
    require_folder(settings.data_root, 'the data set')
    classes = read_classes(settings.classes)
    frames = list_frames(settings.data_root, settings.split, labelled=True,
                         annotation=settings.annotation)
    frames = frames[::max(len(frames) // (settings.frames or len(frames)), 1)]
    check_source(settings.network)
    store = None
    if settings.embeddings is not None:
        store = EmbeddingStore.open(settings.embeddings / settings.split)
        store.check_frames([frame.stem for frame in frames])
    require_writable(settings.out)
    device = device_named('cpu' if settings.engine != TORCH else settings.device)
    decode, config, close = _decoder(settings, classes, store, device)
    try:
        counts = Judge(classes, config, device).count(
            frames, decode, lambda items: bar(items, f'judging {settings.engine}', len(frames)),
            settings.workers)
    finally:
        close()
    labels = label_presence(frames, settings.out / 'labels.safetensors', settings.workers)
    examples = draw_examples(class_presence(labels, classes.membership()),
                             settings.test_n_class_examples_per_epoch, settings.p_neg_max,
                             (settings.seed, 1))
    figures = figures_of(counts, examples)
    write_text(settings.out / 'figures.json', json.dumps(
        _report(settings, classes, figures, len(frames)), indent=1) + '\n')
    return figures


def _decoder(settings: EvaluateSettings, classes: ClassList, store: EmbeddingStore | None,
             device: torch.device) -> tuple[Decode, FpSegConfig, Callable[[], None]]:
    """Return what decodes a frame, the network's configuration, and what frees it."""
    if settings.engine != TORCH:
        backend = open_on_engine(settings.network, settings.engine, settings.device)
        _check_classes(backend.class_names, classes)
        return (lambda frame: _decode_on_engine(backend, frame)), backend.config, \
            backend.deactivate
    if store is None:
        model = open_network(settings.network, attention_bias=settings.attention_bias)
    else:
        header = store.header
        model = open_network(settings.network, attention_bias=header.attention_bias,
                             fit=header.fit, input_size_px=header.input_size_px)
    model = model.to(device)
    _check_classes(model.config.class_names, classes)
    if store is not None:
        if store.header.encoder != encoder_key(model):
            raise ParameterError(f'the embeddings in {settings.embeddings} were made by another '
                                 'encoder; make them anew, or set embeddings to null')
        return (lambda frame: decode_all(model, store.read(frame.stem))), model.config, _nothing
    preprocess = Preprocessor(model.config, device)
    return (lambda frame: decode_all(model, model.encode_images(
        preprocess(read_image(frame.image))[None])[0])), model.config, _nothing


def _decode_on_engine(backend: FpSegBackend, frame: Frame) -> Tensor:
    code = backend.encode_image(read_image(frame.image))
    classes = backend.encode_prompts(backend.class_names)
    return torch.cat([
        torch.from_numpy(np.array(backend.to_host(
            backend.decode(code, classes[start:start + CLASSES_AT_ONCE]))))
        for start in range(0, len(classes), CLASSES_AT_ONCE)])


def _check_classes(names: tuple[str, ...], classes: ClassList) -> None:
    """Refuse a network whose classes are not those of the list, in its order."""
    if names != classes.names:
        raise ParameterError(f'the network knows the classes {", ".join(names)}; the list of '
                             f'classes has {", ".join(classes.names)}. Give the list that it was '
                             'tuned on')


def _report(settings: EvaluateSettings, classes: ClassList, figures: Figures,
            frames: int) -> dict[str, Any]:
    values = asdict(figures)
    values['class_iou'] = dict(zip(classes.names, figures.class_iou, strict=True))
    values['semantic_iou'] = dict(zip(classes.exclusive, figures.semantic_iou, strict=True))
    return {'figures': _without_nan(values), 'frames': frames, 'settings': as_mapping(settings)}


def _without_nan(value: Any) -> Any:
    """Return null for NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if value != value else value


def _nothing() -> None:
    """Free nothing."""
