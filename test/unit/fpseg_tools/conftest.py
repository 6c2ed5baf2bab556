# SPDX-License-Identifier: Apache-2.0
"""A miniature data set of Cityscapes' shape, and a small network with an encoder that sees."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from blabberseg_ros.fpseg_tools.cityscapes import list_frames, read_image
from blabberseg_ros.fpseg_tools.distil import DistilSettings, distil
from blabberseg_ros.fpseg_tools.embed import EmbedSettings, embed
from blabberseg_ros.fpseg_tools.embedding_store import EmbeddingStore, StoreHeader
from blabberseg_ros.fpseg_tools.networks import save_network
from blabberseg_ros.fpseg_tools.training_run import Outcome
from blabberseg_ros.fpseg_tools.tune import TuneSettings, tune
from blabberseg_ros.fpseg_tools.world_set import WorldSetSettings, write_world_set
from blabberseg_ros.models.fpseg_config import FpSegConfig, TinyVitConfig
from blabberseg_ros.models.random_fpseg import random_fpseg

CONFIG = FpSegConfig(
    encoder=TinyVitConfig((16, 32, 32, 64), (1, 1, 1, 1), (1, 1, 1, 2)), class_names=('untuned',),
    prompt_size=4, input_size_px=128, width=64, decoder_heads=4, decoder_mlp=128)
# Classes by colour and texture: all that so small an encoder can tell apart.
KNOWN_CLASSES = """
classes: {road: [5, 8], ground: [6, 7, 11], water: [3], plants: [2, 6]}
ignored: [0]
exclusive: [road, ground, water]
"""
NEW_CLASSES = """
classes: {safe: [6, 7, 8, 11], hard: [1, 5, 8, 9], green: [2, 6, 11]}
ignored: [0]
exclusive: []
"""


@pytest.fixture(scope='session')
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: these networks are too small for two, and sums keep their order.

    Every fixture and test that trains asks for it, so it comes first.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def world_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set: two worlds, 48 pictures to learn from, 12 others to judge on."""
    root = tmp_path_factory.mktemp('fpseg') / 'set'
    write_world_set(WorldSetSettings(
        root, train_worlds=2, val_worlds=0, views=24, val_views=6, size_px=(192, 96),
        min_altitude_m=25.0, max_altitude_m=40.0, world_size_m=120.0, resolution_m=0.25))
    (root / 'known.yaml').write_text(KNOWN_CLASSES)
    (root / 'new.yaml').write_text(NEW_CLASSES)
    return root


@pytest.fixture(scope='session')
def random_network(world_set: Path) -> Path:
    """Return a network with random weights."""
    path = world_set.parent / 'random.safetensors'
    save_network(random_fpseg(CONFIG), path)
    return path


@pytest.fixture(scope='session')
def teacher(world_set: Path) -> Path:
    """Return embeddings of a teacher that sees colour and texture of each cell."""
    folder = world_set.parent / 'teacher'
    mixing = np.random.RandomState(0).standard_normal((9, CONFIG.width)).astype(np.float32)
    for split in ('train', 'val'):
        frames = list_frames(world_set, split, labelled=False)
        store = EmbeddingStore.create(folder / split, StoreHeader(
            'colour', CONFIG.input_size_px, 'squash', 'live', 'float32', 1000,
            tuple(frame.stem for frame in frames)))
        store.write(0, {frame.stem: _mixed(_colours(read_image(frame.image)) @ mixing)
                        for frame in frames})
    return folder


def _colours(image: np.ndarray) -> np.ndarray:
    """Return mean, spread and squared mean of each cell, roughly of unit variance: [g, g, 9]."""
    size = (CONFIG.grid, CONFIG.grid)
    grey = image.astype(np.float32) / 255
    mean, square = (cv2.resize(values, size, interpolation=cv2.INTER_AREA)
                    for values in (grey, grey ** 2))
    spread = np.sqrt(np.maximum(square - mean ** 2, 0))
    return np.concatenate([(mean - 0.4) / 0.15, (spread - 0.08) / 0.06,
                           (mean ** 2 - 0.16) / 0.12], axis=-1)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Normalise each cell, as the neck of an encoder does: [C, g, g]."""
    centred = values - values.mean(axis=-1, keepdims=True)
    return (centred / (centred.std(axis=-1, keepdims=True) + 1e-3)).transpose(2, 0, 1)


@pytest.fixture(scope='session')
def distil_settings(world_set: Path, random_network: Path,
                    teacher: Path) -> Callable[..., DistilSettings]:
    """Return what makes the settings of a distillation into a folder."""
    return partial(
        DistilSettings, world_set, teacher, str(random_network), train_split='train',
        batch_size=6, learning_rate=4e-3, n_epochs=8, test_interval=8, log_interval=3,
        save_interval=6, workers=1, device='cpu')


@pytest.fixture(scope='session')
def distilled(one_thread: None, world_set: Path,
              distil_settings: Callable[..., DistilSettings]) -> tuple[Path, Outcome]:
    """Return the folder of a distillation run and its outcome."""
    out = world_set.parent / 'distilled'
    return out, distil(distil_settings(out))


@pytest.fixture(scope='session')
def embeddings(one_thread: None, world_set: Path, distilled: tuple[Path, Outcome]) -> Path:
    """Return the embeddings of the distilled encoder."""
    folder = world_set.parent / 'embeddings'
    embed(EmbedSettings(world_set, str(distilled[0] / 'best.safetensors'), folder,
                        frames_per_shard=5, batch_size=3, workers=1, device='cpu'))
    return folder


@pytest.fixture(scope='session')
def tune_settings(world_set: Path, embeddings: Path) -> Callable[..., TuneSettings]:
    """Return what makes the settings of a tuning run from a network and a folder."""
    def make(network: Path, out: Path, **changes: Any) -> TuneSettings:
        values: dict[str, Any] = {
            'classes': world_set / 'known.yaml', 'prompt_size': 4, 'batch_size': 16,
            'train_n_class_examples_per_epoch': 40, 'test_n_class_examples_per_epoch': 50,
            'prompt_learning_rate': 0.03, 'n_epochs': 4, 'test_interval': 4, 'log_interval': 5,
            'save_interval': 5, 'best_by': 'miou', 'workers': 1, 'device': 'cpu', **changes}
        return TuneSettings(world_set, embeddings, str(network), out, **values)

    return make


@pytest.fixture(scope='session')
def base(one_thread: None, world_set: Path, distilled: tuple[Path, Outcome],
         tune_settings: Callable[..., TuneSettings]) -> Path:
    """Return a run whose decoder has learned to follow prompts, as SAM's has."""
    out = world_set.parent / 'base'
    tune(tune_settings(distilled[0] / 'best.safetensors', out, tuned_part='prompts_and_decoder',
                       decoder_learning_rate=3e-3, prompt_learning_rate=0.01, n_epochs=12,
                       test_interval=6))
    return out
