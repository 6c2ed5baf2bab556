# SPDX-License-Identifier: Apache-2.0
"""The map under construction: polygons painted as region numbers, each region with a material.

Painting numbers instead of colours keeps the layout fast; `shading` turns all numbers into colour
at once, and the label map falls out of the same table, so that the two cannot disagree.
"""

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Colour = tuple[float, float, float]
Points = NDArray[np.float64]

_SHIFT = 4  # fillPoly takes fixed-point coordinates: 1/16 pixel
_REGION_LIMIT = 65535


class Wave(IntEnum):
    """Profile of a row texture over one period; rows of `shading.wave_table`."""

    SINE = 0
    JOINT = 1
    SAW = 2
    BARS = 3
    CROP = 4
    TRAMLINES = 5


@dataclass(frozen=True)
class Rows:
    """A texture of parallel rows: furrows, tiles, seams, joints, mowing stripes.

    Attributes:
        period_m: Length of one repeat of the wave, across the rows.
        amplitude: Brightness change, as a share.
        wave: Profile.
    """

    period_m: float
    amplitude: float
    wave: Wave


@dataclass(frozen=True)
class Material:
    """What a region is made of.

    Attributes:
        label: Class id, see `classes`.
        colour: Main colour, RGB in 0..255.
        second: Colour that noise blends in.
        low: Weight in the blend of features of 10 to 80 m.
        mid: Weight in the blend of features of 1.5 to 8 m.
        clump: Brightness change of features of 0.4 to 1.5 m, as a share.
        grain: Brightness change from pixel to pixel, as a share.
        rows: Row texture along the heading that the region is painted with.
        across: Row texture at right angles to it.
    """

    label: int
    colour: Colour
    second: Colour
    low: float = 0.3
    mid: float = 0.3
    clump: float = 0.05
    grain: float = 0.05
    rows: Rows | None = None
    across: Rows | None = None


@dataclass(frozen=True)
class Plane:
    """A sloping surface in world coordinates: height = height_m + slope . (p - at).

    Attributes:
        height_m: Height at `at`.
        slope: Rise per metre east and north.
        at: Point east and north, in metres.
    """

    height_m: float
    slope: tuple[float, float] = (0.0, 0.0)
    at: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class RegionTable:
    """Region parameters as arrays, indexed by region number; R regions.

    Attributes:
        label: uint8 [R].
        colour: float32 [R, 3].
        second: float32 [R, 3].
        weights: float32 [4, R]: low, mid, clump, grain.
        plane: float32 [3, R]: height in metres at pixel (0, 0), rise per column and per row.
        phase: float32 [2, 3, R]: rows and across; wave periods per column, per row, offset.
        wave: int64 [2, R]: wave number.
        amplitude: float32 [2, R].
    """

    label: NDArray[np.uint8]
    colour: NDArray[np.float32]
    second: NDArray[np.float32]
    weights: NDArray[np.float32]
    plane: NDArray[np.float32]
    phase: NDArray[np.float32]
    wave: NDArray[np.int64]
    amplitude: NDArray[np.float32]


