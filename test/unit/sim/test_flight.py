# SPDX-License-Identifier: Apache-2.0
"""The simulated vehicle: commands, limits, hovering, touching down."""

import math

import pytest

from blabberseg_ros.sim.flight import FlightLimits, Vehicle, VehicleState, velocity_of_twist


def flat(x_m, y_m):
    return 0.0


def fly(vehicle: Vehicle, command, since_s: float, until_s: float) -> VehicleState:
    """Repeat a command at 20 Hz."""
    for tick in range(round((until_s - since_s) / 0.05)):
        vehicle.command(command, since_s + 0.05 * tick)
    return vehicle.advance(until_s)


def test_the_axes_are_those_of_doveseis_simulator():
    assert velocity_of_twist(1.0, 2.0, 3.0) == (-2.0, 1.0, 3.0)


def test_velocity_follows_its_command_with_a_lag():
    vehicle = Vehicle((0, 0, 100), flat, FlightLimits(), 0, 0.0)
    early = fly(vehicle, (4.0, 0.0, 0.0), 0.0, 0.2)
    assert 0.0 < early.velocity_m_s[0] < 2.0
    late = fly(vehicle, (4.0, 0.0, 0.0), 0.2, 3.0)
    assert late.velocity_m_s[0] == pytest.approx(4.0, abs=0.05)
    assert late.position_m[1:] == (0.0, 100.0)


def test_limits_of_speed_hold_and_keep_the_direction():
    vehicle = Vehicle((0, 0, 300), flat, FlightLimits(horizontal_m_s=5, vertical_m_s=2), 0, 0.0)
    state = fly(vehicle, (300.0, 400.0, -50.0), 0.0, 10.0)
    east, north, up = state.velocity_m_s
    assert math.hypot(east, north) == pytest.approx(5.0, abs=0.05)
    assert north / east == pytest.approx(4 / 3, abs=0.01)
    assert up == pytest.approx(-2.0, abs=0.05)


def test_acceleration_is_limited():
    limits = FlightLimits(acceleration_m_s2=2.0)
    vehicle = Vehicle((0, 0, 100), flat, limits, 0, 0.0)
    state = fly(vehicle, (15.0, 0.0, 0.0), 0.0, 1.0)
    assert state.velocity_m_s[0] <= 2.0 + 1e-6


def test_it_stops_without_a_fresh_command():
    vehicle = Vehicle((0, 0, 100), flat, FlightLimits(), 0, 0.0)
    fly(vehicle, (8.0, 0.0, 0.0), 0.0, 3.0)
    for tick in range(1, 12):
        state = vehicle.advance(3.0 + 0.4 * tick)
    assert state.velocity_m_s[0] == pytest.approx(0.0, abs=0.01)
    where = state.position_m
    assert vehicle.advance(8.4).position_m == pytest.approx(where, abs=0.01)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_command_that_is_not_finite_stops_it(bad):
    vehicle = Vehicle((0, 0, 100), flat, FlightLimits(), 0, 0.0)
    fly(vehicle, (5.0, 0.0, 0.0), 0.0, 2.0)
    state = fly(vehicle, (bad, 0.0, 0.0), 2.0, 6.0)
    assert state.velocity_m_s == pytest.approx((0, 0, 0), abs=0.01)


def test_it_lands_on_what_is_there():
    def roof(x_m, y_m):
        return 7.0 if abs(x_m) < 3 else 0.0

    vehicle = Vehicle((0, 0, 12), roof, FlightLimits(), 0, 0.0)
    state = fly(vehicle, (0.0, 0.0, -2.0), 0.0, 6.0)
    assert state.landed
    assert state.position_m[2] == 7.0
    assert state.velocity_m_s == (0.0, 0.0, 0.0)


def test_it_stays_down_until_it_is_told_to_climb():
    vehicle = Vehicle((0, 0, 1), flat, FlightLimits(), 0, 0.0)
    assert fly(vehicle, (0.0, 0.0, -1.0), 0.0, 3.0).landed
    state = fly(vehicle, (5.0, 0.0, 0.0), 3.0, 5.0)
    assert state.landed
    assert state.position_m[0] == 0.0
    state = fly(vehicle, (0.0, 0.0, 2.0), 5.0, 7.0)
    assert not state.landed
    assert state.position_m[2] > 1.0


def test_it_does_not_climb_a_wall_that_it_flies_into():
    def house(x_m, y_m):
        return 8.0 if x_m > 5 else 0.0

    vehicle = Vehicle((0, 0, 4), house, FlightLimits(), 0, 0.0)
    state = fly(vehicle, (5.0, 0.0, 0.0), 0.0, 4.0)
    assert not state.landed
    assert state.position_m[0] <= 5.0
    assert state.position_m[2] == 4.0


def test_it_stays_within_reach():
    vehicle = Vehicle((0, 0, 50), flat, FlightLimits(reach_m=20.0), 0, 0.0)
    state = fly(vehicle, (15.0, -15.0, 0.0), 0.0, 5.0)
    assert state.position_m[:2] == (20.0, -20.0)


def test_gusts_are_seeded_and_of_the_size_asked_for():
    def drift(seed):
        vehicle = Vehicle((0, 0, 50), flat, FlightLimits(gust_m_s=0.5), seed, 0.0)
        return [vehicle.advance(0.4 * tick).velocity_m_s[0] for tick in range(400)]

    first = drift(1)
    assert first == drift(1)
    assert first != drift(2)
    mean_square = sum(speed**2 for speed in first) / len(first)
    assert math.sqrt(mean_square) == pytest.approx(0.5, rel=0.4)


def test_time_that_the_process_missed_is_not_flown():
    vehicle = Vehicle((0, 0, 100), flat, FlightLimits(), 0, 0.0)
    fly(vehicle, (10.0, 0.0, 0.0), 0.0, 3.0)
    before = vehicle.state.position_m[0]
    assert vehicle.advance(60.0).position_m[0] - before < 10.0
