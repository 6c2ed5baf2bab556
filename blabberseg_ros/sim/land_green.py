# SPDX-License-Identifier: Apache-2.0
"""Open land: fields, meadows, woods, parks, allotments, waste ground, water."""

from itertools import pairwise

import numpy as np

from blabberseg_ros.sim import buildings, classes, vehicles
from blabberseg_ros.sim.canvas import Points
from blabberseg_ros.sim.gardens import (
    FENCE_M,
    beds,
    bench,
    boundary,
    box,
    clutter,
    disc,
    lamp,
    lawn_details,
    pitch,
    pond,
    winding_path,
)
from blabberseg_ros.sim.layout import Site, area, clip_convex, grid_of, inset, inside, rectangle
from blabberseg_ros.sim.planting import add_tree, grove, hedgerow, scatter, tree_row

_CROPS = {'crop_green': 1.0, 'wheat': .8, 'ploughed': 1.0, 'stubble': .8, 'row_crop': .6,
          'rapeseed': .2}


def _spot(site: Site, polygon: Points) -> tuple[float, float]:
    low, high = polygon.min(0), polygon.max(0)
    x, y = low + (high - low) * site.rng.uniform(.2, .8, 2)
    return float(x), float(y)


def field(site: Site, polygon: Points) -> None:
    """One or several fields, side by side, with grass or soil margins."""
    grid = grid_of(polygon)
    site.paint(polygon, site.pick(meadow=2, rough=1, earth=.5, dry_grass=.7))
    strips = int(site.rng.integers(1, 4 if grid.width_m > 30 else 2))
    edges = np.sort(np.append(site.rng.uniform(-.4, .4, strips - 1), (-.5, .5)))
    for low, high in pairwise(edges):
        deep = (high - low) * grid.width_m - site.rng.uniform(.4, 2.5)
        v = (high + low) / 2 * grid.width_m
        strip = grid.to_layout(rectangle(grid.length_m, deep, 0, v))
        plot = clip_convex(strip, inset(polygon, site.rng.uniform(.5, 2)))
        if area(plot) < 40:
            continue
        crop = site.pick(**_CROPS)
        heading = grid.heading_rad + (np.pi / 2 if site.chance(.2) else 0.0)
        site.paint(plot, crop, heading_rad=heading, ragged_m=.35)
        if site.chance(.5):  # headland: rows turn at the ends
            end = rectangle(8, deep, site.rng.choice((-1, 1)) * (grid.length_m / 2 - 5), v)
            site.paint(clip_convex(grid.to_layout(end), plot), crop,
                       heading_rad=heading + np.pi / 2)
        if crop in ('stubble', 'wheat') and site.chance(.5):
            _bales(site, plot)
        if site.chance(.3):
            _bare_patch(site, plot, heading)
    if site.chance(.15):
        vehicles.park(site, site.frame.pose(*_spot(site, polygon), grid.heading_rad), 'lorry')
    if site.chance(.2):
        box(site, *_spot(site, polygon), 1.6, 1.6, grid.heading_rad, 'steel', 14.0)
    if site.chance(.35):
        site.crowds.append((*_spot(site, polygon), int(site.rng.integers(1, 5)), 4.0))


def _bales(site: Site, plot: Points) -> None:
    low, high = plot.min(0), plot.max(0)
    straw = site.material('wheat', 9)
    for _ in range(int(site.rng.integers(3, 20))):
        x, y = low + (high - low) * site.rng.random(2)
        if inside(plot, (x, y), 2):
            pose = site.frame.pose(float(x), float(y), site.rng.uniform(0, 3))
            region = site.canvas.region(straw)
            site.canvas.fill(pose.at(rectangle(1.5, 1.3)), region)


def _bare_patch(site: Site, plot: Points, heading: float) -> None:
    for _ in range(int(site.rng.integers(1, 4))):
        patch = site.blob(*_spot(site, plot), site.rng.uniform(2, 8), .3)
        if np.all(inside(plot, patch)):
            site.paint(patch, site.pick(**_CROPS), heading_rad=heading)


