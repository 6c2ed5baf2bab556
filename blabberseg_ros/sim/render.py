# SPDX-License-Identifier: Apache-2.0
"""A nadir pinhole camera over a world."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray

from blabberseg_ros.sim import classes
from blabberseg_ros.sim.noise import spectral_tile
from blabberseg_ros.sim.world import World

DEFAULT_FOV_DEG = 73.0

_LEAST_DEPTH_M = 0.1
DETAIL_PX = 1024  # side of the detail tile
DETAIL_M = 0.025  # its resolution
_PEOPLE_GSD_M = 0.06  # below this ground sampling distance people are drawn anew
# Grey levels of fine texture by class, where the camera sees more than the map holds.
DETAIL_AMPLITUDE = {
    classes.BUILDING: 7.0, classes.TREE: 15.0, classes.WATER: 3.0, classes.VEHICLE: 2.0,
    classes.ROAD: 9.0, classes.GRASS: 15.0, classes.SOIL: 13.0, classes.PAVED: 8.0,
    classes.STRUCTURE: 7.0, classes.PERSON: 3.0, classes.FIELD: 14.0}


@dataclass(frozen=True)
class View:
    """What the camera sees.

    Attributes:
        rgb: uint8 [h, w, 3].
        labels: uint8 [h, w], class ids.
        depth_m: float32 [h, w], distance from the camera along its axis.
    """

    rgb: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    depth_m: NDArray[np.float32]


def ground_width_m(altitude_m: float, fov_deg: float = DEFAULT_FOV_DEG) -> float:
    """Give the width of the ground in view; `fov_deg` is the horizontal field of view."""
    return 2.0 * altitude_m * float(np.tan(np.deg2rad(fov_deg) / 2))


class Renderer:
    """A camera over one world; keeps the world's image pyramid, so that a view costs little."""

    def __init__(self, world: World) -> None:
        """Build the pyramid.

        Args:
            world: What to fly over.
        """
        self.world = world
        self._levels = [world.rgb]
        while self._levels[-1].shape[0] >= 32:
            side = self._levels[-1].shape[0]
            half = np.asarray(cv2.resize(
                self._levels[-1], ((side + 1) // 2,) * 2, interpolation=cv2.INTER_AREA), np.uint8)
            self._levels.append(half)
        self._detail = detail_tile(world.seed)
        self._amplitude = np.zeros(256, np.float32)
        for label, amplitude in DETAIL_AMPLITUDE.items():
            self._amplitude[label] = amplitude
        self._people_xy = np.array([(p.x_m, p.y_m) for p in world.people]).reshape(-1, 2)

    def render(
        self, x_m: float, y_m: float, altitude_m: float, yaw_rad: float = 0.0,
        fov_deg: float = DEFAULT_FOV_DEG, size_px: tuple[int, int] = (352, 352),
    ) -> View:
        """Take a picture straight down.

        Args:
            x_m: East of the camera.
            y_m: North of the camera.
            altitude_m: Above the ground, more than 0.
            yaw_rad: Turn of the camera, counter-clockwise seen from above; 0 has north up.
            fov_deg: Horizontal field of view.
            size_px: Width and height of the picture.

        Raises:
            ValueError: Altitude, field of view or size make no picture.
        """
        width, height = size_px
        if not (altitude_m > 0 and 0 < fov_deg < 180 and width > 0 and height > 0):
            raise ValueError(
                f'No picture at altitude {altitude_m} m, field of view {fov_deg} degrees and size '
                f'{width}x{height}. Give an altitude and size above 0 and 0 < fov < 180.')
        gsd_m = ground_width_m(altitude_m, fov_deg) / width
        x_m, y_m, flip = self._fold(x_m, y_m)
        matrix = self._matrix(x_m, y_m, yaw_rad, gsd_m, size_px, flip)
        labels = _warp(self.world.labels, matrix, size_px, cv2.INTER_NEAREST)
        height_m = _warp(self.world.height_m, matrix, size_px, cv2.INTER_NEAREST)
        rgb = self._colour(matrix, gsd_m, size_px)
        if detail_share(gsd_m / self.world.resolution_m) > 0:
            rgb = self._add_detail(rgb, labels, matrix, gsd_m)
        if gsd_m < _PEOPLE_GSD_M:
            self._draw_people(rgb, labels, matrix, (x_m, y_m), gsd_m * float(np.hypot(*size_px)))
        depth = np.maximum(np.float32(altitude_m) - height_m, np.float32(_LEAST_DEPTH_M))
        return View(rgb, labels, depth)

    def _fold(self, x_m: float, y_m: float) -> tuple[float, float, tuple[int, int]]:
        """Move the camera into the map; tell which axes the mirror has turned."""
        side = self.world.size_m
        u, v = np.mod((x_m + side / 2, side / 2 - y_m), 2 * side)
        flip = (-1 if u >= side else 1, -1 if v >= side else 1)
        u, v = min(u, 2 * side - u), min(v, 2 * side - v)
        return float(u - side / 2), float(side / 2 - v), flip

    def _matrix(
        self, x_m: float, y_m: float, yaw_rad: float, gsd_m: float, size_px: tuple[int, int],
        flip: tuple[int, int],
    ) -> NDArray[np.float64]:
        """Give the map from view pixels to world pixels, centres at integers: float64 [2, 3]."""
        res, half = self.world.resolution_m, self.world.size_m / 2
        scale = gsd_m / res
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        # The view's right is (c, s) and its down is (s, -c) in east and north.
        linear = np.array([[c * flip[0], s * flip[0]], [-s * flip[1], c * flip[1]]]) * scale
        centre = np.array([(size_px[0] - 1) / 2, (size_px[1] - 1) / 2])
        target = np.array([(x_m + half) / res - 0.5, (half - y_m) / res - 0.5])
        return np.hstack([linear, (target - linear @ centre)[:, None]])

    def _colour(
        self, matrix: NDArray[np.float64], gsd_m: float, size_px: tuple[int, int]
    ) -> NDArray[np.uint8]:
        ratio = gsd_m / self.world.resolution_m
        level = int(np.clip(np.rint(np.log2(max(ratio, 1.0)) + 0.1), 0, len(self._levels) - 1))
        image = self._levels[level]
        shrink = image.shape[0] / self.world.rgb.shape[0]
        scaled = matrix * shrink
        scaled[:, 2] += (shrink - 1.0) / 2  # pixel centres
        return _warp(image, scaled, size_px, cv2.INTER_LINEAR)

    def _add_detail(
        self, rgb: NDArray[np.uint8], labels: NDArray[np.uint8], matrix: NDArray[np.float64],
        gsd_m: float,
    ) -> NDArray[np.uint8]:
        """Add fine texture that the map cannot hold, fixed to the ground."""
        zoom = self.world.resolution_m / DETAIL_M
        size_px = (rgb.shape[1], rgb.shape[0])
        scaled = matrix * zoom
        scaled[:, 2] = np.mod(scaled[:, 2], 2 * DETAIL_PX)
        detail = _warp(self._detail, scaled, size_px, cv2.INTER_LINEAR)
        fade = detail_share(gsd_m / self.world.resolution_m)
        # Dark ground, such as shadow, shows little texture.
        level = rgb[..., 1].astype(np.float32) * (fade / 110.0)
        detail *= cv2.LUT(labels, self._amplitude) * level
        shown = cv2.add(rgb, cv2.merge([detail, detail, detail]), dtype=cv2.CV_8U)
        return np.asarray(shown, np.uint8)

    def _draw_people(
        self, rgb: NDArray[np.uint8], labels: NDArray[np.uint8], matrix: NDArray[np.float64],
        centre: tuple[float, float], reach_m: float,
    ) -> None:
        """Draw the people near the centre from their outlines, sharper than the map has them."""
        if not len(self._people_xy):
            return
        near = np.hypot(*(self._people_xy - centre).T) < reach_m
        inverse = np.linalg.inv(matrix[:, :2])
        res, half = self.world.resolution_m, self.world.size_m / 2
        for index in np.flatnonzero(near):
            for points, colour in self.world.people[index].outlines():
                pixels = (points * (1, -1) + half) / res - 0.5
                view = (pixels - matrix[:, 2]) @ inverse.T
                fixed = np.rint(view * 16).astype(np.int32)
                cv2.fillPoly(rgb, [fixed], colour, cv2.LINE_AA, 4)
                cv2.fillPoly(labels, [fixed], classes.PERSON, cv2.LINE_8, 4)


def detail_tile(seed: int) -> NDArray[np.float32]:
    """Give the texture that is added when the camera is low.

    Returns:
        float32 [DETAIL_PX, DETAIL_PX] of unit variance, at DETAIL_M a pixel.
    """
    rng = np.random.default_rng(seed)
    return spectral_tile(rng, DETAIL_PX, 2.0, 40.0, 0.8).astype(np.float32)


def detail_share(zoom: float) -> float:
    """Give how much of it shows when a view's pixel covers `zoom` pixels of the map."""
    return float(np.clip(1.6 - 2 * zoom, 0.0, 1.0))


def _warp(
    image: np.ndarray, matrix: NDArray[np.float64], size_px: tuple[int, int], mode: int
) -> np.ndarray:
    return cv2.warpAffine(
        image, matrix, size_px, flags=mode | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT)


_RENDERERS: 'WeakKeyDictionary[World, Renderer]' = WeakKeyDictionary()


def render(
    world: World, x_m: float, y_m: float, altitude_m: float, yaw_rad: float = 0.0,
    fov_deg: float = DEFAULT_FOV_DEG, size_px: tuple[int, int] = (352, 352),
) -> View:
    """Take a picture straight down; see `Renderer.render`, which this keeps one of per world."""
    renderer = _RENDERERS.get(world)
    if renderer is None:
        renderer = _RENDERERS[world] = Renderer(world)
    return renderer.render(x_m, y_m, altitude_m, yaw_rad, fov_deg, size_px)
