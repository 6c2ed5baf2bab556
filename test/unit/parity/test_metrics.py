# SPDX-License-Identifier: Apache-2.0
"""Figures of a comparison against counting by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from blabberseg_ros.parity.metrics import (
    FLIP_MARGIN,
    Confusion,
    centred_cosines,
    check_threshold,
    difference,
    mask_iou,
)


def logits(seed, prompts=3, side=8):
    return np.random.default_rng(seed).normal(size=(prompts, side, side)).astype(np.float32)


def test_the_cosine_of_a_map_with_itself_is_one_whatever_its_mean():
    np.testing.assert_allclose(centred_cosines(logits(0), logits(0) + 100), 1, atol=1e-6)


def test_unrelated_maps_with_a_large_common_mean_have_no_cosine():
    assert (np.abs(centred_cosines(logits(0, side=64) + 50, logits(1, side=64) + 50)) < 0.1).all()


def test_a_constant_map_has_no_cosine():
    assert (centred_cosines(logits(0), np.ones_like(logits(0))) == 0).all()


def test_nan_in_one_prompt_shows_in_that_prompt():
    broken = logits(0)
    broken[1, 2, 3] = np.nan
    assert np.isnan(centred_cosines(logits(0), broken)).tolist() == [False, True, False]


def test_differences():
    first = np.zeros((10, 10), np.float32)
    second = first.copy()
    second[0, 0] = -0.5
    apart = difference(first, second)
    assert apart.max == 0.5
    assert apart.mean == pytest.approx(0.005)
    assert apart.p99 == pytest.approx(0.005)
    assert math.isnan(difference(first, np.where(second < 0, np.float32(np.nan), second)).max)


def ramp():
    """Return probabilities from 0 to 1, evenly: a fraction f of it is above 1 - f."""
    return np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)


@pytest.mark.parametrize('fraction', [0.3, 0.5, 0.9])
def test_the_threshold_is_the_one_that_dovesei_finds_for_the_fraction(fraction):
    check = check_threshold(ramp(), ramp(), fraction)
    assert fraction <= check.coverage < fraction + 0.009
    assert check.threshold == pytest.approx(1 - fraction, abs=0.009)
    assert check.flips == 0
    assert check.iou == 1


def test_only_pixels_away_from_the_threshold_count_as_flips():
    wanted = np.full((10, 10), 0.9, np.float32)
    wanted[:, :5] = 0.1
    near, far = wanted.copy(), wanted.copy()
    threshold = np.float32(check_threshold(wanted, wanted, 0.5).threshold)
    wanted[0, 0] = near[0, 0] = far[0, 0] = threshold + FLIP_MARGIN / 2
    near[0, 0] = threshold - FLIP_MARGIN / 2
    far[1, 9] = 0.0
    assert check_threshold(wanted, near, 0.5).flips == 0
    assert check_threshold(wanted, far, 0.5).flips == 1


@pytest.mark.parametrize(('coverage', 'decidable'),
                         [(0.04, False), (0.06, True), (0.94, True), (0.96, False)])
def test_a_mask_that_is_almost_empty_or_full_decides_nothing(coverage, decidable):
    probability = np.zeros((100, 100), np.float32)
    probability.ravel()[:round(coverage * 10_000)] = 0.95
    assert check_threshold(probability, probability, coverage).decidable == decidable


def test_iou_of_empty_masks_is_one():
    empty = np.zeros((3, 3), bool)
    assert mask_iou(empty, empty) == 1
    assert mask_iou(empty, ~empty) == 0


@given(arrays.arrays(bool, (6, 7)), arrays.arrays(bool, (6, 7)))
def test_confusion_is_counted_as_by_hand(reference, tested):
    confusion = Confusion()
    confusion.add(reference, tested)
    assert confusion.accuracy == pytest.approx((reference == tested).mean())
    for index, truth in enumerate((~reference, reference)):
        found = tested if index else ~tested
        hits = np.count_nonzero(truth & found)
        expected = hits / truth.sum() if truth.any() else float('nan')
        assert confusion.recall[index] == pytest.approx(expected, nan_ok=True)
        union = np.count_nonzero(truth | found)
        expected = hits / union if union else float('nan')
        assert confusion.iou[index] == pytest.approx(expected, nan_ok=True)


@given(st.integers(0, 5), st.integers(0, 5))
def test_confusion_adds_up_over_images(first, second):
    masks = [np.random.default_rng(seed).random((4, 4)) > 0.5 for seed in (first, second, 9)]
    together, alone = Confusion(), Confusion()
    together.add(np.concatenate(masks[:2]), np.concatenate([masks[2], masks[2]]))
    alone.add(masks[0], masks[2])
    alone.add(masks[1], masks[2])
    np.testing.assert_array_equal(together.counts, alone.counts)
