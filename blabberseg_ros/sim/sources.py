# SPDX-License-Identifier: Apache-2.0
"""Where the pictures of a simulated camera come from: the procedural world, or recordings."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from blabberseg_ros.errors import ImageError, ParameterError
from blabberseg_ros.sim.render import Renderer
from blabberseg_ros.sim.world import World

IMAGE_SUFFIXES = frozenset({'.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp'})
# Half the width of the undercarriage: what stands under any of it carries it.
_FOOTPRINT_M = 0.4
# A vehicle that leaves the drawn world would photograph nothing.
_EDGE_M = 10.0


@dataclass(frozen=True)
class Frame:
    """One exposure.

    Attributes:
        rgb: uint8 [H, W, 3].
        depth_m: float32 [H, W], distance along the camera's axis.
    """

    rgb: np.ndarray
    depth_m: np.ndarray


class FrameSource(ABC):
    """Something to point the camera at."""

    #: The vehicle stays within this distance of the middle, along each axis.
    reach_m: float

    @abstractmethod
    def frame(self, position_m: tuple[float, float, float]) -> Frame:
        """Return what the camera sees, looking straight down with the image's top to the north.

        Raises:
            ImageError: no picture can be had.
        """

    @abstractmethod
    def ground_height_m(self, x_m: float, y_m: float) -> float:
        """Return the height of what a vehicle at this point would stand on, in metres."""


class WorldSource(FrameSource):
    """The procedural world, seen by a pinhole camera.

    Args:
        world: from `blabberseg_ros.sim.world.generate_world`.
        fov_deg: horizontal field of view.
        size_px: width and height of the frames.
    """

    def __init__(self, world: World, fov_deg: float, size_px: tuple[int, int]) -> None:
        """Prepare the camera."""
        self._world = world
        self._renderer = Renderer(world)
        self._fov_deg = fov_deg
        self._size_px = size_px
        self.reach_m = world.size_m / 2 - _EDGE_M

    def frame(self, position_m: tuple[float, float, float]) -> Frame:
        """Render the world from here."""
        x_m, y_m, altitude_m = position_m
        view = self._renderer.render(x_m, y_m, altitude_m, fov_deg=self._fov_deg,
                                     size_px=self._size_px)
        return Frame(view.rgb, view.depth_m)

    def ground_height_m(self, x_m: float, y_m: float) -> float:
        """Return the highest point under the undercarriage."""
        scale, half_m = self._world.resolution_m, self._world.size_m / 2
        row, column = int((half_m - y_m) / scale), int((half_m + x_m) / scale)
        reach = round(_FOOTPRINT_M / scale)
        part = self._world.height_m[max(row - reach, 0):row + reach + 1,
                                    max(column - reach, 0):column + reach + 1]
        return float(part.max()) if part.size else 0.0


class RecordedSource(FrameSource):
    """A recording, played frame by frame and over again. The ground is flat and without edges.

    Args:
        next_rgb: returns the next frame, uint8 [H, W, 3], of any size.
        size_px: width and height that the frames are stretched to.
    """

    reach_m = float('inf')

    def __init__(self, next_rgb: Callable[[], np.ndarray], size_px: tuple[int, int]) -> None:
        """Keep the player."""
        self._next_rgb = next_rgb
        self._size_px = size_px

    def frame(self, position_m: tuple[float, float, float]) -> Frame:
        """Return the next frame; depth is the altitude everywhere."""
        rgb = self._next_rgb()
        width, height = self._size_px
        if rgb.shape[:2] != (height, width):
            shrinks = rgb.shape[0] > height or rgb.shape[1] > width
            rgb = cv2.resize(rgb, self._size_px,
                             interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return Frame(rgb, np.full((height, width), position_m[2], np.float32))

    def ground_height_m(self, x_m: float, y_m: float) -> float:
        """Return 0."""
        return 0.0


def open_recording(path: Path, size_px: tuple[int, int]) -> RecordedSource:
    """Open a video file or a folder of images.

    Args:
        path: the file or the folder; images are played in the order of their names.
        size_px: width and height of the frames that come out.

    Raises:
        ParameterError: there is nothing at `path` that can be played; the message says why.
    """
    path = path.expanduser()
    if path.is_dir():
        return RecordedSource(_Folder(path).next_rgb, size_px)
    if path.is_file():
        return RecordedSource(_Video(path).next_rgb, size_px)
    raise ParameterError(
        f"source is '{path}', which is neither a file nor a folder, so there is nothing to show; "
        "name a video, a folder of images, or 'world'")


class _Folder:
    """Images of a folder, endlessly."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = sorted(path for path in folder.iterdir()
                             if path.suffix.lower() in IMAGE_SUFFIXES)
        self._next = 0
        if not self._paths:
            raise ParameterError(
                f"source is the folder '{folder}', which holds no images "
                f'({", ".join(sorted(IMAGE_SUFFIXES))}); name another one')
        try:
            self.next_rgb()
        except ImageError as error:
            raise ParameterError(f'source: {error}') from error
        self._next = 0

    def next_rgb(self) -> np.ndarray:
        """Return the next image that can be read; damaged ones are passed over."""
        for _ in self._paths:
            path = self._paths[self._next]
            self._next = (self._next + 1) % len(self._paths)
            bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if bgr is not None:
                return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        raise ImageError(f"none of the {len(self._paths)} images in '{self._folder}' can be read")


class _Video:
    """Frames of a video file, endlessly."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened() or not self._capture.grab():
            raise ParameterError(
                f"source is '{path}', which OpenCV cannot play as a video; convert it, for "
                'instance to MP4 with H.264, or name a folder of images')
        self._rewind()

    def next_rgb(self) -> np.ndarray:
        """Return the next frame; after the last one the first again."""
        read, bgr = self._capture.read()
        if not read:
            self._rewind()
            read, bgr = self._capture.read()
        if not read:
            raise ImageError(f"'{self._path}' can no longer be read")
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def _rewind(self) -> None:
        # Opening anew is exact; seeking to frame 0 lands on a later one in some files.
        self._capture.release()
        self._capture = cv2.VideoCapture(str(self._path))
