# SPDX-License-Identifier: Apache-2.0
"""A small data set in the layout of Cityscapes, flown over the procedural world."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from blabberseg_ros.atomic import write_bytes, write_text
from blabberseg_ros.errors import ImageError
from blabberseg_ros.fpseg_tools.cityscapes import image_path, labels_path
from blabberseg_ros.fpseg_tools.progress import bar
from blabberseg_ros.fpseg_tools.settings import require, require_writable
from blabberseg_ros.sim.classes import CLASSES, UNKNOWN
from blabberseg_ros.sim.render import render
from blabberseg_ros.sim.world import generate_world

CLASS_FILE = 'classes.yaml'
_SPREAD = 0.4  # of the camera's place, as a share of the world's side


@dataclass(frozen=True)
class WorldSetSettings:
    """How the set is made.

    Attributes:
        data_root: folder to write.
        train_worlds: worlds of the split `train`; each is a city.
        val_worlds: worlds of the split `val`, none of them a training world. 0 makes `val` of
            other views of the training worlds: far easier, for quick tries and tests.
        views: pictures of a training world.
        val_views: pictures of each world for `val`.
        size_px: width and height of a picture.
        min_altitude_m: lowest camera.
        max_altitude_m: highest camera.
        world_size_m: side of a world.
        resolution_m: ground size of a world's pixel.
        seed: of everything.
    """

    data_root: Path
    train_worlds: int = 16
    val_worlds: int = 4
    views: int = 8
    val_views: int = 8
    size_px: tuple[int, int] = (512, 256)
    min_altitude_m: float = 20.0
    max_altitude_m: float = 80.0
    world_size_m: float = 200.0
    resolution_m: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no set."""
        require(min(self.train_worlds, self.views, self.val_views, *self.size_px) >= 1
                and self.val_worlds >= 0,
                'train_worlds, views, val_views and size_px must be 1 or more, val_worlds 0')
        require(0 < self.min_altitude_m <= self.max_altitude_m,
                'altitudes must be above 0, the lowest first')


def write_world_set(settings: WorldSetSettings) -> int:
    """Write the pictures, the label maps and the list of classes.

    Returns:
        The number of frames.

    Raises:
        ParameterError: nothing can be written there.
    """
    require_writable(settings.data_root)
    content = {'classes': {name: [number] for number, name in CLASSES.items()},
               'ignored': [UNKNOWN], 'exclusive': list(CLASSES.values())}
    write_text(settings.data_root / CLASS_FILE, yaml.safe_dump(content, sort_keys=False))
    train = [settings.seed * 100_003 + number for number in range(settings.train_worlds)]
    val = [train[-1] + 1 + number for number in range(settings.val_worlds)]
    for seed in bar([*train, *val], 'flying over worlds'):
        splits = {'val': settings.val_views} if seed in val else {'train': settings.views}
        if not val:
            splits['val'] = settings.val_views
        _write_city(settings, splits, seed)
    return len(train) * settings.views + len(val or train) * settings.val_views


def _write_city(settings: WorldSetSettings, splits: Mapping[str, int], seed: int) -> None:
    """Write the pictures of one world, a number of them for each split."""
    world = generate_world(seed, None, settings.world_size_m, settings.resolution_m)
    rng = np.random.default_rng([seed, 1])
    city = f'{world.family}{seed}'
    low, high = np.log((settings.min_altitude_m, settings.max_altitude_m))
    numbered = enumerate(split for split, views in splits.items() for _ in range(views))
    for number, split in numbered:
        x_m, y_m = rng.uniform(-_SPREAD, _SPREAD, 2) * settings.world_size_m
        view = render(world, x_m, y_m, float(np.exp(rng.uniform(low, high))),
                      float(rng.uniform(0, 2 * np.pi)), size_px=settings.size_px)
        stem = f'{city}_{number:06d}'
        root = settings.data_root
        _write_png(image_path(root, split, city, stem), view.rgb[..., ::-1])
        _write_png(labels_path(root, split, city, stem), view.labels)


def _write_png(path: Path, picture: np.ndarray) -> None:
    ok, data = cv2.imencode('.png', picture)
    if not ok:
        raise ImageError(f'OpenCV cannot encode {path}')
    write_bytes(path, data.tobytes())
