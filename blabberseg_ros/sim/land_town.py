# SPDX-License-Identifier: Apache-2.0
"""Built-up land: what fills a block of a town, village or works."""

from itertools import pairwise

import numpy as np

from blabberseg_ros.sim import buildings, vehicles
from blabberseg_ros.sim.canvas import Points
from blabberseg_ros.sim.gardens import (
    FENCE_M,
    bays,
    beds,
    bench,
    boundary,
    box,
    clutter,
    disc,
    lamp,
    lawn_details,
    pool,
    stains,
)
from blabberseg_ros.sim.layout import (
    Grid,
    Pose,
    Site,
    area,
    clip_convex,
    grid_of,
    inset,
    inside,
    rectangle,
)
from blabberseg_ros.sim.planting import add_tree, scatter, tree_row


def _plots(
    site: Site, polygon: Points, depth_m: tuple[float, float], width_m: tuple[float, float]
) -> list[tuple[Grid, Points, float, float]]:
    """Cut a block into back-to-back plots: each with its own grid and clipped outline."""
    grid = grid_of(polygon)
    count = max(1, round(grid.width_m / site.rng.uniform(*depth_m)))
    depth = grid.width_m / count
    plots = []
    for row in range(count):
        v = -grid.width_m / 2 + depth * (row + .5)
        u = -grid.length_m / 2
        while u < grid.length_m / 2 - width_m[0] * .6:
            wide = min(site.rng.uniform(*width_m), grid.length_m / 2 - u)
            centre = grid.to_layout((u + wide / 2, v))
            outline = clip_convex(grid.to_layout(rectangle(wide, depth, u + wide / 2, v)), polygon)
            u += wide
            if area(outline) > .45 * wide * depth:
                turn = np.pi if row < count / 2 else 0.0  # the front faces the nearer street
                own = Grid((float(centre[0]), float(centre[1])), grid.heading_rad + turn, wide,
                           depth)
                plots.append((own, outline, wide, depth))
    return plots


def houses(site: Site, polygon: Points) -> None:
    """Detached or paired houses, each on a garden plot."""
    roof = buildings.draw_roof(site)
    depth, width = ((18, 30), (13, 22)) if site.chance(.75) else ((26, 45), (20, 34))
    dense = site.rng.uniform(.2, 1.3)
    for grid, outline, wide, deep in _plots(site, polygon, depth, width):
        _garden(site, grid, outline, wide, deep, dense)
        if not site.visible(outline):
            continue
        long = wide * site.rng.uniform(.5, .74)
        broad = min(site.rng.uniform(6.5, 10.5), deep * .42)
        v = deep * site.rng.uniform(.1, .2)
        x, y = grid.to_layout((site.rng.normal(0, wide * .04), v))
        if not np.all(inside(outline, grid.to_layout(rectangle(long, broad, 0, v)), -.5)):
            continue
        own = roof if site.chance(.7) else buildings.draw_roof(site)
        pose = site.frame.pose(float(x), float(y), grid.heading_rad + (
            np.pi / 2 if site.chance(.15) else 0) + site.rng.normal(0, .02))
        _drive(site, grid, wide, deep, v + broad / 2)
        buildings.wings(site, pose, long, broad, site.rng.uniform(3, 6.5), own)


def _garden(
    site: Site, grid: Grid, outline: Points, wide: float, deep: float, dense: float
) -> None:
    ground = site.pick(lawn=.5, meadow=.22, rough=.1, dry_grass=.06, gravel=.05, earth=.04,
                       slabs=.03)
    site.paint(outline, ground)
    if ground in ('lawn', 'meadow', 'rough'):
        lawn_details(site, outline)
    back = clip_convex(grid.to_layout(rectangle(wide, deep * .5, 0, -deep * .25)), outline)
    if len(back) >= 3:
        if site.chance(.35):
            beds(site, back, int(site.rng.integers(1, 4)), grid.heading_rad)
        if site.chance(.14):
            x, y = grid.to_layout((site.rng.uniform(-.2, .2) * wide, -deep * .26))
            pool(site, float(x), float(y), grid.heading_rad + site.rng.normal(0, .3))
        if site.chance(.45):
            x, y = grid.to_layout((site.rng.uniform(-.38, .38) * wide, -deep * .38))
            buildings.shed(site, site.frame.pose(float(x), float(y), grid.heading_rad))
        clutter(site, back, int(site.rng.poisson(2.2)))
        scatter(site, back, int(site.rng.poisson(3.2 * dense)), (1.2, 4.4))
        scatter(site, back, int(site.rng.poisson(5.0 * dense)), (.5, 1.5), 'shrub')
        if site.chance(.12):
            x, y = back.mean(0)
            site.crowds.append((float(x), float(y), int(site.rng.integers(1, 5)), 2.0))
    corners = grid.to_layout(rectangle(wide - .6, deep - .6))
    for start in (1, 0) if site.chance(.6) else (1,):
        boundary(site, np.array([corners[start], corners[start - 1]]))
    if site.chance(.5):
        boundary(site, corners[2:4])


