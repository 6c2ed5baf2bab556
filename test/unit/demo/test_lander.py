# SPDX-License-Identifier: Apache-2.0
"""The phases of the demo's pilot: unknown means hover, unsafe means climb."""

import math
from dataclasses import replace

import numpy as np
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
    lander.velocity(replace(HIGH, height_m=OPTIONS.commit_height_m + 0.1))
    east, north, up = lander.velocity(replace(HIGH, height_m=OPTIONS.commit_height_m - 0.1))
    assert (east, north) == (0.0, 0.0)
    assert up < -OPTIONS.touchdown_m_s
    assert lander.phase is Phase.COMMITTED
    assert lander.velocity(replace(HIGH, height_m=0.5)) == (0.0, 0.0, -OPTIONS.touchdown_m_s)
    assert lander.velocity(replace(HIGH, height_m=2.0, spot=None))[2] < 0


def test_it_does_not_commit_to_what_it_was_not_descending_to(lander):
    assert lander.velocity(replace(HIGH, height_m=3.0, spot=None))[2] >= 0
    assert lander.phase is Phase.SEARCHING


def test_near_the_ground_it_aligns_first(lander):
    beside = replace(HIGH, height_m=10.0, spot=Spot(2.0, 0.0, 6.0))
    assert lander.velocity(beside)[2] == 0.0
    assert lander.phase is Phase.APPROACHING


def search(lander, seconds, reach_m=math.inf):
    """Fly for so long without a spot, 100 m up; return where it was: [N, 2] metres."""
    way = np.zeros((round(seconds / 0.05), 2))
    x_m = y_m = 0.0
    for tick in range(len(way)):
        east, north, _ = lander.velocity(replace(
            HIGH, spot=None, now_s=0.05 * tick, x_m=x_m, y_m=y_m, height_m=100.0))
        x_m, y_m = np.clip((x_m + 0.05 * east, y_m + 0.05 * north), -reach_m, reach_m)
        way[tick] = x_m, y_m
    return way


CORNERS = {(1, 1), (-1, 1), (-1, -1), (1, -1)}


def corners_at(way, distance_m):
    """Return the corners of a square that were come to, within 3 m."""
    return {corner for corner in CORNERS
            if (np.abs(way - distance_m * np.array(corner)).max(axis=1) < 3.0).any()}


def test_it_searches_in_rounds_that_widen(lander):
    way = search(lander, 150.0)
    far_m = np.abs(way).max(axis=1)
    assert corners_at(way, 40.0) == corners_at(way, 80.0) == CORNERS
    first = np.argmax(far_m > 45.0)  # the second round has begun
    assert corners_at(way[:first], 40.0) == CORNERS
    assert far_m.max() < 130.0


def test_the_innermost_round_follows_the_outermost(lander):
    way = search(lander, 600.0)
    outermost = np.argmax(np.abs(way).max(axis=1) > 115.0)
    assert outermost > 0
    assert corners_at(way[outermost:], 40.0) == CORNERS


def test_a_corner_out_of_reach_is_passed_over(lander):
    way = search(lander, 200.0, reach_m=30.0)
    assert {tuple(np.sign(point)) for point in way[np.abs(way).min(axis=1) > 29.0]} == CORNERS


@pytest.mark.parametrize('spot', [Spot(20.0, 0.0, 6.0), None])
def test_near_the_ground_it_climbs_before_it_flies_elsewhere(lander, spot):
    """A tree in the way is not seen by a camera that looks down."""
    low = replace(HIGH, height_m=8.0, spot=spot)
    lander.velocity(low)
    later = replace(low, now_s=low.now_s + OPTIONS.patience_s + 0.1)
    assert lander.velocity(later) == (0.0, 0.0, OPTIONS.climb_m_s)
    above = replace(later, height_m=OPTIONS.transit_height_m + 0.1, x_m=-20.0)
    assert lander.velocity(above)[0] > 0


def test_over_safe_ground_it_flies_low(lander):
    east, _, up = lander.velocity(replace(
        HIGH, height_m=8.0, spot=Spot(20.0, 0.0, 6.0), way_is_clear=True))
    assert east > 0
    assert up == 0.0


@pytest.mark.parametrize('beside_m', [2.0, 10.0, 25.0, 40.0])
def test_it_comes_down_on_spots_beside_it_without_turning_back_up(lander, beside_m):
    x_m, height_m = 0.0, 60.0
    for tick in range(2000):
        east, _, up = lander.velocity(replace(
            HIGH, now_s=0.05 * tick, x_m=x_m, height_m=height_m, spot=Spot(beside_m, 0.0, 8.0)))
        x_m, height_m = x_m + 0.05 * east, height_m + 0.05 * up
        assert up <= 0.0
        if lander.phase is Phase.COMMITTED:
            break
    assert lander.phase is Phase.COMMITTED
    assert abs(x_m - beside_m) <= 0.7


def test_landed_means_still(lander):
    assert lander.velocity(replace(HIGH, height_m=0.3, landed=True)) == (0.0, 0.0, 0.0)
    assert lander.phase is Phase.LANDED
