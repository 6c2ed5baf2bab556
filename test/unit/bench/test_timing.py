# SPDX-License-Identifier: Apache-2.0
"""How often something is called that is measured, by a clock that the calls themselves move."""

import math
from types import SimpleNamespace

import pytest

from blabberseg_ros.bench import timing
from blabberseg_ros.bench.timing import Limits, repeat


@pytest.mark.parametrize(('seconds_a_call', 'limits', 'warm_ups', 'measured'), [
    (0.1, Limits(5, math.inf, 3), 3, 5),
    (0.1, Limits(5, math.inf, 0), 0, 5),
    (0.1, Limits(1, math.inf, 3), 3, 1),
    # None is begun after the time is up, save the second.
    (0.5, Limits(50, 1.9, 3), 3, 4),
    (3.0, Limits(50, 1.9, 3), 1, 2),
    (3.0, Limits(1, 1.9, 3), 1, 1)])
def test_repeat(monkeypatch, seconds_a_call, limits, warm_ups, measured):
    now, numbers = [100.0], []
    monkeypatch.setattr(timing, 'time', SimpleNamespace(perf_counter=lambda: now[0]))

    def call(number):
        numbers.append(number)
        now[0] += seconds_a_call

    assert repeat(call, limits) == pytest.approx([seconds_a_call * 1e3] * measured)
    assert numbers == list(range(warm_ups + measured))
