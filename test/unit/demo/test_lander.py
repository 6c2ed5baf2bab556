# SPDX-License-Identifier: Apache-2.0
"""The phases of the demo's pilot: unknown means hover, unsafe means climb."""

import math
from dataclasses import replace

import pytest

from blabberseg_ros.demo.lander import Lander, LanderOptions, Phase, Situation
from blabberseg_ros.demo.planner import Spot

OPTIONS = LanderOptions()
BELOW = Spot(0.0, 0.0, 8.0)
HIGH = Situation(now_s=10.0, x_m=0.0, y_m=0.0, height_m=60.0, spot=BELOW, map_age_s=0.1,
                 landed=False)


@pytest.fixture
def lander() -> Lander:
    return Lander(OPTIONS, (0.0, 0.0))


def test_it_descends_onto_a_spot_below(lander):
    east, north, up = lander.velocity(HIGH)
    assert (east, north) == (0.0, 0.0)
    assert -OPTIONS.sink_m_s <= up < 0
    assert lander.phase is Phase.DESCENDING


def test_it_flies_to_a_spot_before_it_descends(lander):
    east, north, up = lander.velocity(replace(HIGH, spot=Spot(60.0, -30.0, 8.0)))
    assert up == 0.0
    assert east > 0 > north
    assert math.hypot(east, north) == pytest.approx(OPTIONS.speed_m_s)
    assert lander.phase is Phase.APPROACHING


@pytest.mark.parametrize('height_m', [60.0, 3.0, 0.5])
def test_it_hovers_without_a_fresh_heatmap(lander, height_m):
    lander.velocity(replace(HIGH, height_m=height_m))
    assert lander.velocity(replace(HIGH, height_m=height_m, map_age_s=1.5)) == (0.0, 0.0, 0.0)
    assert lander.phase is Phase.HOLDING


def test_without_a_spot_it_hovers_then_climbs(lander):
    nowhere = replace(HIGH, spot=None, height_m=30.0)
    assert lander.velocity(nowhere) == (0.0, 0.0, 0.0)
    later = lander.velocity(replace(nowhere, now_s=10.0 + OPTIONS.patience_s + 0.1))
    assert later[2] == OPTIONS.climb_m_s
    assert lander.phase is Phase.SEARCHING


def test_a_spot_that_turns_unsafe_stops_the_descent(lander):
    assert lander.velocity(HIGH)[2] < 0
    assert lander.velocity(replace(HIGH, spot=None))[2] >= 0


def test_the_last_metres_are_flown_to_the_end(lander):
    lander.velocity(replace(HIGH, height_m=5.0))
    assert lander.velocity(replace(HIGH, height_m=3.9)) == (0.0, 0.0, -OPTIONS.touchdown_m_s)
    assert lander.phase is Phase.COMMITTED
    assert lander.velocity(replace(HIGH, height_m=2.0, spot=None))[2] < 0


def test_it_does_not_commit_to_what_it_was_not_descending_to(lander):
    assert lander.velocity(replace(HIGH, height_m=3.0, spot=None))[2] >= 0
    assert lander.phase is Phase.SEARCHING


def test_near_the_ground_it_aligns_first(lander):
    beside = replace(HIGH, height_m=8.0, spot=Spot(2.0, 0.0, 6.0))
    assert lander.velocity(beside)[2] == 0.0
    assert lander.phase is Phase.APPROACHING


def test_it_searches_around_its_start(lander):
    """It goes on to the next place each time it has come to one."""
    visited = set()
    x_m = y_m = 0.0
    for tick in range(4000):
        east, north, _ = lander.velocity(replace(
            HIGH, spot=None, now_s=0.05 * tick, x_m=x_m, y_m=y_m, height_m=100.0))
        x_m, y_m = x_m + 0.05 * east, y_m + 0.05 * north
        visited.add((round(x_m / 40), round(y_m / 40)))
    assert {(1, 1), (-1, 1), (-1, -1), (1, -1)} <= visited


def test_landed_means_still(lander):
    assert lander.velocity(replace(HIGH, height_m=0.3, landed=True)) == (0.0, 0.0, 0.0)
    assert lander.phase is Phase.LANDED
