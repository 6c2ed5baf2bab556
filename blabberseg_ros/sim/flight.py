# SPDX-License-Identifier: Apache-2.0
"""A vehicle that follows velocity commands, as simple as it can be without lying.

The velocity follows its command with a lag, within limits of acceleration and speed. Where no
command comes the vehicle stops. Gusts push it, seeded. It stands still once it touches something.
Axes: x east, y north, z up, in metres, from the middle of the world at ground level.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

STEP_S = 0.005
# A process that was suspended must not fly blindly through all the time that it missed.
MAX_ADVANCE_S = 0.5
_GUST_MEMORY_S = 2.0
# Touching something from above and running into its side differ by more than one step's sinking.
_STEP_UP_M = 0.1

GroundHeight = Callable[[float, float], float]


@dataclass(frozen=True)
class FlightLimits:
    """What the vehicle can do.

    Attributes:
        horizontal_m_s: largest speed in the plane.
        vertical_m_s: largest speed up or down.
        acceleration_m_s2: largest change of velocity, in any direction.
        lag_s: time constant with which the velocity follows its command.
        command_timeout_s: without a newer command for this time the vehicle stops and hovers.
        gust_m_s: standard deviation of the drift by wind gusts, per axis of the plane.
        reach_m: the vehicle stays within this distance of the middle, along x and along y.
    """

    horizontal_m_s: float = 15.0
    vertical_m_s: float = 5.0
    acceleration_m_s2: float = 6.0
    lag_s: float = 0.25
    command_timeout_s: float = 0.5
    gust_m_s: float = 0.0
    reach_m: float = math.inf


@dataclass(frozen=True)
class VehicleState:
    """Where the vehicle is.

    Attributes:
        position_m: east, north, up.
        velocity_m_s: east, north, up; the drift by gusts included.
        landed: it stands on something.
    """

    position_m: tuple[float, float, float]
    velocity_m_s: tuple[float, float, float] = (0.0, 0.0, 0.0)
    landed: bool = False


def velocity_of_twist(x: float, y: float, z: float) -> tuple[float, float, float]:
    """Return the velocity east, north, up that DOVESEI's simulator flies for a Twist.

    The vehicle always heads north; `linear` is forward, left, up, so east is -y and north is x.
    """
    return -y, x, z


class Vehicle:
    """Integrate the motion in fixed steps.

    Args:
        start_m: east, north, up.
        ground_height_m: height of whatever is at a point, in metres: roofs and trees included.
        limits: what the vehicle can do.
        seed: of the gusts.
        now_s: time of the start, on any clock that never goes back.
    """

    def __init__(self, start_m: tuple[float, float, float], ground_height_m: GroundHeight,
                 limits: FlightLimits, seed: int, now_s: float) -> None:
        """Start hovering."""
        self.state = VehicleState(start_m)
        self._ground_height_m = ground_height_m
        self._limits = limits
        self._random = np.random.default_rng(seed)
        self._gust = np.zeros(2)
        self._command = np.zeros(3)
        self._airspeed = np.zeros(3)
        self._command_s = -math.inf
        self._time_s = now_s

    def command(self, velocity_m_s: tuple[float, float, float], now_s: float) -> None:
        """Take a velocity command (east, north, up), which holds from now on.

        A command that is not finite is taken as a command to stop.
        """
        self.advance(now_s)
        command = np.asarray(velocity_m_s, np.float64)
        if not np.isfinite(command).all():
            command = np.zeros(3)
        self._command = _within(command, self._limits)
        self._command_s = now_s

    def advance(self, now_s: float) -> VehicleState:
        """Fly until `now_s` and return where the vehicle is then."""
        self._time_s = max(self._time_s, now_s - MAX_ADVANCE_S)
        while self._time_s + STEP_S <= now_s:
            self._time_s += STEP_S
            self._step()
        return self.state

    def _step(self) -> None:
        limits = self._limits
        fresh = self._time_s - self._command_s <= limits.command_timeout_s
        command = self._command if fresh else np.zeros(3)
        if self.state.landed and command[2] <= 0.0:
            return
        change = (command - self._airspeed) * min(1.0, STEP_S / limits.lag_s)
        largest = limits.acceleration_m_s2 * STEP_S
        self._airspeed += change * min(1.0, largest / max(float(np.linalg.norm(change)), 1e-12))
        velocity = self._airspeed + np.array([*self._next_gust(), 0.0])
        position = np.asarray(self.state.position_m) + velocity * STEP_S
        position[:2] = np.clip(position[:2], -limits.reach_m, limits.reach_m)
        ground_m = self._ground_height_m(position[0], position[1])
        climbs = velocity[2] > 0.0 and position[2] > ground_m - _STEP_UP_M
        if position[2] > ground_m or climbs:
            self.state = VehicleState(_triple(position), _triple(velocity))
            return
        self._airspeed[:] = 0.0
        if position[2] < ground_m - _STEP_UP_M:
            # It ran into a wall or a tree from the side: it does not get through, nor on top.
            self.state = replace(self.state, velocity_m_s=(0.0, 0.0, 0.0))
            return
        position[2] = ground_m
        self.state = VehicleState(_triple(position), landed=True)

    def _next_gust(self) -> np.ndarray:
        """Return the drift east and north: an Ornstein-Uhlenbeck process."""
        if self._limits.gust_m_s > 0.0:
            forget = STEP_S / _GUST_MEMORY_S
            kick = self._limits.gust_m_s * math.sqrt(2.0 * forget)
            self._gust += -forget * self._gust + kick * self._random.standard_normal(2)
        return self._gust


def _within(command: np.ndarray, limits: FlightLimits) -> np.ndarray:
    """Return a command within the speed limits, its direction in the plane kept."""
    plane = float(np.hypot(command[0], command[1]))
    command = command.copy()
    command[:2] *= min(1.0, limits.horizontal_m_s / max(plane, 1e-12))
    command[2] = np.clip(command[2], -limits.vertical_m_s, limits.vertical_m_s)
    return command


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
