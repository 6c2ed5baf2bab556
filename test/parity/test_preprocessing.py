# SPDX-License-Identifier: Apache-2.0
"""Resizing against PIL's bilinear filter, which Hugging Face's processor uses."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from blabberseg_ros.models.clipseg_config import IMAGENET_MEAN, IMAGENET_STD
from blabberseg_ros.models.clipseg_stages import ImageEncoder
from blabberseg_ros.models.stages import resize
from blabberseg_ros.resampling import triangle_weights

SIZE_PX = 352
# Cameras, then small, extreme and awkward ones: larger, smaller, off by one.
SIZES = [(480, 640), (720, 1280), (1080, 1920), (240, 320), (640, 480), (100, 100), (64, 48),
         (351, 353), (353, 351), (7, 1000), (2000, 3), (1, 1), (300, 400), (704, 704), (352, 600)]


def draw(kind, height_px, width_px):
    rng = np.random.default_rng(height_px * 10007 + width_px)
    if kind == 'noise':
        return rng.integers(0, 256, (height_px, width_px, 3), np.uint8)
    if kind == 'extremes':
        return 255 * rng.integers(0, 2, (height_px, width_px, 3), np.uint8)
    y, x = np.mgrid[:height_px, :width_px]
    waves = 127 + 90 * np.sin(y / 31)[..., None] * np.cos(x / 47)[..., None]
    return np.clip(waves + rng.normal(0, 6, (height_px, width_px, 3)), 0, 255).astype(np.uint8)


def resized(image):
    height_px, width_px = image.shape[:2]
    levels = resize(torch.from_numpy(image).permute(2, 0, 1).float(),
                    torch.tensor(triangle_weights(height_px, SIZE_PX)),
                    torch.tensor(triangle_weights(width_px, SIZE_PX)).T)
    assert torch.equal(levels, levels.round())
    return levels.permute(1, 2, 0).numpy().astype(np.int16)


def pil(image):
    return np.asarray(Image.fromarray(image).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR),
                      np.int16)


@pytest.mark.parametrize('kind', ['noise', 'extremes', 'smooth'])
def test_at_the_input_size_nothing_changes(kind):
    image = draw(kind, SIZE_PX, SIZE_PX)
    np.testing.assert_array_equal(resized(image), image)
    np.testing.assert_array_equal(pil(image), image)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ['noise', 'extremes', 'smooth'])
def test_at_most_one_grey_level_from_pil(kind, size):
    image = draw(kind, *size)
    difference = np.abs(resized(image) - pil(image))
    assert difference.max() <= 1
    # PIL rounds once more, after its first pass.
    assert (difference > 0).mean() < 0.35


def test_a_camera_frame_equals_hugging_faces_processor():
    """640 × 480, to the processor's own numbers; the constants are ImageNet's, not CLIP's."""
    image = draw('smooth', 480, 640)
    processor = ViTImageProcessorPil(
        size={'height': SIZE_PX, 'width': SIZE_PX}, resample=Image.Resampling.BILINEAR,
        image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD))
    expected = np.asarray(processor(Image.fromarray(image)).pixel_values[0])
    mean, std = (np.array(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    ours = (resized(image).transpose(2, 0, 1) / 255 - mean) / std
    one_level = 1 / 255 / std
    assert np.all(np.abs(ours - expected) <= 1.001 * one_level)
    assert (np.abs(ours - expected) < 1e-5).mean() > 0.8


def test_the_graphs_constants_are_the_same_normalisation(exported):
    _, model = exported
    pixels = ImageEncoder(model).pixels
    levels = torch.arange(256.).expand(3, 1, 256)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(levels * pixels.scale - pixels.offset,
                               (levels / 255 - mean) / std, rtol=0, atol=1e-6)