def _drive(site: Site, grid: Grid, wide: float, deep: float, house_v: float) -> None:
    surface = site.material(site.pick(tarmac=2, concrete=1.2, slabs=1.2, bricks=1, gravel=1))
    side = site.rng.choice((-1, 1)) * wide * .36
    span = site.rng.uniform(2.8, 4.5)
    stretch = rectangle(span, deep / 2 - house_v + 4, side, (deep / 2 + house_v - 4) / 2)
    site.paint(grid.to_layout(stretch), surface, heading_rad=grid.heading_rad)
    if site.chance(.6):
        x, y = grid.to_layout((side, deep / 2 - 3.2))
        vehicles.park(site, site.frame.pose(float(x), float(y), grid.heading_rad + np.pi / 2))


def terraces(site: Site, polygon: Points) -> None:
    """Rows of joined houses, with narrow gardens behind."""
    roof = buildings.draw_roof(site, shape='gable')
    width = float(site.rng.uniform(5, 7.5))
    front = site.material(site.pick(footpath=1, slabs=1, lawn=2, tarmac=.6))
    for grid, outline, wide, deep in _plots(site, polygon, (19, 28), (width, width + .01)):
        ground = site.pick(lawn=3, meadow=2, slabs=1, earth=.6, rough=1, gravel=.4)
        site.paint(outline, ground)
        site.paint(clip_convex(grid.to_layout(rectangle(wide, 3.4, 0, deep / 2 - 1.7)), outline),
                   front)
        corners = grid.to_layout(rectangle(wide, deep - 1))
        boundary(site, corners[0:4:3])
        back = clip_convex(grid.to_layout(rectangle(wide, deep * .4, 0, -deep * .28)), outline)
        if len(back) >= 3:
            clutter(site, back, int(site.rng.poisson(1.4)))
            scatter(site, back, int(site.rng.poisson(.8)), (.7, 2.4))
        if site.chance(.3):
            x, y = grid.to_layout((0, -deep * .42))
            buildings.shed(site, site.frame.pose(float(x), float(y), grid.heading_rad))
        if not np.all(inside(outline, grid.to_layout(rectangle(wide, 9, 0, deep * .18)), -.8)):
            continue
        x, y = grid.to_layout((0, deep / 2 - 3.6 - 4.7))
        buildings.house(site, site.frame.pose(float(x), float(y), grid.heading_rad), wide + .05,
                        site.rng.uniform(8.6, 9.6), 5.5 + site.rng.normal(0, .2), roof)


