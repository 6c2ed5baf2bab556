# SPDX-License-Identifier: Apache-2.0
"""What stands and lies about in yards and gardens: fences, pools, beds, benches, courts, bays."""

import numpy as np

from blabberseg_ros.sim import vehicles
from blabberseg_ros.sim.buildings import shed
from blabberseg_ros.sim.canvas import Plane, Points
from blabberseg_ros.sim.layout import Site, along, clip_convex, grid_of, inside, rectangle
from blabberseg_ros.sim.planting import add_tree, clipped_hedge, scatter

Point = tuple[float, float]

# Of a fence with its posts and foot: three pixels of a world map, so that it does not fray there.
FENCE_M = 0.3


def box(site: Site, x: float, y: float, long_m: float, wide_m: float, heading_rad: float,
        recipe: str, height_m: float) -> None:
    """Paint a rectangular object at a layout point."""
    pose = site.frame.pose(x, y, heading_rad)
    region = site.canvas.region(site.material(recipe), Plane(height_m), pose.heading_rad)
    site.canvas.fill(pose.at(rectangle(long_m, wide_m)), region)


def disc(site: Site, x: float, y: float, radius_m: float, recipe: str, height_m: float) -> None:
    """Paint a round object at a layout point."""
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([np.cos(t), np.sin(t)], -1) * radius_m + (x, y)
    site.paint(points, recipe, height_m=height_m)


def boundary(site: Site, points: Points) -> None:
    """Draw a garden boundary along layout points: fence, wall, hedge, shrubs or nothing."""
    kind = site.pick(fence=.3, wall=.25, hedge=.3, shrubs=.15, none=.12)
    if kind == 'hedge':
        clipped_hedge(site, points, site.rng.uniform(.6, 1.3))
    elif kind in ('fence', 'wall'):
        wide = FENCE_M if kind == 'fence' else .35
        site.line(points, wide, kind, float(site.rng.uniform(1.0, 2.0)))
    elif kind == 'shrubs':
        for x, y in along(np.asarray(points), 1.6):
            add_tree(site, float(x), float(y), site.rng.uniform(.6, 1.4), 'shrub')


def pool(site: Site, x: float, y: float, heading_rad: float) -> None:
    """Paint a swimming pool with its surround."""
    rng = site.rng
    long, wide = rng.uniform(5, 11), rng.uniform(3, 5)
    pose = site.frame.pose(x, y, heading_rad)
    canvas = site.canvas
    deck = canvas.region(site.material(site.pick(slabs=2, concrete=1)), None, pose.heading_rad)
    canvas.fill(pose.at(rectangle(long + 3, wide + 3)), deck)
    water = canvas.region(site.material('pool'))
    if site.chance(.3):
        t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        canvas.fill(pose.at(np.stack([np.cos(t) * long / 2, np.sin(t) * wide / 2], -1)), water)
    else:
        canvas.fill(pose.at(rectangle(long, wide)), water)


def beds(site: Site, polygon: Points, count: int, heading_rad: float) -> None:
    """Paint vegetable beds in a layout polygon."""
    low, high = polygon.min(0), polygon.max(0)
    for _ in range(count):
        x, y = low + (high - low) * site.rng.uniform(.15, .85, 2)
        plot = rectangle(site.rng.uniform(2, 8), site.rng.uniform(1.2, 4))
        c, s = np.cos(heading_rad), np.sin(heading_rad)
        plot = plot @ np.array([(c, s), (-s, c)]) + (x, y)
        name = site.pick(bed=3, earth=1.5, mud=.7, gravel=.4)
        site.paint(clip_convex(plot, polygon), name, heading_rad=heading_rad, ragged_m=.15)


