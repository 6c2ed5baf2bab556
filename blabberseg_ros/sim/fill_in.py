# SPDX-License-Identifier: Apache-2.0
"""The last pass: whatever class a map still lacks gets a small place on it."""

import numpy as np

from blabberseg_ros.sim import buildings, classes, vehicles
from blabberseg_ros.sim.canvas import Plane, Points
from blabberseg_ros.sim.gardens import box
from blabberseg_ros.sim.layout import Pose, Site, rectangle
from blabberseg_ros.sim.planting import add_tree

_LEAST_M2 = {
    classes.BUILDING: 40.0, classes.WATER: 60.0, classes.VEHICLE: 25.0, classes.ROAD: 80.0,
    classes.GRASS: 60.0, classes.SOIL: 60.0, classes.PAVED: 60.0, classes.STRUCTURE: 15.0,
    classes.FIELD: 120.0}
_RECIPE = {
    classes.WATER: 'water', classes.ROAD: 'asphalt', classes.GRASS: 'lawn', classes.SOIL: 'earth',
    classes.PAVED: 'slabs', classes.FIELD: 'ploughed'}


def fill_in(site: Site) -> None:
    """Add what is missing, and people and a tree in any case."""
    canvas = site.canvas
    table = canvas.table()
    counts = np.bincount(canvas.regions.ravel(), minlength=len(table.label))
    pixel_m2 = canvas.resolution_m ** 2
    for label, least_m2 in _LEAST_M2.items():
        if counts[table.label == label].sum() * pixel_m2 < least_m2:
            _add(site, label)
    for _ in range(3):
        x, y = _open_spot(site)
        near = site.rng.normal(0, 1.5, 2)
        place = _to_layout(site, x + near[0], y + near[1])
        _clear_trees(site, x, y)
        site.crowds.append((*place, int(site.rng.integers(2, 6)), 2.0))
    add_tree(site, *_to_layout(site, *_open_spot(site)), 2.5, anywhere=True)


def _to_layout(site: Site, x: float, y: float) -> tuple[float, float]:
    """Undo the frame by fixed-point iteration; its bends are gentle."""
    goal = np.array([x, y])
    point = goal.copy()
    c, s = np.cos(site.frame.angle_rad), np.sin(site.frame.angle_rad)
    for _ in range(12):
        miss = goal - site.frame.to_world(point)
        point = point + np.array([c * miss[0] + s * miss[1], -s * miss[0] + c * miss[1]])
    return float(point[0]), float(point[1])


def _open_spot(site: Site, reach_m: float = 1.0) -> tuple[float, float]:
    """Find a world point on open ground; any point after 80 tries."""
    half = site.canvas.half_m
    x = y = 0.0
    for attempt in range(80):
        x, y = (float(v) for v in site.rng.uniform(-.85, .85, 2) * half)
        around = Pose(x, y, 0).at(rectangle(reach_m, reach_m)) if attempt < 60 else [(x, y)]
        if all(site.canvas.label_at(*p) in classes.SAFE for p in [(x, y), *around]):
            break
    return x, y


def _clear_trees(site: Site, x: float, y: float) -> None:
    """Fell the trees whose crowns would hide what stands at a world point."""
    site.trees[:] = [
        t for t in site.trees if np.hypot(t.x_m - x, t.y_m - y) > t.radius_m * 1.1 + 6.0]


def _add(site: Site, label: int) -> None:
    rng = site.rng
    pose = Pose(*_open_spot(site, 11.0), float(rng.uniform(0, np.pi)))
    _clear_trees(site, pose.x_m, pose.y_m)
    if label == classes.BUILDING:
        buildings.house(site, pose, 11, 8, 4.5, buildings.draw_roof(site))
    elif label == classes.VEHICLE:
        vehicles.car(site, pose, 'car')
        vehicles.car(site, pose.moved(0, 2.8), 'car')
    elif label == classes.STRUCTURE:
        x, y = _to_layout(site, pose.x_m, pose.y_m)
        box(site, x, y, 9, .6, pose.heading_rad, 'wall', 1.8)
    else:
        size = min(12.0, site.canvas.half_m * .4)
        outline = _patch(site, size)
        region = site.canvas.region(site.material(_RECIPE[label]), Plane(0.0), pose.heading_rad)
        site.canvas.fill(pose.at(outline), region)


def _patch(site: Site, size_m: float) -> Points:
    corners = rectangle(size_m * 1.4, size_m)
    return corners + site.rng.normal(0, .6, corners.shape)
