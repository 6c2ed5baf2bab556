# SPDX-License-Identifier: Apache-2.0
"""The ground seen from above, put together from the camera frames of a flight."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from blabberseg_ros.demo.recording import Moment

# Closer than this the frames add blur, not detail.
_LOWEST_M = 6.0
# Seams fade over this share of a frame's side.
_FEATHER = 0.08


@dataclass(frozen=True)
class Mosaic:
    """A picture of the ground; its top is north.

    Attributes:
        rgba: uint8 [H, W, 4]; transparent where no frame reached.
        west_m: left edge, metres east.
        north_m: upper edge, metres north.
        pixel_m: side of a pixel.
    """

    rgba: np.ndarray
    west_m: float
    north_m: float
    pixel_m: float

    def share(self, x_m: float, y_m: float) -> tuple[float, float]:
        """Return where a point lies, as shares of width and height from the upper left corner."""
        height_px, width_px = self.rgba.shape[:2]
        return ((x_m - self.west_m) / (width_px * self.pixel_m),
                (self.north_m - y_m) / (height_px * self.pixel_m))


def mosaic(moments: Sequence[Moment], side_px: int = 1000) -> Mosaic | None:
    """Lay frames over each other, those from high up first.

    Args:
        moments: frames and where they were taken.
        side_px: longer side of the result.

    Returns:
        The picture; None without frames.
    """
    usable = [moment for moment in moments if moment.view.height_m >= _LOWEST_M]
    usable.sort(key=lambda moment: -moment.view.height_m)
    if not usable:
        return None
    halves = [_half_m(moment) for moment in usable]
    west = min(m.view.x_m - half[0] for m, half in zip(usable, halves, strict=True))
    east = max(m.view.x_m + half[0] for m, half in zip(usable, halves, strict=True))
    south = min(m.view.y_m - half[1] for m, half in zip(usable, halves, strict=True))
    north = max(m.view.y_m + half[1] for m, half in zip(usable, halves, strict=True))
    pixel_m = max(east - west, north - south) / side_px
    size = (max(1, round((east - west) / pixel_m)), max(1, round((north - south) / pixel_m)))
    colour = np.zeros((size[1], size[0], 3), np.float32)
    covered = np.zeros((size[1], size[0], 1), np.float32)
    for moment, half in zip(usable, halves, strict=True):
        left = (moment.view.x_m - half[0] - west) / pixel_m
        top = (north - moment.view.y_m - half[1]) / pixel_m
        _blend(colour, covered, moment.rgb, left, top, 2 * half[0] / pixel_m)
    rgba = np.concatenate([colour, 255.0 * covered], axis=2)
    return Mosaic(np.clip(rgba + 0.5, 0, 255).astype(np.uint8), west, north, pixel_m)


def _half_m(moment: Moment) -> tuple[float, float]:
    """Return half the ground width and height that a frame shows."""
    height_px, width_px = moment.rgb.shape[:2]
    half_x_m = moment.view.height_m / moment.view.focal / 2
    return half_x_m, half_x_m * height_px / width_px


def _blend(colour: np.ndarray, covered: np.ndarray, rgb: np.ndarray, left: float, top: float,
           width_px: float) -> None:
    """Draw a frame at its place, soft at its edges where something lies below."""
    scale = width_px / rgb.shape[1]
    if scale < 1.0:
        rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        scale = width_px / rgb.shape[1]
    x0, y0 = max(0, int(left)), max(0, int(top))
    x1 = min(colour.shape[1], int(np.ceil(left + rgb.shape[1] * scale)))
    y1 = min(colour.shape[0], int(np.ceil(top + rgb.shape[0] * scale)))
    if x0 >= x1 or y0 >= y1:
        return
    place = np.array([[scale, 0.0, left - x0 + (scale - 1) / 2],
                      [0.0, scale, top - y0 + (scale - 1) / 2]])
    size = (x1 - x0, y1 - y0)
    drawn = cv2.warpAffine(rgb, place, size, flags=cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    ramps = []
    for length in size:
        edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
        ramps.append(np.clip(edge / (_FEATHER * length), 0.0, 1.0).astype(np.float32))
    weight = np.minimum.outer(ramps[1], ramps[0])[..., None]
    below = covered[y0:y1, x0:x1]
    # Where nothing lies below there is nothing to fade into.
    weight = np.where(below > 0.0, weight, 1.0)
    area = colour[y0:y1, x0:x1]
    area += weight * (drawn - area)
    covered[y0:y1, x0:x1] = 1.0