def clutter(site: Site, polygon: Points, count: int) -> None:
    """Strew small objects: tables, bins, trampolines, stacks, tarpaulins."""
    low, high = polygon.min(0), polygon.max(0)
    for _ in range(count):
        x, y = (float(v) for v in low + (high - low) * site.rng.uniform(.08, .92, 2))
        turn = site.rng.uniform(0, np.pi)
        kind = site.pick(box=3, disc=1, trampoline=.3, shed=.5)
        if kind == 'box':
            box(site, x, y, site.rng.uniform(.6, 2.6), site.rng.uniform(.4, 1.4), turn,
                site.pick(dark_object=1, bright_object=1.2, fence=.8, steel=.4),
                site.rng.uniform(.4, 1.4))
        elif kind == 'disc':
            disc(site, x, y, site.rng.uniform(.4, 1.5),
                 site.pick(bright_object=1, dark_object=1), .8)
        elif kind == 'trampoline':
            disc(site, x, y, 1.9, 'bright_object', .9)
            disc(site, x, y, 1.55, 'dark_object', .9)
        else:
            shed(site, site.frame.pose(x, y, turn))


def stains(site: Site, polygon: Points, per_m2: float) -> None:
    """Age a paved layout polygon: repairs, damp and worn patches, of its own class."""
    low, high = polygon.min(0), polygon.max(0)
    for _ in range(site.rng.poisson(abs(float(np.prod(high - low))) * per_m2 * .5)):
        x, y = low + (high - low) * site.rng.random(2)
        if site.chance(.5):
            patch = site.blob(float(x), float(y), site.rng.uniform(.5, 4), .35)
        else:
            long, wide = site.rng.uniform(.8, 7, 2)
            patch = rectangle(long, wide, float(x), float(y))
        if _within(patch, polygon):
            site.paint(patch, site.pick(tarmac=3, concrete=1, footpath=1))


def lamp(site: Site, x: float, y: float) -> None:
    """Paint a lamp post or mast; its shadow shows it."""
    disc(site, x, y, .24, 'steel', site.rng.uniform(4, 9))


def bench(site: Site, x: float, y: float, heading_rad: float) -> None:
    """Paint a bench."""
    box(site, x, y, 1.8, .6, heading_rad, site.pick(fence=2, bright_object=.5, steel=.5), .6)


def bays(site: Site, polygon: Points, surface: str, fill: float) -> None:
    """Paint a car park: rows of bays with aisles, lines, cars, a few trees and lamps."""
    grid = grid_of(polygon)
    site.paint(polygon, surface, heading_rad=grid.heading_rad)
    stains(site, polygon, 1 / 90)
    line = site.material('bay_paint')
    lined = site.chance(.8)
    depth, wide, aisle = 5.0, site.rng.uniform(2.4, 2.8), site.rng.uniform(5.5, 7)
    v, turn = -grid.width_m / 2 + 1.0, np.pi / 2
    while v + depth < grid.width_m / 2:
        for u in np.arange(-grid.length_m / 2 + 2, grid.length_m / 2 - 2, wide):
            centre = grid.to_layout([(u, v + depth / 2)])
            corners = grid.to_layout(rectangle(wide, depth, float(u), v + depth / 2))
            if len(clip_convex(corners, polygon)) < 4 or not _within(corners, polygon):
                continue
            if lined:
                site.line(corners[[0, 3]], .13, line)
            if site.chance(fill):
                x, y = centre[0]
                pose = site.frame.pose(float(x), float(y), grid.heading_rad + turn + (
                    np.pi if site.chance(.5) else 0) + site.rng.normal(0, .025))
                vehicles.park(site, pose.moved(site.rng.normal(0, .25), 0), site.pick(car=.93,
                                                                                    van=.07))
            elif site.chance(.02):
                add_tree(site, float(centre[0, 0]), float(centre[0, 1]),
                         site.rng.uniform(1.2, 2.6))
        v += depth + (aisle if turn > 0 else 0.15)
        turn = -turn
    for _ in range(int(grid.length_m * grid.width_m / 700)):
        u, v = site.rng.uniform(-.45, .45, 2) * (grid.length_m, grid.width_m)
        lamp(site, *(float(c) for c in grid.to_layout((u, v))))


def _within(points: Points, polygon: Points) -> bool:
    return bool(np.all(inside(polygon, points)))


