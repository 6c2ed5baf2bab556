# SPDX-License-Identifier: Apache-2.0
"""How to fly to a spot: phases and velocities. Nothing here knows ROS.

Whatever is not known stops the vehicle: without a fresh heatmap it hovers, without a safe spot
it climbs to see more.
"""

import math
from dataclasses import dataclass
from enum import Enum

from blabberseg_ros.demo.planner import Spot

Velocity = tuple[float, float, float]


class Phase(str, Enum):
    """What the vehicle is doing."""

    WAITING = 'waiting for camera and heatmaps'
    SEARCHING = 'searching'
    APPROACHING = 'approaching'
    DESCENDING = 'descending'
    COMMITTED = 'touching down'
    HOLDING = 'holding: no heatmap comes'
    LANDED = 'landed'


@dataclass(frozen=True)
class LanderOptions:
    """How it flies; lengths in metres, speeds in metres per second.

    Attributes:
        radius_m: radius of the safe ground that a spot needs.
        search_height_m: height that it climbs back to when nothing is safe.
        commit_height_m: below it the descent goes on without a spot: a camera that close sees
            little, the demonstration model was not trained for it (6 m and more), and climbing
            away is no safer than the last metres.
        aim_height_m: below it, it descends only straight above the spot.
        transit_height_m: below it, it flies only over ground that is known to be safe: a tree
            may stand in the way, which a camera that looks down does not see.
        align_m: distance that it flies over any ground.
        max_map_age_s: without a heatmap for so long it hovers.
        patience_s: without a spot for so long it looks elsewhere.
        tour_step: how much farther out, in shares of the search height, each round of the search
            lies.
        tour_rounds: rounds after which it begins again with the innermost.
        speed_m_s: over ground.
        sink_m_s: downwards, at most; near the ground less.
        touchdown_m_s: downwards, at the end.
        climb_m_s: upwards.
    """

    radius_m: float = 3.0
    search_height_m: float = 100.0
    commit_height_m: float = 8.0
    aim_height_m: float = 12.0
    transit_height_m: float = 25.0
    align_m: float = 6.0
    max_map_age_s: float = 1.0
    patience_s: float = 1.5
    tour_step: float = 0.4
    tour_rounds: int = 3
    speed_m_s: float = 12.0
    sink_m_s: float = 5.0
    touchdown_m_s: float = 1.0
    climb_m_s: float = 5.0


@dataclass(frozen=True)
class Situation:
    """What is known at one moment.

    Attributes:
        now_s: any steady clock.
        x_m: east.
        y_m: north.
        height_m: above ground.
        spot: where to land; None where nothing is known to be safe.
        map_age_s: since the capture of the last frame that was answered.
        landed: it stands.
        way_is_clear: all the ground on the way to the spot is known to be safe.
    """

    now_s: float
    x_m: float
    y_m: float
    height_m: float
    spot: Spot | None
    map_age_s: float
    landed: bool
    way_is_clear: bool = False


class Lander:
    """Decides a velocity for each situation.

    Args:
        options: how to fly.
        home: point around which it searches, east and north.
    """

    # Corners of a square that are visited in turn when nothing is safe.
    _CORNERS = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    # Seconds that a stop may take beyond twice the time of the way: it may be out of reach.
    _STOP_S = 3.0

    def __init__(self, options: LanderOptions, home: tuple[float, float]) -> None:
        """Start in the air."""
        self.phase = Phase.SEARCHING
        self._options = options
        self._home = home
        self._without_spot_since_s: float | None = None
        self._stops = 0
        self._stop_until_s = math.inf

    def velocity(self, now: Situation) -> Velocity:
        """Return the velocity to fly: east, north, up."""
        options = self._options
        if now.landed:
            self.phase = Phase.LANDED
            return 0.0, 0.0, 0.0
        if now.map_age_s > options.max_map_age_s:
            self.phase = Phase.HOLDING
            return 0.0, 0.0, 0.0
        committed = self.phase is Phase.COMMITTED or now.height_m <= options.commit_height_m
        if committed and self.phase in (Phase.DESCENDING, Phase.COMMITTED):
            self.phase = Phase.COMMITTED
            return 0.0, 0.0, -self._sink_m_s(now.height_m)
        if now.spot is None:
            return self._search(now)
        self._without_spot_since_s, self._stop_until_s = None, math.inf
        return self._fly_to(now.spot, now)

    def _fly_to(self, spot: Spot, now: Situation) -> Velocity:
        """Go there, and down as soon as the spot lies within a cone below."""
        options = self._options
        distance_m = spot.distance_m(now.x_m, now.y_m)
        if distance_m > options.align_m and self._too_low(now) and not now.way_is_clear:
            self.phase = Phase.APPROACHING
            return 0.0, 0.0, options.climb_m_s
        speed = min(options.speed_m_s, 0.8 * distance_m)
        share = speed / max(distance_m, 1e-6)
        east, north = share * (spot.x_m - now.x_m), share * (spot.y_m - now.y_m)
        inside = distance_m <= self._reach_m(now.height_m)
        self.phase = Phase.DESCENDING if inside else Phase.APPROACHING
        return east, north, -self._sink_m_s(now.height_m) if inside else 0.0

    def _search(self, now: Situation) -> Velocity:
        """Hover a moment, then climb back and look around."""
        options = self._options
        self.phase = Phase.SEARCHING
        if self._without_spot_since_s is None:
            self._without_spot_since_s = now.now_s
        if now.now_s - self._without_spot_since_s < options.patience_s:
            return 0.0, 0.0, 0.0
        if self._too_low(now):
            return 0.0, 0.0, options.climb_m_s
        up = options.climb_m_s if now.height_m < options.search_height_m else 0.0
        stop_x_m, stop_y_m = self._stop()
        east_m, north_m = stop_x_m - now.x_m, stop_y_m - now.y_m
        distance_m = math.hypot(east_m, north_m)
        if self._stop_until_s == math.inf:
            self._stop_until_s = now.now_s + self._STOP_S + 2.0 * distance_m / options.speed_m_s
        if distance_m < 3.0 or now.now_s > self._stop_until_s:
            self._stops += 1
            self._stop_until_s = math.inf
        speed = min(options.speed_m_s, 0.8 * distance_m) / max(distance_m, 1e-6)
        return speed * east_m, speed * north_m, up

    def _sink_m_s(self, height_m: float) -> float:
        """Return how fast to go down; slower near the ground."""
        options = self._options
        return min(options.sink_m_s, max(options.touchdown_m_s, 0.4 * height_m))

    def _reach_m(self, height_m: float) -> float:
        """Return how far beside the spot it may descend.

        A camera of 73 degrees sees 0.74 of its height to each side. What is committed to must lie
        below, and so must, at the transit height, what is near enough to be aligned with.
        """
        options = self._options
        if height_m <= options.aim_height_m:
            return max(0.7, 0.1 * height_m)
        return options.align_m + 0.5 * max(0.0, height_m - options.transit_height_m)

    def _too_low(self, now: Situation) -> bool:
        """Return whether something could stand in the way over ground."""
        options = self._options
        return now.height_m < min(options.transit_height_m, options.search_height_m)

    def _stop(self) -> tuple[float, float]:
        """Return where to look next: at the start, then at the corners of growing squares."""
        if self._stops == 0:
            return self._home
        passed, corner = divmod(self._stops - 1, len(self._CORNERS))
        share = self._options.tour_step * (1 + passed % self._options.tour_rounds)
        reach_m = share * self._options.search_height_m
        east, north = self._CORNERS[corner]
        return self._home[0] + reach_m * east, self._home[1] + reach_m * north
