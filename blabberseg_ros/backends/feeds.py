# SPDX-License-Identifier: Apache-2.0
"""Rules as arrays, for the stages that apply them on a device."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from blabberseg_ros.heatmap import (
    THRESHOLD_STEPS,
    FusionOptions,
    Threshold,
    ThresholdTable,
    threshold_table,
)
from blabberseg_ros.resampling import read_only


@lru_cache(maxsize=64)
def positive_weights(is_positive: tuple[bool, ...]) -> np.ndarray:
    """Return 1 for a positive prompt and 0 for a negative one, float32 [P]."""
    return read_only(np.array(is_positive, np.float32))


@dataclass(frozen=True)
class DeviceSearch:
    """A threshold search as a device takes it.

    Attributes:
        thresholds: float32 [101]. The last cuts the mask of a failed search; infinity leaves it
            black.
        wanted: int32 [2]: the fewest pixels that have to be above a threshold, and how many
            thresholds may be used.
        table: what the thresholds are in double precision.
    """

    thresholds: np.ndarray
    wanted: np.ndarray
    table: ThresholdTable

    def outcome(self, index: int) -> Threshold:
        """Return what it means that a device found the threshold of an index, 100 if none."""
        if index < len(self.table.tested):
            return Threshold(self.table.tested[index], True)
        return Threshold(self.table.failed, False)


@lru_cache(maxsize=64)
def device_search(fusion: FusionOptions, pixels: int) -> DeviceSearch:
    """Return the search in an image of so many pixels."""
    table = threshold_table(fusion)
    thresholds = np.full(THRESHOLD_STEPS + 1, np.inf, np.float32)
    thresholds[:len(table.tested)] = table.tested
    if fusion.on_failure == 'dovesei':
        thresholds[-1] = table.failed
    # The fewest pixels whose share, computed in double as the loop does, is enough.
    count = min(max(math.ceil(table.wanted * pixels) - 1, 0), pixels + 1)
    while count <= pixels and count / pixels < table.wanted:
        count += 1
    return DeviceSearch(
        read_only(thresholds), read_only(np.array([count, len(table.tested)], np.int32)), table)
