# SPDX-License-Identifier: Apache-2.0
"""Where trees stand: singles, rows, groves, hedges."""

import numpy as np

from blabberseg_ros.sim import classes
from blabberseg_ros.sim.canvas import Points
from blabberseg_ros.sim.layout import Site, inside
from blabberseg_ros.sim.vegetation import Tree, tree_colour

Point = tuple[float, float]
_KEEP_CLEAR = frozenset({
    classes.BUILDING, classes.WATER, classes.ROAD, classes.VEHICLE, classes.STRUCTURE})


def draw_kind(site: Site) -> str:
    """Draw the kind of a tree, leafless ones by season."""
    kind = site.pick(**site.species)
    if kind == 'broadleaf' and site.chance(site.look.leaf_fall):
        return 'bare'
    return kind


def add_tree(
    site: Site, x: float, y: float, radius_m: float, kind: str | None = None,
    anywhere: bool = False,
) -> bool:
    """Plant a tree at a layout point, unless its trunk would stand on a roof, road or in water."""
    px, py = (float(v) for v in site.frame.to_world((x, y)))
    half = site.canvas.half_m + radius_m
    if abs(px) > half or abs(py) > half:
        return False
    if not anywhere and site.canvas.label_at(px, py) in _KEEP_CLEAR:
        return False
    kind = kind or draw_kind(site)
    slender = {'conifer': 3.2, 'shrub': 1.0, 'palm': 3.0}.get(kind, 2.1)
    height = float(np.clip(radius_m * slender * site.rng.uniform(.75, 1.35), 1.0, 15.0))
    if kind != 'shrub':
        height = max(height, 3.0)
    site.trees.append(Tree(px, py, radius_m, height, kind,
                           tree_colour(site.rng, site.look, kind)))
    return True


def tree_row(site: Site, start: Point, end: Point, radius_m: float | None = None) -> None:
    """Plant a row of equal trees."""
    kind = draw_kind(site)
    radius = radius_m or site.rng.uniform(1.6, 4.0)
    pace = radius * site.rng.uniform(1.7, 4.5)
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    for at in np.arange(site.rng.uniform(2, 8), length - 4, pace):
        t = (at + site.rng.normal(0, .4)) / length
        if site.chance(.9):
            add_tree(site, start[0] + (end[0] - start[0]) * t,
                     start[1] + (end[1] - start[1]) * t, radius * site.rng.uniform(.8, 1.15),
                     kind)


def hedgerow(site: Site, start: Point, end: Point) -> None:
    """Plant a wild hedge: shrubs all along, a tree here and there."""
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    density = site.rng.uniform(.2, 1.0)
    for at in np.arange(0, length, 1.3):
        if not site.chance(density):
            continue
        t = at / max(length, 1e-6)
        x = start[0] + (end[0] - start[0]) * t + site.rng.normal(0, .5)
        y = start[1] + (end[1] - start[1]) * t + site.rng.normal(0, .5)
        if site.chance(.12):
            add_tree(site, x, y, site.rng.uniform(2, 4.5))
        else:
            add_tree(site, x, y, site.rng.uniform(.8, 1.7), 'shrub')


def scatter(
    site: Site, polygon: Points, count: int, radius_m: tuple[float, float],
    kind: str | None = None, margin_m: float = 0.0,
) -> None:
    """Plant trees at random in a convex layout polygon."""
    if len(polygon) < 3 or count < 1:
        return
    low, high = polygon.min(0), polygon.max(0)
    points = low + (high - low) * site.rng.random((count * 2, 2))
    points = points[inside(polygon, points, margin_m)][:count]
    for x, y in points:
        add_tree(site, float(x), float(y), float(site.rng.uniform(*radius_m)), kind)


def grove(site: Site, polygon: Points, density: float = 1.0) -> None:
    """Cover a convex layout polygon with a wood, species in patches."""
    mean_m = site.rng.uniform(1.8, 3.4)
    pace = mean_m * 1.45 / density ** .5
    kinds = [draw_kind(site) for _ in range(3)]
    low, high = polygon.min(0), polygon.max(0)
    cols = np.arange(low[0], high[0], pace)
    rows = np.arange(low[1], high[1], pace)
    if not len(cols) or not len(rows):
        return
    points = np.stack(np.meshgrid(cols, rows), -1).reshape(-1, 2)
    points = points + site.rng.normal(0, pace * .32, points.shape)
    points = points[inside(polygon, points, -1.0)]
    for x, y in points:
        kind = kinds[int(site.rng.choice(3, p=(.7, .2, .1)))]
        if site.chance(.94):
            add_tree(site, float(x), float(y), mean_m * site.rng.uniform(.6, 1.45), kind)


def clipped_hedge(site: Site, points: Points, width_m: float = 0.9) -> None:
    """Paint a trimmed garden hedge along layout points."""
    site.line(points, width_m, 'hedge', float(site.rng.uniform(1.0, 2.0)))
