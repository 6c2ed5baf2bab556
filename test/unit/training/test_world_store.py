# SPDX-License-Identifier: Apache-2.0
"""Crops out of worlds that are simple enough to know what they show."""

import numpy as np
import pytest
import torch

from blabberseg_ros.training.config import CropsConfig
from blabberseg_ros.training.world_store import WorldStore
from blabberseg_ros.training.worlds import POINTS, Map

_SIDE, _CLASSES = 64, 12
# A ground width of 32 px at 1 m a pixel, seen in 32 px: neither enlarged nor shrunk.
_LEVEL_ALTITUDE_M = 16 / np.tan(np.deg2rad(36.5))


def _map(labels: np.ndarray) -> Map:
    rgb = np.stack([20 * labels, 255 - 20 * labels, np.full_like(labels, 7)], -1).astype(np.uint8)
    points = np.zeros((_CLASSES, POINTS, 2), np.float32)
    counts = np.bincount(labels.ravel(), minlength=_CLASSES)
    for index in np.flatnonzero(counts):
        rows, cols = np.nonzero(labels == index)
        points[index] = np.stack([cols, rows], 1)[np.arange(POINTS) % len(rows)] + 0.5
    return Map(rgb, labels.astype(np.uint8), counts, points)


def _quarters() -> np.ndarray:
    labels = np.ones((_SIDE, _SIDE), np.int64)
    labels[:32, 32:], labels[32:, :32], labels[32:, 32:] = 2, 3, 4
    return labels


@pytest.fixture
def store():
    store = WorldStore(3, _SIDE, _CLASSES, torch.device('cpu'))
    store.add(_map(_quarters()))
    store.add(_map(np.full((_SIDE, _SIDE), 9)))
    return store


def _crop(store, batch=32, available=1, seed=0, **values):
    config = CropsConfig(**{'min_altitude_m': _LEVEL_ALTITUDE_M,
                            'max_altitude_m': _LEVEL_ALTITUDE_M * 1.001, 'centred': 0.0, **values})
    torch.manual_seed(seed)
    return store.crop(batch, torch.tensor(available), 32, 1.0, config)


def test_colours_and_labels_lie_on_each_other(store) -> None:
    crops = _crop(store, batch=64)
    assert crops.rgb.shape == (64, 3, 32, 32)
    assert set(crops.labels.unique().tolist()) == {1, 2, 3, 4}
    expected = torch.stack([20 * crops.labels, 255 - 20 * crops.labels,
                            torch.full_like(crops.labels, 7)], 1) / 255
    # Only pixels on the border between two quarters may be mixed.
    wrong = ((crops.rgb - expected).abs().amax(1) > 2 / 255).float().mean()
    assert wrong < 0.12
    assert (crops.rgb[:, 2] * 255 - 7).abs().max() < 1e-3


def test_only_worlds_that_are_available_are_seen(store) -> None:
    assert 9 not in _crop(store, available=1).labels
    assert 9 in _crop(store, available=2).labels


def test_altitude_decides_how_much_is_seen(store) -> None:
    low = _crop(store, min_altitude_m=1.0, max_altitude_m=1.01).labels
    high = _crop(store, min_altitude_m=80.0, max_altitude_m=81.0).labels
    kinds_low = np.mean([len(image.unique()) for image in low])
    kinds_high = np.mean([len(image.unique()) for image in high])
    assert kinds_low < 1.5
    assert kinds_high == 4


def test_shrunk_views_are_averaged_and_not_aliased() -> None:
    labels = np.indices((_SIDE, _SIDE)).sum(0) % 2 * 10 + 1
    store = WorldStore(1, _SIDE, _CLASSES, torch.device('cpu'))
    store.add(_map(labels))
    altitude_m = 8 * _LEVEL_ALTITUDE_M
    crops = _crop(store, min_altitude_m=altitude_m, max_altitude_m=altitude_m * 1.001)
    assert crops.rgb[:, 0].std() < 2 / 255


def test_aimed_crops_find_a_class_of_a_few_pixels(store) -> None:
    labels = np.ones((_SIDE, _SIDE), np.int64)
    labels[5, 60] = 10
    store = WorldStore(1, _SIDE, _CLASSES, torch.device('cpu'))
    store.add(_map(labels))
    aim = {'min_altitude_m': 4.0, 'max_altitude_m': 4.01}
    aimed, blind = (_crop(store, 400, centred=share, **aim).labels for share in (1.0, 0.0))
    seen = [(found == 10).flatten(1).any(1).float().mean().item() for found in (aimed, blind)]
    assert seen[0] > 0.06  # one class of eleven
    assert seen[1] < 0.03


def test_the_same_seed_cuts_the_same(store) -> None:
    assert torch.equal(_crop(store, seed=4).rgb, _crop(store, seed=4).rgb)
    assert not torch.equal(_crop(store, seed=4).rgb, _crop(store, seed=5).rgb)


def test_counts_are_those_of_all_worlds(store) -> None:
    assert store.counts.tolist() == [0, 1024, 1024, 1024, 1024, 0, 0, 0, 0, 4096, 0, 0]
    assert store.filled == 2
