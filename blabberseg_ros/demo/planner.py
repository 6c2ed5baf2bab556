# SPDX-License-Identifier: Apache-2.0
"""Where to land, from masks: a map of safe ground that fills up while the vehicle flies.

Each mask is laid onto a grid on the ground. Unknown is unsafe: a cell counts only after several
masks have called it safe, and a few that do not take it back. The best spot is the one with
much safe ground around it that is not far away.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

CELL_M = 0.5
# Weight of a new mask. A cell is safe above 0.7: after three masks that say so in a row.
_GAIN = 0.35
_SAFE_SCORE = 0.7
# More free ground than this around a spot makes it no better.
_ENOUGH_CLEARANCE_M = 10.0
# A metre of way costs as much as this many metres of clearance.
_WAY_COST = 0.08
# The spot that is being flown to is left only for one that is better by so many metres.
_LOYALTY_M, _LOYAL_WITHIN_M = 2.5, 5.0
# What has been looked at from near is not called safe from farther away than this many times.
_FARTHER = 1.5
# Safe ground on both sides of a way that is flown low.
_WAY_CLEARANCE_M = 1.0
# Steps of the ground that an undercarriage does not stand on, and where they are looked for.
_STEP_M, _STEP_WINDOW_M = 0.5, 1.5


@dataclass(frozen=True)
class Spot:
    """A place to land.

    Attributes:
        x_m: east.
        y_m: north.
        clearance_m: radius of the safe ground around it.
    """

    x_m: float
    y_m: float
    clearance_m: float

    def distance_m(self, x_m: float, y_m: float) -> float:
        """Return the way to it over the ground."""
        return math.hypot(self.x_m - x_m, self.y_m - y_m)


@dataclass(frozen=True)
class Viewpoint:
    """From where a nadir image was taken; its top is north.

    Attributes:
        x_m: east.
        y_m: north.
        height_m: above the ground.
        focal: focal length divided by the width of the image.
    """

    x_m: float
    y_m: float
    height_m: float
    focal: float

    def share_of(self, radius_m: float, size_px: tuple[int, int]) -> float:
        """Return the share of the image that a disc on the ground covers; above 1 if it is larger.

        Args:
            radius_m: of the disc.
            size_px: width and height of the image.
        """
        width_m = self.height_m / self.focal
        return math.pi * radius_m**2 / (width_m**2 * size_px[1] / size_px[0])


class GroundMap:
    """Safe ground around the point where the flight begins.

    Args:
        x_m: middle of the map, east.
        y_m: middle of the map, north.
        side_m: side of the map; nothing outside is ever chosen.
    """

    def __init__(self, x_m: float, y_m: float, side_m: float = 400.0) -> None:
        """Start with nothing known, which means nothing safe."""
        cells = round(side_m / CELL_M)
        self._west_m, self._north_m = x_m - side_m / 2, y_m + side_m / 2
        self._score = np.zeros((cells, cells), np.float32)
        self._rough = np.zeros((cells, cells), bool)
        # The smallest height from which each cell has been seen.
        self._seen_from_m = np.full((cells, cells), np.inf, np.float32)

    def forget(self) -> None:
        """Forget what was safe, because the question has changed."""
        self._score[:] = 0.0
        self._seen_from_m[:] = np.inf

    def add_mask(self, mask: np.ndarray, view: Viewpoint) -> None:
        """Take in a mask.

        What a look from near has called unsafe stays so when it is seen from far: the vehicle
        would come back to it again and again.

        Args:
            mask: uint8 [H, W], above 0 where it is safe.
            view: where its image was taken.
        """
        laid = self._lay((mask > 0).astype(np.float32), view)
        if laid is None:
            return
        window, safe = laid
        change = _GAIN * (safe - self._score[window])
        far = view.height_m > _FARTHER * self._seen_from_m[window]
        self._score[window] += np.where(far, np.minimum(change, 0.0), change)
        self._seen_from_m[window] = np.minimum(self._seen_from_m[window], view.height_m)

    def add_depth(self, depth_m: np.ndarray, view: Viewpoint, range_m: float) -> None:
        """Take in a depth image: steps in the ground are unsafe whatever the masks say.

        Args:
            depth_m: float32 [H, W], along the camera's axis.
            view: where it was taken.
            range_m: what is farther away is not measured.
        """
        pixel_m = view.height_m / (view.focal * depth_m.shape[1])
        shrink = min(1.0, pixel_m / (CELL_M / 2))
        depth_m = cv2.resize(depth_m, None, fx=shrink, fy=shrink,
                             interpolation=cv2.INTER_NEAREST)
        measured = np.isfinite(depth_m) & (depth_m < range_m)
        if not measured.any():
            return
        depth_m = np.where(measured, depth_m, range_m).astype(np.float32)
        side_px = max(3, round(_STEP_WINDOW_M * shrink / pixel_m) | 1)
        window = np.ones((side_px, side_px), np.uint8)
        step_m = cv2.dilate(depth_m, window) - cv2.erode(depth_m, window)
        known = self._lay(measured.astype(np.float32), view)
        rough = self._lay((step_m > _STEP_M).astype(np.float32), view)
        if known is not None and rough is not None:
            area = known[0]
            self._rough[area] = np.where(known[1] > 0.5, rough[1] > 0.0, self._rough[area])

    def clearance_m(self) -> np.ndarray:
        """Return for each cell how far the next unsafe one is; float32 [cells, cells]."""
        safe = ((self._score > _SAFE_SCORE) & ~self._rough).astype(np.uint8)
        safe[[0, -1]] = 0
        safe[:, [0, -1]] = 0
        clearance: np.ndarray = cv2.distanceTransform(safe, cv2.DIST_L2, 5) * CELL_M
        return clearance

    def best_spot(self, x_m: float, y_m: float, radius_m: float,
                  present: Spot | None = None) -> Spot | None:
        """Return the best place to land.

        Args:
            x_m: where the vehicle is, east.
            y_m: where the vehicle is, north.
            radius_m: radius of the safe ground that it needs.
            present: the place that it is flying to.

        Returns:
            The place, or None where nothing is known to be safe.
        """
        clearance_m = self.clearance_m()
        rows, columns = np.nonzero(clearance_m >= radius_m)
        if not rows.size:
            return None
        east_m, north_m = self._point(rows, columns)
        room_m = np.minimum(clearance_m[rows, columns], _ENOUGH_CLEARANCE_M)
        value = room_m - _WAY_COST * np.hypot(east_m - x_m, north_m - y_m)
        if present is not None:
            near = np.hypot(east_m - present.x_m, north_m - present.y_m) <= _LOYAL_WITHIN_M
            value = value + _LOYALTY_M * near
        best = int(np.argmax(value))
        return Spot(float(east_m[best]), float(north_m[best]),
                    float(clearance_m[rows[best], columns[best]]))

    def clear_way(self, x_m: float, y_m: float, spot: Spot) -> bool:
        """Return whether the ground is known to be safe all the way to a spot.

        Args:
            x_m: where the vehicle is, east.
            y_m: where the vehicle is, north.
            spot: where it flies to.
        """
        steps = np.linspace(0.0, 1.0, 2 + math.ceil(spot.distance_m(x_m, y_m) / CELL_M))
        columns = np.floor((x_m + steps * (spot.x_m - x_m) - self._west_m) / CELL_M).astype(int)
        rows = np.floor((self._north_m - y_m - steps * (spot.y_m - y_m)) / CELL_M).astype(int)
        last = self._score.shape[0] - 1
        if min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) > last:
            return False
        return bool((self.clearance_m()[rows, columns] >= _WAY_CLEARANCE_M).all())

    def _point(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the middles of cells: metres east, metres north."""
        return (self._west_m + (columns + 0.5) * CELL_M, self._north_m - (rows + 0.5) * CELL_M)

    def _lay(self, picture: np.ndarray,
             view: Viewpoint) -> tuple[tuple[slice, slice], np.ndarray] | None:
        """Lay a picture onto the grid.

        Args:
            picture: float32 [H, W].
            view: where its image was taken.

        Returns:
            The part of the grid that it covers, and the picture there; None where it covers
            none.
        """
        height_px, width_px = picture.shape
        pixel_m = view.height_m / (view.focal * width_px)
        # A cell that is larger than a pixel takes the mean of its pixels.
        shrink = min(1.0, pixel_m / CELL_M)
        if shrink < 1.0:
            size = (max(1, round(width_px * shrink)), max(1, round(height_px * shrink)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        across_m = pixel_m * width_px / picture.shape[1]
        down_m = pixel_m * height_px / picture.shape[0]
        half_x_m, half_y_m = pixel_m * width_px / 2, pixel_m * height_px / 2
        cells = self._score.shape[0]
        left = max(0, math.ceil((view.x_m - half_x_m - self._west_m) / CELL_M))
        right = min(cells, math.floor((view.x_m + half_x_m - self._west_m) / CELL_M))
        top = max(0, math.ceil((self._north_m - view.y_m - half_y_m) / CELL_M))
        bottom = min(cells, math.floor((self._north_m - view.y_m + half_y_m) / CELL_M))
        if left >= right or top >= bottom:
            return None
        # From the middle of a cell to the pixel that shows it.
        corner_x_m = self._west_m + (left + 0.5) * CELL_M - (view.x_m - half_x_m)
        corner_y_m = view.y_m + half_y_m - (self._north_m - (top + 0.5) * CELL_M)
        to_picture = np.array([[CELL_M / across_m, 0.0, corner_x_m / across_m - 0.5],
                               [0.0, CELL_M / down_m, corner_y_m / down_m - 0.5]])
        laid = cv2.warpAffine(picture, to_picture, (right - left, bottom - top),
                              flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                              borderMode=cv2.BORDER_REPLICATE)
        return (slice(top, bottom), slice(left, right)), laid
