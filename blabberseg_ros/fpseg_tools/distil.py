# SPDX-License-Identifier: Apache-2.0
"""Distillation of an encoder: a small student learns to give a large teacher's embeddings."""

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.cityscapes import Frame, list_frames, read_image
from blabberseg_ros.fpseg_tools.devices import device_named
from blabberseg_ros.fpseg_tools.embedding_store import EmbeddingStore
from blabberseg_ros.fpseg_tools.examples import read_ahead
from blabberseg_ros.fpseg_tools.networks import (
    Preprocessor,
    check_source,
    encoder_key,
    open_network,
    save_network,
)
from blabberseg_ros.fpseg_tools.progress import bar
from blabberseg_ros.fpseg_tools.settings import (
    as_mapping,
    require,
    require_folder,
    require_writable,
)
from blabberseg_ros.fpseg_tools.training_run import Outcome, Recipe, Schedule, run
from blabberseg_ros.models.fpseg import FpSeg

BEST = 'best.safetensors'
_FREE = ('data_root', 'teacher', 'student', 'out', 'device', 'workers', 'n_epochs', 'log_interval',
         'save_interval')
_BATCHES_AHEAD = 2
Split = tuple[tuple[Frame, ...], EmbeddingStore]


@dataclass(frozen=True)
class DistilSettings:
    """A distillation; the defaults are the published recipe.

    Attributes:
        data_root: data set in the layout of Cityscapes; labels are not needed.
        teacher: folder of `fpseg embed` with the teacher's embeddings of both splits.
        student: bundle or checkpoint whose encoder learns.
        out: folder of the run; a run that was stopped goes on there.
        train_split: to learn from.
        test_split: to judge on.
        batch_size: frames an update.
        learning_rate: of AdamW.
        n_epochs: in all; may be raised to train longer.
        test_interval: epochs between tests.
        log_interval: updates between records of the loss.
        save_interval: updates between states, which is what a killed run loses at most.
        workers: threads that read.
        seed: of the order of the frames.
        device: `cpu`, `cuda` or `auto`.
    """

    data_root: Path
    teacher: Path
    student: str
    out: Path
    train_split: str = 'train_extra'
    test_split: str = 'val'
    batch_size: int = 16
    learning_rate: float = 1e-3
    n_epochs: int = 200
    test_interval: int = 5
    log_interval: int = 10
    save_interval: int = 200
    workers: int = 4
    seed: int = 0
    device: str = 'auto'

    def __post_init__(self) -> None:
        """Refuse values that are out of bounds."""
        for name in ('batch_size', 'n_epochs', 'test_interval', 'log_interval', 'save_interval',
                     'workers'):
            require(getattr(self, name) >= 1, f'{name} must be 1 or more')
        require(self.learning_rate > 0, 'learning_rate must be above 0')


def distil(settings: DistilSettings) -> Outcome:
    """Train the student's encoder, from the beginning or from where the folder's run stopped.

    Raises:
        ParameterError: a path or a setting is wrong.
        BundleError: the student cannot be read.
    """
    require_folder(settings.data_root, 'the data set')
    check_source(settings.student)
    device = device_named(settings.device)
    splits: list[Split] = []
    for split in (settings.train_split, settings.test_split):
        frames = list_frames(settings.data_root, split, labelled=False)
        store = EmbeddingStore.open(settings.teacher / split)
        store.check_frames([frame.stem for frame in frames])
        splits.append((frames, store))
    require_writable(settings.out)
    header = splits[0][1].header
    model = open_network(settings.student, fit=header.fit, input_size_px=header.input_size_px)
    for _, store in splits:
        _check_shapes(model, store)
    what = {name: value for name, value in as_mapping(settings).items() if name not in _FREE}
    what |= {'start': encoder_key(model), 'frames': [_summary(frames) for frames, _ in splits],
             'teacher': [[store.header.encoder, store.header.dtype] for _, store in splits]}
    with ThreadPoolExecutor(settings.workers) as pool:
        recipe = Distillation(settings, model.to(device), splits[0], splits[1], pool)
        schedule = Schedule(settings.n_epochs, settings.test_interval, settings.log_interval,
                            settings.save_interval)
        return run(recipe, schedule, settings.out, what, 'distilling')


def _summary(frames: tuple[Frame, ...]) -> str:
    """Return the number of frames and a hash of their names."""
    digest = hashlib.sha256('\n'.join(frame.stem for frame in frames).encode())
    return f'{len(frames)} frames ({digest.hexdigest()[:12]})'


def _check_shapes(model: FpSeg, store: EmbeddingStore) -> None:
    config = model.config
    teacher = store.read(store.header.stems[0]).shape
    student = (config.width, config.grid, config.grid)
    if teacher != student or store.header.fit != config.fit:
        raise ParameterError(
            f"the teacher's embeddings are {teacher}, {store.header.fit}, and the student gives "
            f'{student}, {config.fit}; both need the same width, input size and fit')


class Distillation(Recipe):
    """Mean squared error between embeddings, AdamW, batch norm as in training."""

    figure = 'mse'
    higher_is_better: ClassVar[bool] = False

    def __init__(self, settings: DistilSettings, model: FpSeg, train: Split, test: Split,
                 pool: ThreadPoolExecutor) -> None:
        """Prepare; nothing is trained yet."""
        self._settings = settings
        self._model = model
        self._encoder = model.image_encoder
        self._train, self._test = train, test
        self._pool = pool
        self._device = next(model.parameters()).device
        self._preprocess = Preprocessor(model.config, self._device)

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of updates of an epoch."""
        return -(-len(self._train[0]) // self._settings.batch_size)

    @property
    def trained(self) -> Mapping[str, Tensor]:
        """Return the encoder's weights and the statistics of its batch norms."""
        return self._encoder.state_dict(keep_vars=True)

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self._encoder.requires_grad_().parameters(),
                                 lr=self._settings.learning_rate)

    def batches(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and wanted embeddings of an epoch's batches."""
        size = self._settings.batch_size
        order = np.random.default_rng([self._settings.seed, epoch]).permutation(
            len(self._train[0]))[first * size:].tolist()
        frames, store = self._train
        items = read_ahead([frames[number] for number in order],
                           lambda frame: (read_image(frame.image), store.read(frame.stem)),
                           self._pool, _BATCHES_AHEAD * size)
        for start in range(0, len(order), size):
            pairs = [next(items) for _ in order[start:start + size]]
            yield (torch.stack([self._preprocess(image) for image, _ in pairs]),
                   torch.from_numpy(np.stack([wanted for _, wanted in pairs])))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean squared error of a batch."""
        pixels, wanted = batch
        self._encoder.train()
        return mse_loss(self._encoder(pixels), wanted.to(self._device).float())

    def test(self) -> Mapping[str, Any]:
        """Return the mean squared error over the test split."""
        self._encoder.eval()
        frames, store = self._test
        total = 0.0
        with torch.inference_mode():
            for frame in bar(frames, 'testing'):
                wanted = torch.from_numpy(store.read(frame.stem)).to(self._device).float()
                given = self._encoder(self._preprocess(read_image(frame.image))[None])[0]
                total += mse_loss(given, wanted).item()
        return {'mse': total / len(frames)}

    def save(self, folder: Path) -> None:
        """Write the network with the present encoder; its prompts have to be tuned anew."""
        save_network(self._model, folder / BEST)