class Canvas:
    """A square map that polygons are painted on; the origin is in the middle, x east, y north."""

    def __init__(self, size_px: int, resolution_m: float) -> None:
        """Create an empty map.

        Args:
            size_px: Side of the map.
            resolution_m: Metres per pixel.
        """
        self.size_px = size_px
        self.resolution_m = resolution_m
        self.half_m = size_px * resolution_m / 2
        self.regions: NDArray[np.uint16] = np.zeros((size_px, size_px), np.uint16)
        self._labels: list[int] = []
        self._colours: list[tuple[Colour, Colour]] = []
        self._weights: list[tuple[float, float, float, float]] = []
        self._planes: list[tuple[float, float, float]] = []
        self._phases: list[list[tuple[float, float, float]]] = []
        self._waves: list[tuple[int, int]] = []
        self._amplitudes: list[tuple[float, float]] = []

    def region(
        self,
        material: Material,
        plane: Plane | None = None,
        heading_rad: float = 0.0,
        shade: float = 1.0,
    ) -> int:
        """Register a region and give its number.

        Args:
            material: What it is made of.
            plane: Its height; ground level by default.
            heading_rad: Direction of its rows, counter-clockwise from east.
            shade: Factor on its brightness, for tilted surfaces.

        Returns:
            Region number to paint with. When the table is full, the last region is reused.
        """
        if len(self._labels) >= _REGION_LIMIT:
            return _REGION_LIMIT - 1
        plane = plane or Plane(0.0)
        res, half = self.resolution_m, self.half_m
        gx, gy = plane.slope
        x0, y0 = 0.5 * res - half - plane.at[0], half - 0.5 * res - plane.at[1]
        self._labels.append(material.label)
        first, second = material.colour, material.second
        self._colours.append((
            (first[0] * shade, first[1] * shade, first[2] * shade),
            (second[0] * shade, second[1] * shade, second[2] * shade),
        ))
        self._weights.append((material.low, material.mid, material.clump, material.grain))
        self._planes.append((plane.height_m + gx * x0 + gy * y0, gx * res, -gy * res))
        self._phases.append([
            self._phase(material.rows, heading_rad),
            self._phase(material.across, heading_rad + np.pi / 2),
        ])
        rows, across = material.rows, material.across
        self._waves.append((int(rows.wave) if rows else 0, int(across.wave) if across else 0))
        self._amplitudes.append((
            rows.amplitude if rows else 0.0, across.amplitude if across else 0.0))
        return len(self._labels) - 1

    def _phase(self, rows: Rows | None, heading_rad: float) -> tuple[float, float, float]:
        if rows is None:
            return (0.0, 0.0, 0.0)
        k = self.resolution_m / rows.period_m
        offset = (heading_rad * 7.13 + len(self._labels) * 0.381) % 1.0
        return (-np.sin(heading_rad) * k, -np.cos(heading_rad) * k, offset)

    def to_px(self, points_m: ArrayLike) -> Points:
        """Convert world metres [..., 2] to pixels (column, row), centres at integers."""
        points = np.asarray(points_m, np.float64)
        scale = 1.0 / self.resolution_m
        return (points * (1.0, -1.0) + self.half_m) * scale - 0.5

    def fill(self, points_m: ArrayLike, region: int) -> bool:
        """Paint a polygon given in world metres; tell whether it touches the map."""
        points = self.to_px(points_m)
        low, high = points.min(0), points.max(0)
        if high.min() < -1.0 or low.max() > self.size_px:
            return False
        fixed = np.rint(points * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.regions, [fixed], region, cv2.LINE_8, _SHIFT)
        return True

    def stroke(
        self, points_m: ArrayLike, width_m: float, region: int, closed: bool = False
    ) -> None:
        """Paint a line of a given width along world points."""
        points = self.to_px(points_m)
        low, high = points.min(0), points.max(0)
        if high.min() < -9.0 or low.max() > self.size_px + 9.0:
            return
        fixed = np.rint(points * (1 << _SHIFT)).astype(np.int32)
        thickness = max(1, round(width_m / self.resolution_m))
        cv2.polylines(self.regions, [fixed], closed, region, thickness, cv2.LINE_8, _SHIFT)

    def label_at(self, x_m: float, y_m: float) -> int:
        """Give the class painted at a world point; 0 outside the map."""
        col, row = np.rint(self.to_px((x_m, y_m))).astype(int)
        if not (0 <= col < self.size_px and 0 <= row < self.size_px):
            return 0
        return self._labels[self.regions[row, col]]

    def table(self) -> RegionTable:
        """Collect the region parameters as arrays."""
        colours = np.asarray(self._colours, np.float32)
        return RegionTable(
            label=np.asarray(self._labels, np.uint8),
            colour=np.ascontiguousarray(colours[:, 0]),
            second=np.ascontiguousarray(colours[:, 1]),
            weights=np.ascontiguousarray(np.asarray(self._weights, np.float32).T),
            plane=np.ascontiguousarray(np.asarray(self._planes, np.float32).T),
            phase=np.ascontiguousarray(
                np.asarray(self._phases, np.float32).transpose(1, 2, 0)),
            wave=np.ascontiguousarray(np.asarray(self._waves, np.int64).T),
            amplitude=np.ascontiguousarray(np.asarray(self._amplitudes, np.float32).T),
        )
