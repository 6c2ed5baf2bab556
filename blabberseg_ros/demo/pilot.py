# SPDX-License-Identifier: Apache-2.0
"""The pilot's head: from masks, depth and position to a velocity, and a record of it all."""

import numpy as np

from blabberseg_ros.demo.lander import Lander, LanderOptions, Phase, Situation, Velocity
from blabberseg_ros.demo.planner import GroundMap, Spot, Viewpoint
from blabberseg_ros.demo.recording import Event, Fix, Flight, Position

# A new spot that is closer to the old one than this is the old one, better centred.
REPLAN_M = 8.0
# The last metres are measured; above, the height over the start's ground is all there is.
_NADIR_SHARE = 0.125


class Pilot:
    """Decides where to fly.

    Args:
        options: how to fly.
        depth_range_m: reach of the depth sensor.
        start_m: where the flight begins: east, north, up.
        flight: is written to.
    """

    def __init__(self, options: LanderOptions, depth_range_m: float, start_m: Position,
                 flight: Flight) -> None:
        """Begin to search."""
        self.spot: Spot | None = None
        self._options = options
        self._depth_range_m = depth_range_m
        self._flight = flight
        self._ground = GroundMap(start_m[0], start_m[1])
        self._lander = Lander(options, (start_m[0], start_m[1]))
        self._last_answer_s = float('-inf')
        self._trusts = False
        self._way_is_clear = False
        self._last_target: Spot | None = None
        self._nadir_m: float | None = None

    @property
    def phase(self) -> Phase:
        """Return what it is doing."""
        return self._lander.phase

    def see_mask(self, captured_s: float, mask: np.ndarray, view: Viewpoint,
                 success: bool) -> None:
        """Take in an answer. An unsuccessful one makes everything in view unsafe."""
        self._last_answer_s, self._trusts = captured_s, success
        if not success:
            mask = np.zeros_like(mask)
        if mask.size:
            self._ground.add_mask(mask, view)
        if self.phase in (Phase.COMMITTED, Phase.LANDED):
            return
        self.spot = self._ground.best_spot(view.x_m, view.y_m, self._options.radius_m, self.spot)
        self._way_is_clear = self.spot is not None and self._ground.clear_way(
            view.x_m, view.y_m, self.spot)
        self._note_replan(captured_s, view)

    def see_depth(self, depth_m: np.ndarray, view: Viewpoint) -> None:
        """Take in a depth image."""
        rows, columns = (slice(round(size * (0.5 - _NADIR_SHARE / 2)),
                               max(1, round(size * (0.5 + _NADIR_SHARE / 2))))
                         for size in depth_m.shape)
        nadir_m = float(np.median(depth_m[rows, columns]))
        measured = np.isfinite(nadir_m) and nadir_m < self._depth_range_m
        self._nadir_m = nadir_m if measured else None
        if measured and self.phase is not Phase.COMMITTED:
            self._ground.add_depth(depth_m, view, self._depth_range_m)

    def change_question(self) -> None:
        """Forget what was safe: other prompts are in use from now on."""
        self._ground.forget()
        self.spot = None

    def velocity(self, now_s: float, position_m: Position, landed: bool) -> Velocity:
        """Return the velocity to fly: east, north, up."""
        x_m, y_m, z_m = position_m
        height_m = z_m if self._nadir_m is None else self._nadir_m
        velocity = self._lander.velocity(Situation(
            now_s, x_m, y_m, height_m, self.spot if self._trusts else None,
            now_s - self._last_answer_s, landed, self._way_is_clear))
        self._flight.track.append(Fix(now_s, position_m, self.phase.value))
        return velocity

    def _note_replan(self, captured_s: float, view: Viewpoint) -> None:
        spot, last = self.spot, self._last_target
        if spot is None:
            return
        if last is None or spot.distance_m(last.x_m, last.y_m) > REPLAN_M:
            way_m = spot.distance_m(view.x_m, view.y_m)
            self._flight.events.append(Event(
                captured_s, 'target' if last is None else 'replan',
                f'{"first" if last is None else "new"} spot, {way_m:.0f} m away, '
                f'{spot.clearance_m:.0f} m clear', (view.x_m, view.y_m, view.height_m)))
            self._last_target = spot