def pitch(site: Site, polygon: Points) -> None:
    """Paint a sports ground: a football pitch, a tennis court or a running oval."""
    grid = grid_of(polygon)
    long, wide = grid.length_m * .8, grid.width_m * .75
    while long > 20 and not _within(grid.to_layout(rectangle(long + 6, wide + 6)), polygon):
        long, wide = long * .92, wide * .92
    if long > 45 and wide > 26:
        long, wide = min(long, 100.0), min(wide, 64.0, long * .68)
        site.paint(grid.to_layout(rectangle(long + 6, wide + 6)), 'mown',
                   heading_rad=grid.heading_rad + np.pi / 2)
        paint = site.material('pitch_paint')
        for part in (rectangle(long, wide), rectangle(long * .16, wide * .6, long * .42),
                     rectangle(long * .16, wide * .6, -long * .42)):
            site.line(grid.to_layout(part), .15, paint, closed=True)
        site.line(grid.to_layout([(0, -wide / 2), (0, wide / 2)]), .15, paint)
        t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        circle = np.stack([np.cos(t), np.sin(t)], -1) * min(9.15, wide * .2)
        site.line(grid.to_layout(circle), .15, paint, closed=True)
        for sign in (-1, 1):
            x, y = grid.to_layout((sign * (long / 2 + .9), 0))
            box(site, float(x), float(y), 1.6, 7.3, grid.heading_rad, 'steel', 2.4)
        return
    court = site.material('court')
    line = site.material('bay_paint')
    for u in np.arange(-long / 2 + 9, long / 2 - 5, 19.0):
        place = rectangle(17, 34, float(u))
        if not _within(grid.to_layout(place), polygon):
            continue
        site.paint(grid.to_layout(place), court)
        for part in (rectangle(10.97, 23.8, float(u)), rectangle(8.2, 12.8, float(u))):
            site.line(grid.to_layout(part), .12, line, closed=True)
        site.line(grid.to_layout([(u - 6, 0), (u + 6, 0)]), .15, 'dark_object', 1.0)
        site.line(grid.to_layout(place), FENCE_M, 'fence', 3.0, closed=True)


def pond(site: Site, x: float, y: float, radius_m: float) -> None:
    """Paint a pond with a muddy or grassy bank and reeds."""
    bank = site.pick(rough=2, mud=1, sand=.6, gravel=.5)
    outline = site.blob(x, y, radius_m, .14)
    centre = outline.mean(0)
    site.paint(centre + (outline - centre) * 1.12, bank, ragged_m=.3)
    site.paint(outline, 'water')
    for px, py in centre + (outline - centre) * 1.07:
        if site.chance(.12):
            add_tree(site, float(px), float(py), site.rng.uniform(.6, 1.6), 'shrub')


def winding_path(
    site: Site, start: Point, end: Point, width_m: float, recipe: str, sway_m: float
) -> Points:
    """Paint a path that winds between two layout points; give its centre line."""
    t = np.linspace(0, 1, 40)[:, None]
    a, b = np.asarray(start), np.asarray(end)
    side = np.array([-(b - a)[1], (b - a)[0]]) / max(float(np.hypot(*(b - a))), 1e-6)
    phase = site.rng.uniform(0, 6.3, 2)
    sway = np.sin(t * 5 + phase[0]) + .5 * np.sin(t * 11 + phase[1])
    line = a + (b - a) * t + side * sway * sway_m
    site.line(line, width_m, recipe)
    return line


def lawn_details(site: Site, polygon: Points) -> None:
    """Break up grass: worn patches, lusher and drier areas, bushes."""
    low, high = polygon.min(0), polygon.max(0)
    size = float(np.hypot(*(high - low)))
    for _ in range(site.rng.poisson(size / 18)):
        x, y = low + (high - low) * site.rng.random(2)
        name = site.pick(meadow=3, dry_grass=1, rough=2, earth=.5, lawn=2)
        patch = site.blob(float(x), float(y), site.rng.uniform(1.0, 5.0), .3)
        if _within(patch, polygon):
            site.paint(patch, name)
    if site.chance(.5):
        scatter(site, polygon, int(site.rng.poisson(size / 10)), (.6, 1.6), 'shrub')