def flats(site: Site, polygon: Points) -> None:
    """Slabs and towers of flats in greenery, with a car park."""
    grid = grid_of(polygon)
    site.paint(polygon, site.pick(lawn=3, meadow=2, mown=1))
    lawn_details(site, polygon)
    if grid.width_m > 34 and site.chance(.75):
        strip = grid.to_layout(rectangle(grid.length_m, 19, 0, -grid.width_m / 2 + 9.5))
        lot = clip_convex(strip, inset(polygon, 1.0))
        if area(lot) > 150:
            bays(site, lot, site.pick(tarmac=3, concrete=1), site.rng.uniform(.3, .9))
    kind = site.pick(slabs=2, towers=1)
    depth = site.rng.uniform(10, 14)
    v = -grid.width_m / 2 + 20 + depth / 2
    while v < grid.width_m / 2 - depth / 2 - 2:
        u = -grid.length_m / 2 + 5
        while u < grid.length_m / 2 - 12:
            long = site.rng.uniform(24, 60) if kind == 'slabs' else site.rng.uniform(14, 22)
            broad = depth if kind == 'slabs' else long * .9
            place = grid.to_layout(rectangle(long, broad, u + long / 2, v))
            if np.all(inside(polygon, place, 1.5)):
                x, y = place.mean(0)
                _apron(site, grid, long, broad, u + long / 2, v)
                roof = buildings.draw_roof(site, shape=site.pick(flat=4, hip=1, gable=1))
                buildings.house(
                    site, site.frame.pose(float(x), float(y), grid.heading_rad), long, broad,
                    site.rng.uniform(9, 25), roof)
            u += long + site.rng.uniform(10, 22)
        v += depth + site.rng.uniform(16, 28)
    scatter(site, polygon, int(area(polygon) / 260), (1.8, 4.5), None, 2.0)
    _strollers(site, polygon, 2)


def _apron(site: Site, grid: Grid, long: float, broad: float, u: float, v: float) -> None:
    path = site.pick(footpath=2, slabs=1, tarmac=1)
    site.paint(grid.to_layout(rectangle(long + 3, broad + 5, u, v)), path,
               heading_rad=grid.heading_rad)
    for x, y in grid.to_layout([(u + du * long, v + broad / 2 + 2) for du in (-.3, .2)]):
        pose = (float(x), float(y), 2.2, 1.6, grid.heading_rad)
        box(site, *pose, 'steps', .6)


def _strollers(site: Site, polygon: Points, groups: int) -> None:
    low, high = polygon.min(0), polygon.max(0)
    for _ in range(groups):
        x, y = low + (high - low) * site.rng.uniform(.1, .9, 2)
        site.crowds.append((float(x), float(y), int(site.rng.integers(1, 5)),
                            float(site.rng.uniform(.8, 5))))


def perimeter(site: Site, polygon: Points) -> None:
    """An old town block: joined houses of many roofs around courtyards."""
    grid = grid_of(polygon)
    site.paint(polygon, site.pick(slabs=2, tarmac=1, concrete=1), heading_rad=grid.heading_rad)
    depth = site.rng.uniform(9.5, 13)
    core = inset(polygon, depth)
    base, height = buildings.draw_roof(site), site.rng.uniform(8, 21)
    # Corners and slits between the houses are roofs as well.
    site.paint(inset(polygon, .4), site.pick(bitumen=2, zinc=1, gravel_roof=1),
               heading_rad=grid.heading_rad, height_m=height * .7)
    if area(core) > 60:
        site.paint(core, site.pick(slabs=2, lawn=1.5, tarmac=1, earth=.4, rough=.6))
        for _ in range(int(area(core) / 230)):
            x, y = core.min(0) + (core.max(0) - core.min(0)) * site.rng.random(2)
            place = site.frame.pose(float(x), float(y), grid.heading_rad)
            if inside(core, (x, y), 3):
                buildings.house(site, place, site.rng.uniform(6, 14), site.rng.uniform(4, 7),
                                site.rng.uniform(3, 9), buildings.draw_roof(site))
        scatter(site, core, int(area(core) / 90), (1.2, 3.4))
        clutter(site, core, int(area(core) / 60))
    for i in range(len(polygon)):
        _frontage(site, polygon, i, depth, base, height)


def _frontage(
    site: Site, polygon: Points, side: int, depth: float, base: buildings.Roof, height: float
) -> None:
    start, end = polygon[side], polygon[(side + 1) % len(polygon)]
    edge = end - start
    length = float(np.hypot(*edge))
    heading = float(np.arctan2(edge[1], edge[0]))
    at = 0.0
    while at < length - 3:
        wide = min(float(site.rng.uniform(8, 21)), length - at)
        x, y = start + edge * ((at + wide / 2) / length)
        own = Pose(float(x), float(y), heading).moved(0, depth / 2)
        at += wide
        if not np.all(inside(polygon, own.at(rectangle(wide, depth)), -.4)):
            continue
        pose = site.frame.pose(own.x_m, own.y_m, heading)
        roof = base if site.chance(.55) else buildings.draw_roof(site)
        deep = depth * site.rng.uniform(.82, 1.15)
        _townhouse(site, pose, wide + .1, deep, height * site.rng.uniform(.75, 1.15), roof)


