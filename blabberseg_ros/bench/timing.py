# SPDX-License-Identifier: Apache-2.0
"""Wall-clock times of something that is called again and again."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

# A call that takes longer is warmed up once only.
_SLOW_S = 1.0
_MIN_REPEATS = 2


@dataclass(frozen=True)
class Limits:
    """How often and how long one figure is measured, at most.

    Attributes:
        repeats: calls that are measured.
        seconds: after which no call is begun, except for the second one.
        warm_up: calls before the clock starts; one if it is slow.
    """

    repeats: int = 50
    seconds: float = 5.0
    warm_up: int = 3


def repeat(call: Callable[[int], object], limits: Limits) -> list[float]:
    """Return wall-clock times in milliseconds.

    Args:
        call: gets the number of the call, counted on from the warm-up: it picks the frame, and one
            of the warm-up is no new frame any more.
        limits: of the figure.
    """
    numbers = itertools.count()
    for _ in range(limits.warm_up):
        started = time.perf_counter()
        call(next(numbers))
        if time.perf_counter() - started > _SLOW_S:
            break
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < limits.repeats and (
            len(times) < _MIN_REPEATS or time.perf_counter() - begun < limits.seconds):
        started = time.perf_counter()
        call(next(numbers))
        times.append((time.perf_counter() - started) * 1e3)
    return times
