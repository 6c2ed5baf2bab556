# SPDX-License-Identifier: Apache-2.0
"""Frames, probabilities and masks are put together by their stamps."""

import math

import numpy as np
import pytest

from blabberseg_ros.demo.moments import KEPT_FRAMES, Moments, threshold_of
from blabberseg_ros.demo.planner import Viewpoint

VIEW = Viewpoint(0.0, 0.0, 50.0, 0.7)
RGB = np.zeros((4, 4, 3), np.uint8)
PROBABILITY = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
MASK = (PROBABILITY > 0.6).astype(np.uint8) * 255


@pytest.mark.parametrize('order', ['fpm', 'mpf', 'pfm', 'mfp'])
def test_the_order_of_arrival_does_not_matter(order):
    found = []
    moments = Moments(found.append)
    for part in order:
        assert not found
        if part == 'f':
            moments.add_frame(7, RGB, VIEW, 1.5, 'searching')
        elif part == 'p':
            moments.add_probability(7, PROBABILITY)
        else:
            moments.add_mask(7, MASK, 0.6)
    assert [(moment.time_s, moment.threshold, moment.phase) for moment in found] == [
        (1.5, 0.6, 'searching')]


def test_parts_of_different_frames_are_never_mixed():
    found = []
    moments = Moments(found.append)
    moments.add_frame(1, RGB, VIEW, 0.0, '')
    moments.add_probability(2, PROBABILITY)
    moments.add_mask(3, MASK)
    assert not found


def test_old_parts_are_forgotten():
    found = []
    moments = Moments(found.append)
    for stamp in range(KEPT_FRAMES + 1):
        moments.add_frame(stamp, RGB, VIEW, 0.0, '')
    for stamp in (0, KEPT_FRAMES):
        moments.add_probability(stamp, PROBABILITY)
        moments.add_mask(stamp, MASK)
    assert len(found) == 1


def test_the_threshold_can_be_read_from_the_mask():
    assert threshold_of(PROBABILITY, MASK) == pytest.approx(0.6, abs=0.04)
    assert math.isnan(threshold_of(PROBABILITY, np.zeros_like(MASK)))
    assert math.isnan(threshold_of(PROBABILITY, np.full_like(MASK, 255)))
