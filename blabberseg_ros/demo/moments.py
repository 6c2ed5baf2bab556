# SPDX-License-Identifier: Apache-2.0
"""Put together again, by their stamps, what several topics say about one frame."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blabberseg_ros.demo.planner import Viewpoint
from blabberseg_ros.demo.recording import Moment

# Frames are kept for 4 s at 10 Hz, which any answer in time needs less than.
KEPT_FRAMES = 40


@dataclass
class _Parts:
    """What is known about one frame so far."""

    time_s: float = 0.0
    view: Viewpoint | None = None
    phase: str = ''
    rgb: np.ndarray | None = None
    probability: np.ndarray | None = None
    mask: np.ndarray | None = None
    threshold: float | None = None


class Moments:
    """Collects frames, probabilities and masks, and hands on what is complete.

    Args:
        deliver: is given each complete moment, once.
    """

    def __init__(self, deliver: Callable[[Moment], None]) -> None:
        """Start with nothing."""
        self._deliver = deliver
        self._parts: OrderedDict[int, _Parts] = OrderedDict()

    def add_frame(self, stamp_ns: int, rgb: np.ndarray, view: Viewpoint, time_s: float,
                  phase: str) -> None:
        """Take a camera frame; only frames that were added get anywhere."""
        parts = self._part(stamp_ns)
        parts.rgb, parts.view, parts.time_s, parts.phase = rgb, view, time_s, phase
        self._settle(stamp_ns)

    def add_probability(self, stamp_ns: int, probability: np.ndarray) -> None:
        """Take a probability map."""
        self._part(stamp_ns).probability = probability
        self._settle(stamp_ns)

    def add_mask(self, stamp_ns: int, mask: np.ndarray, threshold: float | None = None) -> None:
        """Take a mask, with its threshold where it came with one."""
        parts = self._part(stamp_ns)
        parts.mask = mask
        if threshold is not None:
            parts.threshold = threshold
        self._settle(stamp_ns)

    def _part(self, stamp_ns: int) -> _Parts:
        parts = self._parts.setdefault(stamp_ns, _Parts())
        while len(self._parts) > KEPT_FRAMES:
            self._parts.popitem(last=False)
        return parts

    def _settle(self, stamp_ns: int) -> None:
        parts = self._parts.get(stamp_ns)
        if (parts is None or parts.rgb is None or parts.view is None or parts.mask is None
                or parts.probability is None):
            return
        threshold = parts.threshold
        if threshold is None:
            threshold = threshold_of(parts.probability, parts.mask)
        del self._parts[stamp_ns]
        self._deliver(Moment(parts.time_s, parts.view, parts.rgb, parts.probability, parts.mask,
                             threshold, parts.phase))


def threshold_of(probability: np.ndarray, mask: np.ndarray) -> float:
    """Return the threshold that a mask was made with, to within one step of the search.

    The stream's mask comes without it. NaN where the mask is black or white all over.
    """
    safe = mask > 0
    if safe.all() or not safe.any():
        return float('nan')
    return float((probability[safe].min() + probability[~safe].max()) / 2)
