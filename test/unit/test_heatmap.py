# SPDX-License-Identifier: Apache-2.0
"""Fusion: equal to DOVESEI's threshold loop, and safe where it deviates on purpose."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.heatmap import (
    FusionOptions,
    Threshold,
    apply_threshold,
    blur_and_resize,
    find_threshold,
    positive_probability,
)


def dovesei_loop(probability, safety, dynamic):
    """Lower the threshold step by step, as the spec describes the original."""
    threshold, success = safety, False
    mask = probability > threshold
    if dynamic <= 0:
        return threshold, True, mask
    for index in range(101):
        if mask.sum() / mask.size < dynamic:
            threshold = safety - safety / 100 * index
            mask = probability > threshold
        else:
            success = True
            break
    return threshold, success, mask


PROBABILITIES = st.one_of(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60),
    st.lists(st.sampled_from([0.0, 0.004, 0.008, 0.0081, 0.23, 0.8, 1.0, float('nan')]),
             min_size=1, max_size=40),
    # Values that lie exactly on the thresholds, where strictness and rounding matter.
    st.lists(st.integers(0, 100).map(lambda i: float(np.float32(0.8 - 0.8 / 100 * i))),
             min_size=1, max_size=60))


@settings(max_examples=600, deadline=None)
@given(PROBABILITIES,
       st.one_of(st.floats(1e-3, 1), st.sampled_from([0.8, 0.85, 0.5, 1.5])),
       st.one_of(st.floats(-0.1, 1.1), st.sampled_from([0.1, 0.3, 0.0, 1.0])))
def test_threshold_equals_the_loop(values, safety, dynamic):
    probability = np.array(values, np.float32).reshape(1, -1)
    options = FusionOptions(safety, 1, dynamic, on_failure='dovesei')
    threshold, success, mask = dovesei_loop(probability, safety, dynamic)
    found = find_threshold(probability, options)
    assert (found.value, found.success) == (threshold, success)
    np.testing.assert_array_equal(apply_threshold(probability, found, 'dovesei') == 255, mask)


@pytest.mark.parametrize(('value', 'safety', 'dynamic', 'success', 'safe'), [
    (.004, .8, .1, False, True),    # below the last threshold tested: fails, all white
    (.0081, .8, .1, True, True),    # just above it
    (.5, .8, 1.1, False, True),     # more than everything can never be safe
    (np.nan, .8, .1, False, False),  # NaN is never safe
    (3 / 13, .8, .1, True, True),   # a network that knows nothing still "succeeds"
])
def test_edge_cases_of_the_loop(value, safety, dynamic, success, safe):
    probability = np.full((20, 20), value, np.float32)
    found = find_threshold(probability, FusionOptions(safety, 1, dynamic))
    assert found.success is success
    assert (apply_threshold(probability, found, 'dovesei') == 255).all() == safe


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50),
       st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_no_pixel_under_the_floor_is_ever_safe(values, safety, dynamic, floor):
    probability = np.array(values, np.float32).reshape(1, -1)
    found = find_threshold(probability, FusionOptions(safety, 1, dynamic, floor))
    mask = apply_threshold(probability, found, 'unsafe')
    assert (probability[mask == 255] > np.float32(floor)).all()
    if found.success and dynamic > 0:
        assert (mask == 255).mean() >= dynamic


def test_floor_does_not_change_what_is_found_above_it():
    probability = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)
    free = find_threshold(probability, FusionOptions(dynamic_threshold=.4))
    floored = find_threshold(probability, FusionOptions(dynamic_threshold=.4, min_threshold=.3))
    assert free == floored
    assert not find_threshold(
        probability, FusionOptions(dynamic_threshold=.9, min_threshold=.3)).success


def test_failure_is_black_unless_dovesei_is_asked_for():
    probability = np.full((8, 8), .001, np.float32)
    failed = Threshold(0.0, False)
    assert not apply_threshold(probability, failed, 'unsafe').any()
    assert (apply_threshold(probability, failed, 'dovesei') == 255).all()


def test_positive_probability_is_a_softmax_over_prompts():
    logits = np.random.default_rng(0).normal(0, 4, (5, 6, 6)).astype(np.float32)
    weights = np.exp(logits.astype(np.float64))
    expected = weights[3:].sum(axis=0) / weights.sum(axis=0)
    found = positive_probability(logits, np.array([0, 0, 0, 1, 1], bool))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_huge_logits_do_not_overflow():
    logits = np.array([[[3600.]], [[-3600.]]], np.float32)
    assert positive_probability(logits, np.array([1, 0]))[0, 0] == 1


def test_resize_is_bilinear_and_not_area():
    probability = np.random.default_rng(1).random((352, 352), dtype=np.float32)
    blurred = cv2.blur(probability, (15, 15))
    np.testing.assert_array_equal(
        blur_and_resize(probability, 15, 90, 160),
        cv2.resize(blurred, (160, 90), interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize('field', [
    {'safety_threshold': float('nan')}, {'safety_threshold': 0.0}, {'safety_threshold': -.2},
    {'dynamic_threshold': float('inf')},
    {'blur_kernel_size': 0}, {'blur_kernel_size': -3}, {'blur_kernel_size': 128},
    {'min_threshold': -.1}, {'on_failure': 'white'}])
def test_options_out_of_bounds_are_refused_by_name(field):
    with pytest.raises(ParameterError, match=next(iter(field))):
        FusionOptions(**field)
