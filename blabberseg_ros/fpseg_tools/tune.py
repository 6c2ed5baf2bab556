# SPDX-License-Identifier: Apache-2.0
"""Tuning of class prompts on embeddings: encoder frozen, decoder frozen or tuned with them."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from blabberseg_ros.backends.fpseg_fit import matrices_out
from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.cityscapes import Annotation, Frame, list_frames
from blabberseg_ros.fpseg_tools.classes import ClassList, read_classes
from blabberseg_ros.fpseg_tools.devices import device_named
from blabberseg_ros.fpseg_tools.embedding_store import EmbeddingStore
from blabberseg_ros.fpseg_tools.examples import Example, ExampleSource, read_ahead
from blabberseg_ros.fpseg_tools.judge import Judge
from blabberseg_ros.fpseg_tools.metrics import Figures, figures_of
from blabberseg_ros.fpseg_tools.networks import (
    check_source,
    decode_all,
    encoder_key,
    open_network,
    save_network,
)
from blabberseg_ros.fpseg_tools.presence import class_presence, draw_examples, label_presence
from blabberseg_ros.fpseg_tools.progress import bar
from blabberseg_ros.fpseg_tools.settings import (
    as_mapping,
    require,
    require_folder,
    require_writable,
)
from blabberseg_ros.fpseg_tools.training_run import Outcome, Recipe, Schedule, run
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_prompts import ClassPrompt, write_prompts

BEST = 'best.safetensors'
BEST_PROMPTS = 'best_prompts.safetensors'
# Settings that may change between the parts of a run: they do not change the result, or what they
# lead to is compared instead of the path.
_FREE = ('data_root', 'embeddings', 'network', 'out', 'device', 'workers', 'cache_mib', 'n_epochs',
         'log_interval', 'save_interval', 'classes')
_TRAIN_DRAW, _TEST_DRAW = 0, 1
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class TuneSettings:
    """A tuning run; the defaults are the published recipe (750 epochs of 3300 examples).

    Attributes:
        data_root: data set in the layout of Cityscapes.
        embeddings: folder of `fpseg embed`, with both splits.
        network: whose encoder made the embeddings.
        out: folder of the run; a run that was stopped goes on there.
        classes: YAML list of classes; null takes Cityscapes' 33.
        train_split: to learn from.
        test_split: to judge on.
        annotation: which label maps.
        tuned_part: `prompts`, or `prompts_and_decoder`.
        keep_prompts: start from the network's prompts of classes that it knows by name, if their
            size fits; else all prompts start random.
        prompt_size: tokens a class.
        target_size_px: side of the masks that the loss looks at; null takes the input's.
        p_neg_max: largest share of examples whose frame does not show the class.
        train_n_class_examples_per_epoch: examples of each class in an epoch.
        test_n_class_examples_per_epoch: examples of each class behind the pooled IoU.
        test_frames: frames of the test split to judge on, evenly spaced; null takes all.
        best_by: figure that decides which weights are kept.
        batch_size: examples an update.
        prompt_learning_rate: of prompt tokens and of the dense prompt (`no_mask_embed`).
        decoder_learning_rate: of the decoder.
        n_epochs: in all; may be raised to train longer.
        test_interval: epochs between tests.
        log_interval: updates between records of the loss.
        save_interval: updates between states, which is what a killed run loses at most.
        workers: threads that read.
        cache_mib: memory for label maps.
        seed: of prompts and examples.
        device: `cpu`, `cuda` or `auto`.
    """

    data_root: Path
    embeddings: Path
    network: str
    out: Path
    classes: Path | None = None
    train_split: str = 'train'
    test_split: str = 'val'
    annotation: Annotation = 'gtFine'
    tuned_part: Literal['prompts', 'prompts_and_decoder'] = 'prompts'
    keep_prompts: bool = True
    prompt_size: int = 64
    target_size_px: int | None = None
    p_neg_max: float = 0.2
    train_n_class_examples_per_epoch: int = 100
    test_n_class_examples_per_epoch: int = 500
    test_frames: int | None = None
    best_by: Literal['pooled_iou', 'miou'] = 'pooled_iou'
    batch_size: int = 64
    prompt_learning_rate: float = 0.01
    decoder_learning_rate: float = 1e-4
    n_epochs: int = 750
    test_interval: int = 20
    log_interval: int = 50
    save_interval: int = 200
    workers: int = 4
    cache_mib: int = 4096
    seed: int = 0
    device: str = 'auto'

    def __post_init__(self) -> None:
        """Refuse values that are out of bounds."""
        for name in ('prompt_size', 'train_n_class_examples_per_epoch',
                     'test_n_class_examples_per_epoch', 'batch_size', 'n_epochs', 'test_interval',
                     'log_interval', 'save_interval', 'workers'):
            require(getattr(self, name) >= 1, f'{name} must be 1 or more')
        for name in ('target_size_px', 'test_frames'):
            value = getattr(self, name)
            require(value is None or value >= 1, f'{name} must be 1 or more, or null')
        require(0 <= self.p_neg_max <= 1, 'p_neg_max must be from 0 to 1')
        require(min(self.prompt_learning_rate, self.decoder_learning_rate) > 0,
                'learning rates must be above 0')


@dataclass(frozen=True)
class Split:
    """Frames of a split, their embeddings, and which class each shows: bool [F, N]."""

    frames: tuple[Frame, ...]
    store: EmbeddingStore
    presence: np.ndarray

    @property
    def summary(self) -> str:
        """Return the number of frames and a hash of their names and of what they show."""
        digest = hashlib.sha256('\n'.join(frame.stem for frame in self.frames).encode())
        digest.update(np.packbits(self.presence).tobytes())
        return f'{len(self.frames)} frames ({digest.hexdigest()[:12]})'


def tune(settings: TuneSettings) -> Outcome:
    """Tune prompts, from the beginning or from where the folder's run stopped.

    Raises:
        ParameterError: a path or a setting is wrong.
        BundleError: the network cannot be read.
    """
    require_folder(settings.data_root, 'the data set')
    classes = read_classes(settings.classes)
    check_source(settings.network)
    device = device_named(settings.device)
    listed = {}
    for split in (settings.train_split, settings.test_split):
        listed[split] = list_frames(settings.data_root, split, labelled=True,
                                    annotation=settings.annotation)
        EmbeddingStore.open(settings.embeddings / split).check_frames(
            [frame.stem for frame in listed[split]])
    require_writable(settings.out)
    header = EmbeddingStore.open(settings.embeddings / settings.train_split).header
    model = open_network(settings.network, attention_bias=header.attention_bias, fit=header.fit,
                         input_size_px=header.input_size_px)
    model = with_classes(model, classes, settings)
    key = encoder_key(model)
    train, test = (open_split(settings.embeddings / split, listed[split], classes, key,
                              settings.workers)
                   for split in (settings.train_split, settings.test_split))
    with ThreadPoolExecutor(settings.workers) as pool:
        recipe = PromptTuning(settings, model.to(device), classes, train, test, pool)
        what = {name: value for name, value in as_mapping(settings).items() if name not in _FREE}
        what |= {'encoder': key, 'start': _digest(model),
                 'class_list': list(zip(classes.names, classes.label_ids, strict=True)),
                 'ignored': classes.ignored, 'exclusive': classes.exclusive,
                 'embeddings': [split.store.header.dtype for split in (train, test)],
                 'frames': [split.summary for split in (train, test)]}
        schedule = Schedule(settings.n_epochs, settings.test_interval, settings.log_interval,
                            settings.save_interval)
        return run(recipe, schedule, settings.out, what, f'tuning {settings.tuned_part}')


def with_classes(model: FpSeg, classes: ClassList, settings: TuneSettings) -> FpSeg:
    """Return the network with prompts for these classes, known or random."""
    shape = (len(classes), settings.prompt_size, model.config.width)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed)).numpy()
    own = model.class_prompts()
    known = {prompt.name: prompt.tokens for prompt in own
             if settings.keep_prompts and len(prompt.tokens) == settings.prompt_size}
    model.set_class_prompts([
        ClassPrompt(name, known.get(name, fresh), own[0].dense)
        for name, fresh in zip(classes.names, tokens, strict=True)])
    return model.requires_grad_(False).eval()


def open_split(folder: Path, frames: tuple[Frame, ...], classes: ClassList, encoder: str,
               workers: int) -> Split:
    """Open the embeddings of a split and learn which class occurs where.

    Raises:
        ParameterError: the embeddings are of another encoder, or lack a frame.
    """
    store = EmbeddingStore.open(folder)
    store.check_frames([frame.stem for frame in frames])
    if store.header.encoder != encoder:
        raise ParameterError(
            f'the embeddings in {folder} were made by another encoder, or with another '
            'attention_bias, fit or input size, than the network has; make them anew with '
            '`blabberseg fpseg embed`')
    labels = label_presence(frames, folder / 'labels.safetensors', workers)
    return Split(frames, store, class_presence(labels, classes.membership()))


class PromptTuning(Recipe):
    """FPSeg's recipe: binary cross-entropy of one class a row, AdamW."""

    higher_is_better: ClassVar[bool] = True

    def __init__(self, settings: TuneSettings, model: FpSeg, classes: ClassList, train: Split,
                 test: Split, pool: ThreadPoolExecutor) -> None:
        """Prepare; nothing is trained yet."""
        self.figure = settings.best_by
        self._settings = settings
        self._model = model
        self._train = train
        self._pool = pool
        self._device = next(model.parameters()).device
        side = model.config.input_size_px
        target = settings.target_size_px or side
        self._source = ExampleSource(train.frames, train.store, classes.membership(), target,
                                     settings.cache_mib)
        # A product is also the same each time, which a GPU's interpolation backwards is not.
        self._rows, self._cols = (
            torch.tensor(matrix, device=self._device) for matrix in matrices_out(
                target, target, (model.config.mask_size_px, side), 'squash', 1))
        step = max(len(test.frames) // (settings.test_frames or len(test.frames)), 1)
        self._test = Split(test.frames[::step], test.store, test.presence[::step])
        self._judge = Judge(classes, model.config, self._device)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of updates of an epoch."""
        examples = self._settings.train_n_class_examples_per_epoch * self._train.presence.shape[1]
        return -(-examples // self._settings.batch_size)

    @cached_property
    def trained(self) -> Mapping[str, Tensor]:
        """Return prompts and, if it is tuned, decoder."""
        parts: dict[str, torch.nn.Module] = {'prompt_encoder': self._model.prompt_encoder}
        if self._settings.tuned_part == 'prompts_and_decoder':
            parts['mask_decoder'] = self._model.mask_decoder
        return {f'{part}.{name}': weight for part, module in parts.items()
                for name, weight in module.named_parameters()}

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """Return AdamW with a learning rate for each part."""
        settings = self._settings
        rates = {'prompt_encoder': settings.prompt_learning_rate,
                 'mask_decoder': settings.decoder_learning_rate}
        groups = []
        for part, rate in rates.items():
            weights = [weight.requires_grad_() for name, weight in self.trained.items()
                       if name.startswith(f'{part}.')]
            if weights:
                groups.append({'params': weights, 'lr': rate})
        return torch.optim.AdamW(groups)

    def batches(self, epoch: int, first: int) -> Iterator[list[Example]]:
        """Yield the examples of an epoch's batches, in an order that the seed decides."""
        settings = self._settings
        seed = (settings.seed, _TRAIN_DRAW, epoch)
        examples = draw_examples(self._train.presence, settings.train_n_class_examples_per_epoch,
                                 settings.p_neg_max, seed)
        examples = np.random.default_rng([*seed, 1]).permutation(examples)
        size = settings.batch_size
        left = examples[first * size:].tolist()
        items = read_ahead(left, lambda pair: self._source.read(*pair), self._pool,
                           _BATCHES_AHEAD * size)
        batch: list[Example] = []
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def loss(self, batch: list[Example]) -> Tensor:
        """Return the mean binary cross-entropy over the pixels of the images."""
        embeddings, masks = (
            torch.from_numpy(np.stack(values)).to(self._device)
            for values in zip(*((item.embedding, item.mask) for item in batch), strict=True))
        index = torch.tensor([item.class_index for item in batch], device=self._device)
        logits = self._model.decode(
            embeddings.float(), self._model.prompt_encoder.prompt_embeddings[index])
        large = self._rows @ logits @ self._cols
        if all(item.inside is None for item in batch):
            return binary_cross_entropy_with_logits(large, masks.float())
        inside = torch.from_numpy(np.stack([
            np.ones_like(item.mask) if item.inside is None else item.inside
            for item in batch])).to(large)
        return (binary_cross_entropy_with_logits(large, masks.float(), weight=inside,
                                                 reduction='sum') / inside.sum())

    def test(self) -> Mapping[str, Any]:
        """Return the figures of the test split."""
        figures = self.judge()
        return {'miou': figures.miou, 'semantic_miou': figures.semantic_miou,
                'pooled_iou': figures.pooled_iou, 'loss': figures.loss,
                'class_iou': figures.class_iou}

    def judge(self) -> Figures:
        """Decode all classes of the test frames and count."""
        settings = self._settings
        counts = self._judge.count(self._test.frames, self._decode,
                                   lambda frames: bar(frames, 'testing', len(self._test.frames)),
                                   settings.workers)
        examples = draw_examples(self._test.presence, settings.test_n_class_examples_per_epoch,
                                 settings.p_neg_max, (settings.seed, _TEST_DRAW))
        return figures_of(counts, examples)

    def save(self, folder: Path) -> None:
        """Write the network and, by themselves, its classes."""
        save_network(self._model, folder / BEST)
        write_prompts(folder / BEST_PROMPTS, self._model.class_prompts())

    def _decode(self, frame: Frame) -> Tensor:
        return decode_all(self._model, self._test.store.read(frame.stem))


def _digest(model: FpSeg) -> str:
    """Return a hash of the weights that tuning starts from, the encoder apart."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith('image_encoder.'):
            digest.update(name.encode())
            digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()
