# SPDX-License-Identifier: Apache-2.0
"""Rules as arrays, for the stages that apply them on a device."""

import math
from functools import lru_cache

import numpy as np

from blabberseg_ros.heatmap import THRESHOLD_STEPS, FusionOptions, threshold_table
from blabberseg_ros.resampling import read_only


@lru_cache(maxsize=64)
def positive_weights(is_positive: tuple[bool, ...]) -> np.ndarray:
    """Return 1 for a positive prompt and 0 for a negative one, float32 [P]."""
    return read_only(np.array(is_positive, np.float32))


@lru_cache(maxsize=64)
def search_feeds(fusion: FusionOptions, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the search as a device takes it: `thresholds` [101] and `wanted` [2].

    The hundred-and-first threshold cuts the mask of a failed search; infinity leaves it black.
    """
    table = threshold_table(fusion)
    thresholds = np.full(THRESHOLD_STEPS + 1, np.inf, np.float32)
    thresholds[:len(table.tested)] = table.tested
    if fusion.on_failure == 'dovesei':
        thresholds[-1] = table.failed
    # The fewest pixels whose share, computed in double as the loop does, is enough.
    count = min(max(math.ceil(table.wanted * pixels) - 1, 0), pixels + 1)
    while count <= pixels and count / pixels < table.wanted:
        count += 1
    return read_only(thresholds), read_only(np.array([count, len(table.tested)], np.int32))