def meadow(site: Site, polygon: Points) -> None:
    """Grassland: pasture, hay stripes, dry patches, single trees, fences."""
    grid = grid_of(polygon)
    name = site.pick(meadow=3, rough=1.5, dry_grass=1, mown=1, lawn=1)
    site.paint(polygon, name, heading_rad=grid.heading_rad)
    for _ in range(site.rng.poisson(area(polygon) / 500)):
        other = site.pick(meadow=2, rough=2, dry_grass=1.3, lawn=1, earth=.25)
        radius = site.rng.uniform(2, 10)
        patch = site.blob(*_spot(site, polygon), radius, .35)
        if np.all(inside(polygon, patch)):
            site.paint(patch, other)
    if site.chance(.4):
        start, end = polygon[0], polygon[len(polygon) // 2]
        winding_path(site, tuple(start), tuple(end), site.rng.uniform(.5, 1.8),
                     site.pick(earth=3, gravel=1, sand=.5), 2.0)
    scatter(site, polygon, int(site.rng.poisson(area(polygon) / 900)), (1.5, 5))
    scatter(site, polygon, int(site.rng.poisson(area(polygon) / 500)), (.6, 1.8), 'shrub')
    if site.chance(.5):
        site.line(inset(polygon, .6), FENCE_M, 'fence', 1.1, closed=True)
    if site.chance(.3):
        site.crowds.append((*_spot(site, polygon), int(site.rng.integers(1, 6)), 5.0))


def forest(site: Site, polygon: Points) -> None:
    """Woodland with a clearing or a path."""
    site.paint(polygon, site.pick(rough=3, earth=1.5, mud=1))
    start, end = polygon[0], polygon[len(polygon) // 2]
    if site.chance(.5):
        winding_path(site, tuple(start), tuple(end), site.rng.uniform(1.2, 3.5),
                     site.pick(earth=2, gravel=1, meadow=1), 4.0)
    grove(site, polygon, site.rng.uniform(.45, 1.1))


def orchard(site: Site, polygon: Points) -> None:
    """Trees in rows over grass or soil, or vines over soil."""
    grid = grid_of(polygon)
    vines = site.chance(.4)
    if vines:
        site.paint(polygon, 'row_crop', heading_rad=grid.heading_rad)
        return
    site.paint(polygon, site.pick(meadow=2, mown=1, earth=1, dry_grass=1))
    pace, gap = site.rng.uniform(3, 6), site.rng.uniform(4, 8)
    radius = min(pace, gap) * site.rng.uniform(.28, .5)
    kind = site.pick(broadleaf=3, bare=site.look.leaf_fall + .05)
    for v in np.arange(-grid.width_m / 2 + 2, grid.width_m / 2 - 1, gap):
        for u in np.arange(-grid.length_m / 2 + 2, grid.length_m / 2 - 1, pace):
            x, y = grid.to_layout((u + site.rng.normal(0, .2), v + site.rng.normal(0, .2)))
            if site.chance(.94) and inside(polygon, (x, y), 1.0):
                add_tree(site, float(x), float(y), radius * site.rng.uniform(.8, 1.15), kind)


def park(site: Site, polygon: Points) -> None:
    """A public park: lawns, paths, trees, a pond, benches, a playground, people."""
    site.paint(polygon, site.pick(lawn=3, meadow=1.5, mown=1.5))
    lawn_details(site, polygon)
    recipe = site.pick(footpath=2, sand=1.5, gravel=1.5, slabs=.6)
    width = site.rng.uniform(1.6, 4.5)
    count = len(polygon)
    for i in range(int(site.rng.integers(1, 4))):
        a = polygon[i % count] * .7 + polygon[(i + 1) % count] * .3
        b = polygon[(i + count // 2) % count] * .6 + polygon[(i + 1 + count // 2) % count] * .4
        line = winding_path(site, tuple(a), tuple(b), width, recipe,
                            site.rng.choice((0.0, 1.0)) * site.rng.uniform(1, 6))
        for x, y in line[3:-3:5]:
            if site.chance(.5):
                site.crowds.append((float(x), float(y), int(site.rng.integers(1, 5)), 1.4))
            if site.chance(.3):
                bench(site, float(x) + width * .7, float(y), site.rng.uniform(0, 3))
            if site.chance(.2):
                lamp(site, float(x), float(y) + width * .6)
    _park_features(site, polygon)
    scatter(site, polygon, int(area(polygon) / site.rng.uniform(110, 500)), (1.6, 5.5), None, 1.5)
    for _ in range(int(site.rng.integers(2, 8))):
        site.crowds.append((*_spot(site, polygon), int(site.rng.integers(1, 14)),
                            float(site.rng.uniform(1, 6))))


def _park_features(site: Site, polygon: Points) -> None:
    size = area(polygon) ** .5
    if site.chance(.45):
        pond(site, *_spot(site, polygon), site.rng.uniform(.08, .2) * size)
    if site.chance(.4):
        x, y = _spot(site, polygon)
        site.paint(site.blob(x, y, site.rng.uniform(5, 9), .1), site.pick(sand=2, court=1))
        for _ in range(6):
            dx, dy = site.rng.normal(0, 3, 2)
            box(site, x + dx, y + dy, site.rng.uniform(1, 4), site.rng.uniform(.4, 1.6),
                site.rng.uniform(0, 3), site.pick(bright_object=2, steel=1), 1.5)
        site.crowds.append((x, y, int(site.rng.integers(2, 12)), 3.5))
    for _ in range(int(site.rng.integers(0, 4))):
        x, y = _spot(site, polygon)
        world = (float(c) for c in site.frame.to_world((x, y)))
        if site.canvas.label_at(*world) == classes.GRASS:
            disc(site, x, y, site.rng.uniform(1, 3.5), site.pick(bed=2, earth=1), 0.0)


def promenade(site: Site, polygon: Points) -> None:
    """Formal gardens: a long lawn between wide sandy walks with rows of trees."""
    grid = grid_of(polygon)
    walk = site.pick(sand=3, gravel=1.5, earth=.6, footpath=.7)
    site.paint(polygon, walk, heading_rad=grid.heading_rad)
    wide = grid.width_m * site.rng.uniform(.25, .5)
    lawn = clip_convex(grid.to_layout(rectangle(grid.length_m - 12, wide)), inset(polygon, 3))
    if area(lawn) > 50:
        site.paint(lawn, site.pick(lawn=2, mown=1, meadow=1), heading_rad=grid.heading_rad)
        rim = inset(lawn, site.rng.uniform(1.5, 4))
        if len(rim) >= 3:
            site.line(rim, .5, site.pick(footpath=1, sand=1), closed=True)
    for sign in (-1, 1):
        for v in (wide / 2 + 4, wide / 2 + 10):
            if v < grid.width_m / 2 - 1 and site.chance(.75):
                a, b = grid.to_layout([(-grid.length_m / 2, sign * v),
                                       (grid.length_m / 2, sign * v)])
                tree_row(site, tuple(a), tuple(b))
    for _ in range(int(site.rng.integers(4, 14))):
        u = site.rng.uniform(-.48, .48) * grid.length_m
        v = site.rng.choice((-1, 1)) * (wide / 2 + site.rng.uniform(1, 8))
        x, y = (float(c) for c in grid.to_layout((u, v)))
        if inside(polygon, (x, y), 1):
            site.crowds.append((x, y, int(site.rng.integers(1, 9)), float(site.rng.uniform(1, 5))))
            if site.chance(.5):
                bench(site, x + 1, y + 1, grid.heading_rad)


def allotments(site: Site, polygon: Points) -> None:
    """Small garden plots with beds, sheds, water butts and grass paths."""
    grid = grid_of(polygon)
    site.paint(polygon, site.pick(meadow=2, rough=1, lawn=1))
    path = site.pick(earth=1, gravel=1, sand=.6, meadow=1)
    deep, wide = site.rng.uniform(9, 16), site.rng.uniform(6, 11)
    for v in np.arange(-grid.width_m / 2, grid.width_m / 2, deep):
        for u in np.arange(-grid.length_m / 2, grid.length_m / 2, wide):
            plot = grid.to_layout(rectangle(wide - .8, deep - 1.6, u + wide / 2, v + deep / 2))
            if not np.all(inside(polygon, plot)):
                continue
            site.paint(plot, site.pick(meadow=2, rough=1.5, lawn=1, bed=1.2, earth=1),
                       heading_rad=grid.heading_rad)
            beds(site, plot, int(site.rng.integers(1, 5)), grid.heading_rad)
            clutter(site, plot, int(site.rng.poisson(1.3)))
            x, y = _spot(site, plot)
            if site.chance(.55):
                buildings.shed(site, site.frame.pose(x, y, grid.heading_rad))
            scatter(site, plot, int(site.rng.poisson(1.2)), (.5, 1.9))
            if site.chance(.3):
                boundary(site, plot[:2])
            if site.chance(.12):
                site.crowds.append((*_spot(site, plot), 1, 1.0))
        walk = grid.to_layout(rectangle(grid.length_m, 1.3, 0, v))
        site.paint(clip_convex(walk, polygon), path)


def waste(site: Site, polygon: Points) -> None:
    """A building site or waste ground: soil, heaps, puddles, machines, weeds."""
    site.paint(polygon, site.pick(earth=2, gravel=1.5, sand=1.5, mud=.7), ragged_m=.4)
    for _ in range(site.rng.poisson(area(polygon) / 130)):
        name = site.pick(earth=2, gravel=2, sand=1.5, mud=1.5, rough=1, dry_grass=1, meadow=1)
        patch = site.blob(*_spot(site, polygon), site.rng.uniform(1, 7), .35)
        if np.all(inside(polygon, patch)):
            site.paint(patch, name)
    if site.chance(.4):
        pond(site, *_spot(site, polygon), site.rng.uniform(1.5, 4))
    grid = grid_of(polygon)
    for _ in range(int(site.rng.integers(1, 6))):
        pose = site.frame.pose(*_spot(site, polygon), grid.heading_rad)
        kind = site.pick(container=2, lorry=1.5, car=1)
        if kind == 'container':
            vehicles.container(site, pose)
        else:
            vehicles.park(site, pose, kind)
    clutter(site, polygon, int(site.rng.poisson(4)))
    scatter(site, polygon, int(site.rng.poisson(area(polygon) / 400)), (.5, 2.2), 'shrub')
    site.crowds.append((*_spot(site, polygon), int(site.rng.integers(1, 5)), 5.0))
    if site.chance(.6):
        site.line(inset(polygon, .5), FENCE_M, 'fence', 2.0, closed=True)


def sports(site: Site, polygon: Points) -> None:
    """A sports ground in a lawn."""
    site.paint(polygon, site.pick(lawn=2, meadow=1))
    pitch(site, polygon)
    x, y = (float(c) for c in polygon.mean(0))
    site.crowds.append((x, y, int(site.rng.integers(2, 23)), 10.0))
    edges = np.concatenate([polygon, polygon[:1]])
    for a, b in pairwise(edges):
        if site.chance(.4):
            tree_row(site, tuple(a), tuple(b))


def lake(site: Site, polygon: Points) -> None:
    """A lake with a shore of grass, reeds, sand or a quay."""
    site.paint(polygon, site.pick(meadow=2, rough=2, sand=1, gravel=.5))
    x, y = (float(c) for c in polygon.mean(0))
    pond(site, x, y, .46 * float(np.min(polygon.max(0) - polygon.min(0))))
    scatter(site, polygon, int(area(polygon) / 160), (1.2, 4.5))
    site.crowds.append((*_spot(site, polygon), int(site.rng.integers(1, 6)), 5.0))


def farmyard(site: Site, polygon: Points) -> None:
    """A farm: barns and a house around a yard, silos, a tractor, hedges."""
    grid = grid_of(polygon)
    site.paint(polygon, site.pick(meadow=2, rough=1))
    yard = inset(polygon, 6)
    if area(yard) < 200:
        meadow(site, polygon)
        return
    site.paint(yard, site.pick(gravel=2, concrete=2, earth=1.5, mud=1), ragged_m=.6)
    for u, v, turn in ((-.28, .25, 0.0), (.28, .2, np.pi / 2), (0, -.3, 0.0)):
        x, y = (float(c) for c in grid.to_layout((u * grid.length_m, v * grid.width_m)))
        long, broad = site.rng.uniform(12, 34), site.rng.uniform(8, 16)
        if inside(polygon, (x, y), broad * .6):
            roof = buildings.draw_roof(site, shape='gable')
            buildings.house(site, site.frame.pose(x, y, grid.heading_rad + turn), long, broad,
                            site.rng.uniform(4, 7), roof, .5)
    for _ in range(int(site.rng.integers(0, 4))):
        x, y = _spot(site, yard)
        buildings.tank(site, site.frame.pose(x, y), site.rng.uniform(1.5, 4))
    for kind in ('lorry', 'car', 'van'):
        vehicles.park(site, site.frame.pose(*_spot(site, yard), site.rng.uniform(0, 6)), kind)
    clutter(site, yard, int(site.rng.poisson(8)))
    scatter(site, polygon, int(area(polygon) / 180), (1.5, 4.5))
    for i in range(len(polygon)):
        if site.chance(.5):
            hedgerow(site, tuple(polygon[i]), tuple(polygon[(i + 1) % len(polygon)]))
    site.crowds.append((*_spot(site, yard), int(site.rng.integers(1, 5)), 4.0))
    if site.chance(.4):
        x, y = _spot(site, polygon)
        buildings.greenhouse(site, site.frame.pose(x, y, grid.heading_rad),
                             site.rng.uniform(12, 30), site.rng.uniform(6, 9))