def _townhouse(site: Site, pose: Pose, wide: float, deep: float, height: float,
               roof: buildings.Roof) -> None:
    if wide < deep and roof.shape != 'flat':
        # `house` would turn the ridge across the street: split instead, ridge along the street.
        roof = buildings.Roof('shed', roof.recipe, roof.material, min(roof.pitch, .3))
    buildings.house(site, pose, wide, deep, height, roof, 2.6)


def works(site: Site, polygon: Points) -> None:
    """Industry: halls in a yard with lorries, containers, tanks and heaps."""
    grid = grid_of(polygon)
    site.paint(polygon, site.pick(tarmac=3, concrete=3, gravel=1), heading_rad=grid.heading_rad)
    stains(site, polygon, 1 / 70)
    rim = site.material(site.pick(fence=2, steel=1))
    site.line(inset(polygon, .8), .15, rim, 2.0, closed=True)
    u = -grid.length_m / 2 + 6
    while u < grid.length_m / 2 - 16:
        long = min(site.rng.uniform(18, 60), grid.length_m / 2 - u - 4)
        broad = grid.width_m * site.rng.uniform(.35, .68)
        v = site.rng.uniform(-.12, .2) * grid.width_m
        place = grid.to_layout(rectangle(long, broad, u + long / 2, v))
        if np.all(inside(polygon, place, 2.0)):
            x, y = place.mean(0)
            buildings.hall(site, site.frame.pose(float(x), float(y), grid.heading_rad), long,
                           broad)
        else:
            _yard(site, grid, polygon, u + long / 2)
        u += long + site.rng.uniform(5, 16)
    for _ in range(int(area(polygon) / 450)):
        _yard(site, grid, polygon, site.rng.uniform(-.45, .45) * grid.length_m)
    scatter(site, polygon, int(area(polygon) / 900), (1.5, 3.5), None, 1.0)
    _strollers(site, polygon, 1)


def _yard(site: Site, grid: Grid, polygon: Points, u: float) -> None:
    v = site.rng.choice((-1, 1)) * grid.width_m * site.rng.uniform(.33, .46)
    x, y = (float(c) for c in grid.to_layout((u, v)))
    if not inside(polygon, (x, y), 3.0):
        return
    pose = site.frame.pose(x, y, grid.heading_rad + site.rng.choice((0, np.pi / 2)))
    kind = site.pick(lorry=2, cars=2, containers=2, tank=.8, heap=1, stacks=1.5)
    if site.canvas.label_at(pose.x_m, pose.y_m) == 1:
        return
    if kind == 'lorry':
        vehicles.park(site, pose, site.pick(lorry=3, van=1))
    elif kind == 'cars':
        for i in range(int(site.rng.integers(2, 8))):
            vehicles.park(site, pose.moved(0, i * 2.7))
    elif kind == 'containers':
        for i in range(int(site.rng.integers(1, 6))):
            vehicles.container(site, pose.moved(site.rng.normal(0, .2), i * 2.6))
    elif kind == 'tank':
        buildings.tank(site, pose, site.rng.uniform(1.8, 6))
    elif kind == 'heap':
        site.paint(site.blob(x, y, site.rng.uniform(2, 6)), site.pick(sand=1, gravel=1, earth=1),
                   height_m=0.0)
    else:
        clutter(site, site.blob(x, y, 5), int(site.rng.integers(3, 10)))


def car_park(site: Site, polygon: Points) -> None:
    """A car park, perhaps with a shop."""
    grid = grid_of(polygon)
    site.paint(polygon, 'lawn')
    lot = inset(polygon, 1.5)
    if site.chance(.3):
        rim = np.concatenate([polygon, polygon[:1]])
        for a, b in pairwise(rim):
            tree_row(site, tuple(a), tuple(b))
    bays(site, lot, site.pick(tarmac=3, concrete=1, slabs=.5), site.rng.uniform(.15, .9))
    if grid.width_m > 45 and site.chance(.6):
        x, y = grid.to_layout((0, grid.width_m * .25))
        place = grid.to_layout(rectangle(grid.length_m * .6, 20, 0, grid.width_m * .25))
        if np.all(inside(lot, place)):
            buildings.hall(site, site.frame.pose(float(x), float(y), grid.heading_rad),
                           grid.length_m * .6, 20)
    _strollers(site, polygon, 3)


