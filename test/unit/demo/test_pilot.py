# SPDX-License-Identifier: Apache-2.0
"""The pilot's head: what answers, failures and silence make it do."""

import numpy as np
import pytest

from blabberseg_ros.demo.lander import LanderOptions, Phase
from blabberseg_ros.demo.pilot import Pilot
from blabberseg_ros.demo.planner import Viewpoint
from blabberseg_ros.demo.recording import Flight

START = (0.0, 0.0, 60.0)
VIEW = Viewpoint(*START, 0.6757)
SAFE, UNSAFE = np.full((352, 352), 255, np.uint8), np.zeros((352, 352), np.uint8)


@pytest.fixture
def flight() -> Flight:
    return Flight()


@pytest.fixture
def pilot(flight) -> Pilot:
    """Return a pilot who has seen safe ground for half a second."""
    pilot = Pilot(LanderOptions(search_height_m=100.0), 20.0, START, flight)
    for tick in range(5):
        pilot.see_mask(0.1 * tick, SAFE, VIEW, True)
    return pilot


def test_safe_ground_below_is_descended_to(pilot):
    assert pilot.velocity(0.5, START, False)[2] < 0
    assert pilot.phase is Phase.DESCENDING


def test_an_answer_that_must_not_be_used_stops_it_at_once(pilot):
    pilot.see_mask(0.5, SAFE, VIEW, False)
    assert pilot.velocity(0.5, START, False) == (0.0, 0.0, 0.0)


def test_one_failure_is_forgiven(pilot):
    pilot.see_mask(0.5, UNSAFE, VIEW, False)
    pilot.see_mask(0.6, SAFE, VIEW, True)
    pilot.see_mask(0.7, SAFE, VIEW, True)
    assert pilot.velocity(0.7, START, False)[2] < 0


def test_it_climbs_when_failures_last(pilot):
    for tick in range(40):
        now_s = 0.5 + 0.1 * tick
        pilot.see_mask(now_s, UNSAFE, VIEW, False)
        velocity = pilot.velocity(now_s, START, False)
    assert pilot.phase is Phase.SEARCHING
    assert velocity[2] > 0


def test_it_hovers_when_nothing_answers(pilot):
    assert pilot.velocity(9.0, START, False) == (0.0, 0.0, 0.0)
    assert pilot.phase is Phase.HOLDING


def test_after_a_change_of_prompts_nothing_is_known(pilot, flight):
    pilot.change_question()
    assert pilot.spot is None
    assert pilot.velocity(0.5, START, False) == (0.0, 0.0, 0.0)
    east_only = SAFE.copy()
    east_only[:, :300] = 0
    for tick in range(6, 12):
        pilot.see_mask(0.1 * tick, east_only, VIEW, True)
    assert pilot.spot.x_m > 20
    assert [event.kind for event in flight.events] == ['target', 'replan']


def test_the_last_metres_are_measured(pilot):
    pilot.velocity(0.5, START, False)
    pilot.see_depth(np.full((352, 352), 3.5, np.float32), Viewpoint(0.0, 0.0, 10.0, 0.6757))
    pilot.velocity(0.6, (0.0, 0.0, 10.0), False)
    assert pilot.phase is Phase.COMMITTED


def test_the_track_is_recorded(pilot, flight):
    pilot.velocity(0.5, START, False)
    pilot.velocity(0.6, START, True)
    assert [fix.phase for fix in flight.track] == ['descending', 'landed']


def test_an_empty_mask_harms_nothing(pilot):
    pilot.see_mask(0.5, np.zeros((0, 0), np.uint8), VIEW, False)
    assert pilot.velocity(0.5, START, False) == (0.0, 0.0, 0.0)
