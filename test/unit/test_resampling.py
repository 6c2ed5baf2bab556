# SPDX-License-Identifier: Apache-2.0
"""Resizing and blurring as matrices, against the libraries whose rules they follow."""

import cv2
import numpy as np
import pytest
from PIL import Image

from blabberseg_ros.resampling import (
    bilinear_weights,
    blur_and_resize_weights,
    box_weights,
    triangle_weights,
)

SIZES = [(480, 640), (352, 352), (100, 77), (1080, 1920), (13, 7), (1, 1), (353, 3000)]


@pytest.mark.parametrize(('height', 'width'), SIZES)
def test_triangle_is_pils_bilinear(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    resized = triangle_weights(height, 352) @ image @ triangle_weights(width, 352).T
    expected = np.asarray(Image.fromarray(image).resize((352, 352), Image.Resampling.BILINEAR))
    # PIL rounds to whole grey levels after each of the two passes.
    assert np.abs(resized - expected).max() <= 1.0


@pytest.mark.parametrize(('height', 'width'), SIZES)
@pytest.mark.parametrize('kernel', [1, 2, 15, 127])
def test_blur_and_resize_are_opencvs(height, width, kernel):
    probability = np.random.default_rng(1).random((352, 352), dtype=np.float32)
    expected = cv2.resize(cv2.blur(probability, (kernel, kernel)), (width, height),
                          interpolation=cv2.INTER_LINEAR)
    found = (blur_and_resize_weights(352, height, kernel) @ probability
             @ blur_and_resize_weights(352, width, kernel).T)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize('weights', [
    triangle_weights(480, 352), triangle_weights(9, 352), bilinear_weights(352, 480),
    bilinear_weights(1, 5), box_weights(16, 127), box_weights(1, 3)])
def test_rows_sum_to_one_and_are_protected(weights):
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert weights.dtype == np.float32
    assert not weights.flags.writeable


def test_identity_where_nothing_is_to_do():
    np.testing.assert_array_equal(triangle_weights(352, 352), np.eye(352))
    np.testing.assert_array_equal(blur_and_resize_weights(352, 352, 1), np.eye(352))
