# SPDX-License-Identifier: Apache-2.0
"""Photometric augmentation: plausible images, nothing moved, the seed decides."""

import pytest
import torch

from blabberseg_ros.training.augment import Augmentation

_CLASSES = 12


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    rgb = torch.rand((12, 3, 32, 48), generator=generator)
    labels = torch.randint(_CLASSES, (12, 32, 48), generator=generator)
    return rgb, labels


def _augment(batch, seed, strength=1.0):
    torch.manual_seed(seed)
    return Augmentation(_CLASSES, strength)(*batch)


def test_without_strength_only_the_rounding_to_8_bits_is_left(batch) -> None:
    torch.testing.assert_close(_augment(batch, 0, 0.0), (batch[0] * 255).round() / 255)


@pytest.mark.parametrize('strength', [0.3, 1.0, 2.0])
def test_results_are_8_bit_images(batch, strength) -> None:
    found = _augment(batch, 3, strength)
    assert found.shape == batch[0].shape
    assert torch.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(found * 255, (found * 255).round())


def test_each_image_changes_in_its_own_way_and_the_seed_decides_how(batch) -> None:
    rgb = batch[0][:1].expand(12, -1, -1, -1).clone()
    found = _augment((rgb, batch[1]), 5)
    assert torch.equal(found, _augment((rgb, batch[1]), 5))
    assert not torch.equal(found, _augment((rgb, batch[1]), 6))
    assert len({image.numpy().tobytes() for image in found}) > 8


def test_some_images_are_left_as_they_were_rendered(batch) -> None:
    rgb = batch[0][:1].expand(200, -1, -1, -1)
    found = _augment((rgb, batch[1][:1].expand(200, -1, -1)), 2)
    untouched = (found - rgb).abs().amax((1, 2, 3)) < 1 / 255
    assert 5 < untouched.sum() < 60


def test_pixels_stay_where_they_are(batch) -> None:
    # Two halves of different brightness: whatever happens, the edge stays in the middle.
    rgb = torch.full((64, 3, 32, 48), 0.25)
    rgb[..., 24:] = 0.75
    labels = torch.ones((64, 32, 48), dtype=torch.int64)
    found = _augment((rgb, labels), 9, 0.5).mean((0, 1, 2))
    assert (found[1:] - found[:-1]).argmax() == 23
