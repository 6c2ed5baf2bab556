# SPDX-License-Identifier: Apache-2.0
"""Worlds and tiny networks for training tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.fpseg_config import FpSegConfig, TinyVitConfig
from blabberseg_ros.models.lseg_config import LSegConfig
from blabberseg_ros.models.segformer_config import SegformerConfig
from blabberseg_ros.training.config import (
    CropsConfig,
    LossConfig,
    OptimiserConfig,
    TrainConfig,
    WorldsConfig,
)
from blabberseg_ros.training.labels import CLASS_NAMES
from blabberseg_ros.training.worlds import POINTS, Map

_STEPS = 120
_MODELS: dict[str, Any] = {
    'clipseg': ClipSegConfig(
        input_size_px=64, pretrain_grid=4, vision_width=16, vision_heads=2, vision_layers=3,
        vision_mlp=16, extract=(0, 1, 2), embed_dim=8, text_width=8, text_heads=2, text_layers=1,
        text_mlp=8, reduce_dim=16, decoder_heads=2, decoder_ffn=8),
    'segformer': SegformerConfig(
        input_size_px=64, hidden=(8, 8, 16, 16), depths=(1, 1, 1, 1), heads=(1, 1, 2, 2),
        decoder_width=16, labels=CLASS_NAMES),
    'lseg': LSegConfig(
        backbone='resnet', input_size_px=64, resnet_blocks=(1, 1, 1, 1), resnet_width=8,
        features=16, embed_dim=8, vocab_size=1536, text_width=8, text_heads=2,
        text_layers=1, text_mlp=16),
    'fpseg': FpSegConfig(
        encoder=TinyVitConfig(embed_dims=(8, 16, 16, 32), depths=(1, 1, 1, 1),
                              heads=(1, 2, 2, 4), windows=(4, 4, 4, 4)),
        input_size_px=64, class_names=CLASS_NAMES, prompt_size=2, width=32, decoder_heads=2,
        decoder_mlp=32)}


class SquareWorlds:
    """Worlds of large squares, each class of a colour of its own."""

    is_ready = False
    taken = 0

    def next(self) -> Map:
        rng = np.random.default_rng(self.taken)
        self.taken += 1
        labels = np.kron(rng.integers(1, 12, (8, 8)), np.ones((16, 16))).astype(np.uint8)
        colours = np.random.default_rng(9).integers(0, 256, (12, 3), dtype=np.uint8)
        points = rng.uniform(0, 128, (12, POINTS, 2)).astype(np.float32)
        return Map(colours[labels], labels, np.bincount(labels.ravel(), minlength=12), points)


@pytest.fixture(scope='session')
def square_worlds() -> type[SquareWorlds]:
    """Return a feed of worlds of 128 pixels a side, to be made anew for each run."""
    return SquareWorlds


@pytest.fixture(scope='session')
def tiny_config() -> Callable[[str], TrainConfig]:
    """Return what gives the configuration of a run of a family, on these worlds."""
    return _config


def _config(name: str) -> TrainConfig:
    """Return a run of a tiny network of a family, a few seconds long."""
    return TrainConfig(
        family=name, seed=3, model=_MODELS[name],
        worlds=WorldsConfig(train=2, first=2, ramp_steps=1, size_m=32.0, resolution_m=0.25),
        crops=CropsConfig(min_altitude_m=6.0, max_altitude_m=12.0, strength=0.2),
        optimiser=OptimiserConfig(steps=_STEPS, batch_size=4, prompt_sets=2, warmup_steps=4,
                                  learning_rate=4e-3, ema_decay=0.9),
        loss=LossConfig(stride=3))
