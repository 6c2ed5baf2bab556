# SPDX-License-Identifier: Apache-2.0
"""The frames that engines are compared on: procedural aerial views, the same on every machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from blabberseg_ros.resampling import read_only

_RESOLUTION_M = 0.2
_MARGIN = 1.1
_FOV_DEG = 73.0


@dataclass(frozen=True)
class Pose:
    """From where a frame is taken, and its size.

    Attributes:
        family: kind of place, see `sim.families`.
        seed: of the world.
        altitude_m: of the camera, which looks straight down.
        yaw_rad: heading.
        size_px: width and height.
    """

    family: str
    seed: int
    altitude_m: float
    yaw_rad: float
    size_px: tuple[int, int]


# The two image sizes that are asked for most: DOVESEI's simulator and its cameras. Engines that
# compile for a size have then done so when the first frame comes.
GATE = (Pose('suburb', 11, 55.0, 0.4, (640, 480)), Pose('farmland', 12, 80.0, 2.0, (352, 352)))


@lru_cache(maxsize=8)
def frame(pose: Pose) -> np.ndarray:
    """Return a frame: uint8 [H, W, 3], RGB, read-only."""
    from blabberseg_ros.sim.render import render
    from blabberseg_ros.sim.world import generate_world

    width, height = pose.size_px
    across_m = 2 * pose.altitude_m * np.tan(np.radians(_FOV_DEG / 2))
    # The world is as large as the turned view: making it costs most of the time.
    diagonal_m = across_m * np.hypot(1.0, height / width) * _MARGIN
    world = generate_world(pose.seed, pose.family, size_m=float(np.ceil(diagonal_m / 10) * 10),
                           resolution_m=_RESOLUTION_M)
    view = render(world, 0.0, 0.0, pose.altitude_m, pose.yaw_rad, _FOV_DEG, pose.size_px)
    return read_only(view.rgb)


def gate_frames() -> Sequence[np.ndarray]:
    """Return the frames of the parity gate."""
    return [frame(pose) for pose in GATE]


def moving_frames(count: int, size_px: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Return different frames of one size, cheaply: one view, rolled and with fresh noise.

    Args:
        count: how many.
        size_px: width and height.
        seed: of the noise.

    Returns:
        Arrays of uint8 [H, W, 3], RGB.
    """
    base = frame(Pose('suburb', 11, 55.0, 0.4, size_px))
    random = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        rolled = np.roll(base, 17 * index, axis=1).astype(np.int16)
        noise = random.integers(-3, 4, base.shape, dtype=np.int16)
        frames.append(np.clip(rolled + noise, 0, 255).astype(np.uint8))
    return frames