def plaza(site: Site, polygon: Points) -> None:
    """A square: patterned paving, trees in rows, steps, stalls, a fountain and a crowd."""
    grid = grid_of(polygon)
    site.paint(polygon, site.pick(slabs=4, bricks=1, concrete=1, footpath=1, sand=1),
               heading_rad=grid.heading_rad)
    stains(site, polygon, 1 / 60)
    core = inset(polygon, site.rng.uniform(4, 9))
    if area(core) > 80:
        site.paint(core, site.pick(slabs=3, bricks=1, sand=1, gravel=.7, lawn=.8),
                   heading_rad=grid.heading_rad + site.rng.choice((0, np.pi / 4)))
        corners = np.concatenate([core, core[:1]])
        for a, b in pairwise(corners):
            if site.chance(.6):
                tree_row(site, tuple(a), tuple(b), site.rng.uniform(1.5, 3))
    x, y = (float(c) for c in polygon.mean(0))
    if site.chance(.6):
        radius = site.rng.uniform(2, 5)
        disc(site, x, y, radius + .4, 'wall', .5)
        disc(site, x, y, radius, 'pool', .3)
    _stalls(site, grid, polygon)
    for _ in range(int(site.rng.integers(3, 10))):
        u, v = site.rng.uniform(-.42, .42, 2) * (grid.length_m, grid.width_m)
        px, py = (float(c) for c in grid.to_layout((u, v)))
        lamp(site, px, py)
        site.crowds.append((px, py, int(site.rng.integers(3, 26)), float(site.rng.uniform(2, 7))))


def _stalls(site: Site, grid: Grid, polygon: Points) -> None:
    for _ in range(int(site.rng.integers(2, 12))):
        u, v = site.rng.uniform(-.42, .42, 2) * (grid.length_m, grid.width_m)
        x, y = (float(c) for c in grid.to_layout((u, v)))
        if not inside(polygon, (x, y), 2.0):
            continue
        kind = site.pick(stall=1, steps=.7, bench=2, bush=1)
        if kind == 'stall':
            box(site, x, y, 3, 3, grid.heading_rad, 'bright_object', 2.4)
        elif kind == 'steps':
            box(site, x, y, site.rng.uniform(4, 14), site.rng.uniform(1.6, 3.5),
                grid.heading_rad, 'steps', .5)
        elif kind == 'bench':
            bench(site, x, y, grid.heading_rad)
        else:
            add_tree(site, x, y, site.rng.uniform(.8, 2.5))


def school(site: Site, polygon: Points) -> None:
    """A large building with a yard, courts and a crowd of children."""
    grid = grid_of(polygon)
    site.paint(polygon, site.pick(tarmac=2, slabs=1, lawn=1.5))
    yard = clip_convex(grid.to_layout(
        rectangle(grid.length_m * .5, grid.width_m, grid.length_m * .25)), polygon)
    if area(yard) > 50:
        site.paint(inset(yard, 2), site.pick(tarmac=1, court=2, concrete=1))
        x, y = (float(c) for c in yard.mean(0))
        site.crowds.append((x, y, int(site.rng.integers(8, 40)), 7.0))
    roof = buildings.draw_roof(site, shape=site.pick(flat=2, hip=1, gable=1))
    for v, long in ((.25, .42), (-.25, .42)):
        place = grid.to_layout(rectangle(grid.length_m * long, 11, -grid.length_m * .24,
                                         v * grid.width_m))
        if np.all(inside(polygon, place, .5)):
            x, y = (float(c) for c in place.mean(0))
            buildings.house(site, site.frame.pose(x, y, grid.heading_rad), grid.length_m * long,
                            11, site.rng.uniform(5, 12), roof, 1.4)
    scatter(site, polygon, int(area(polygon) / 220), (1.5, 4), None, 2.0)
    site.line(inset(polygon, .4), FENCE_M, 'fence', 1.8, closed=True)
