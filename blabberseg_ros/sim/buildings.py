# SPDX-License-Identifier: Apache-2.0
"""Roofs, as seen from above, with what stands on them."""

from dataclasses import dataclass, replace

import numpy as np

from blabberseg_ros.sim import classes
from blabberseg_ros.sim.canvas import Material, Plane, Points
from blabberseg_ros.sim.layout import Pose, Site, rectangle

_SEAMED = ('zinc', 'sheet')  # their rows run down the slope, tiles run along it


@dataclass(frozen=True)
class Roof:
    """A kind of roof that a street of houses shares.

    Attributes:
        shape: gable, hip, shed or flat.
        recipe: Of the covering.
        material: Drawn once, varied a little from house to house.
        pitch: Rise per metre.
    """

    shape: str
    recipe: str
    material: Material
    pitch: float


def draw_roof(site: Site, shape: str = '', recipe: str = '') -> Roof:
    """Draw a kind of roof from the family's habits."""
    shape = shape or site.pick(gable=.52, hip=.3, flat=.13, shed=.05)
    if not recipe:
        recipe = site.pick(**site.roofs)
        if shape == 'flat':
            recipe = site.pick(bitumen=.4, gravel_roof=.3, white_roof=.2, sheet=.1)
    steep = site.rng.uniform(.25, .8) if recipe not in ('sheet', 'zinc') else .3
    return Roof(shape, recipe, site.material(recipe), float(steep))


def _vary(site: Site, material: Material, amount: float = .12) -> Material:
    factor = 1.0 + site.rng.normal(0, amount)
    tint = site.rng.normal(0, amount * .25, 3)

    def shift(colour: tuple[float, float, float]) -> tuple[float, float, float]:
        r, g, b = (float(np.clip(c * (factor + t), 12, 245))
                   for c, t in zip(colour, tint, strict=True))
        return (r, g, b)

    return replace(material, colour=shift(material.colour), second=shift(material.second))


def _face(
    site: Site, pose: Pose, points: Points, material: Material, height_m: float,
    slope_uv: tuple[float, float], seamed: bool,
) -> None:
    c, s = np.cos(pose.heading_rad), np.sin(pose.heading_rad)
    slope = (float(c * slope_uv[0] - s * slope_uv[1]), float(s * slope_uv[0] + c * slope_uv[1]))
    along_ridge = pose.heading_rad + (np.pi / 2 if abs(slope_uv[0]) > abs(slope_uv[1]) else 0.0)
    region = site.canvas.region(
        material, Plane(height_m, slope, (pose.x_m, pose.y_m)),
        along_ridge + (np.pi / 2 if seamed else 0.0), site.look.lambert(slope))
    site.canvas.fill(pose.at(points), region)


def house(
    site: Site, pose: Pose, length_m: float, width_m: float, eave_m: float, roof: Roof,
    clutter: float = 1.0,
) -> None:
    """Paint one roof over a rectangle.

    Args:
        site: Where to.
        pose: Centre, u along the ridge; in the world.
        length_m: Along the ridge.
        width_m: Across.
        eave_m: Height of the eaves.
        roof: Its kind.
        clutter: Factor on chimneys, windows and panels.
    """
    if length_m < width_m:
        pose, length_m, width_m = pose.moved(0, 0, np.pi / 2), width_m, length_m
    material = _vary(site, roof.material)
    seamed = roof.recipe in _SEAMED
    if roof.shape == 'flat':
        _flat(site, pose, length_m, width_m, eave_m, material, clutter)
        return
    a, b, p = length_m / 2, width_m / 2, roof.pitch
    ridge = eave_m + b * p
    if roof.shape == 'shed':
        _face(site, pose, rectangle(length_m, width_m), material, ridge, (0, p), seamed)
        return
    r = a - b * (site.rng.uniform(.75, 1.0) if roof.shape == 'hip' else 0.0)
    if roof.shape == 'gable':
        r = a
    _face(site, pose, np.array([(-a, -b), (a, -b), (r, 0), (-r, 0)]), material, ridge, (0, p),
          seamed)
    _face(site, pose, np.array([(-a, b), (-r, 0), (r, 0), (a, b)]), material, ridge, (0, -p),
          seamed)
    if r < a:
        end = b * p / max(a - r, .1)
        for sign in (1, -1):
            tip = pose.moved(sign * r, 0)
            _face(site, tip, np.array([(0, 0), (sign * (a - r), -b), (sign * (a - r), b)]),
                  material, ridge, (-sign * end, 0), seamed)
    cap = site.canvas.region(_vary(site, replace(material, rows=None, across=None), .2),
                             Plane(ridge))
    site.canvas.stroke(pose.at([(-r, 0), (r, 0)]), .22, cap)
    _roof_details(site, pose, a, b, ridge, p, clutter)


def _roof_details(
    site: Site, pose: Pose, a: float, b: float, ridge_m: float, pitch: float, clutter: float
) -> None:
    rng = site.rng
    for _ in range(rng.poisson(1.1 * clutter)):
        u, v = rng.uniform(-a * .85, a * .85), rng.normal(0, b * .25)
        stack = site.material(site.pick(render=1, roof_dark=1, tiles=.6))
        _box(site, pose, rectangle(rng.uniform(.5, 1.1), rng.uniform(.5, .8), u, v), stack,
             ridge_m + .9)
    for _ in range(rng.poisson(.9 * clutter)):
        v = rng.choice((-1, 1)) * b * rng.uniform(.3, .7)
        pane = site.material(site.pick(roof_dark=1, roof_light=1))
        _box(site, pose, rectangle(.8, 1.1, rng.uniform(-a * .8, a * .8), v), pane,
             ridge_m - abs(v) * pitch + .1)
    if site.chance(.09 * clutter) and b > 2.6:
        sign = float(rng.choice((-1, 1)))
        long, deep = rng.uniform(2.5, min(1.7 * a, 9)), rng.uniform(1.7, b - .6)
        middle = rng.uniform(-1, 1) * max(a - long / 2 - .4, 0)
        _face(site, pose, rectangle(long, deep, middle, sign * b * .5),
              site.material('solar'), ridge_m + .15, (0, -sign * pitch), False)


def _box(site: Site, pose: Pose, points: Points, material: Material, height_m: float) -> None:
    region = site.canvas.region(material, Plane(height_m), pose.heading_rad)
    site.canvas.fill(pose.at(points), region)


def _flat(
    site: Site, pose: Pose, length_m: float, width_m: float, height_m: float,
    material: Material, clutter: float,
) -> None:
    rng = site.rng
    rim = _vary(site, replace(site.material('render'), label=classes.BUILDING), .15)
    _box(site, pose, rectangle(length_m, width_m), rim, height_m + .5)
    edge = rng.uniform(.2, .6)
    _box(site, pose, rectangle(length_m - 2 * edge, width_m - 2 * edge), material, height_m)
    if site.chance(.35) and length_m > 12:  # a second roof level
        share = rng.uniform(.2, .5)
        u = rng.choice((-1, 1)) * length_m * (1 - share) * .45
        _box(site, pose, rectangle(length_m * share, width_m * rng.uniform(.5, .96), u), rim,
             height_m + rng.uniform(1.5, 4))
    boxes = rng.poisson(clutter * length_m * width_m / 70)
    for _ in range(min(int(boxes), 30)):
        u = rng.uniform(-.44, .44) * length_m
        v = rng.uniform(-.42, .42) * width_m
        name = site.pick(roof_light=3, roof_dark=2, sheet=1, glass_roof=.8, solar=.5)
        size = rng.uniform(.5, 3.2, 2) * (1.6 if name in ('glass_roof', 'solar') else 1.0)
        size = np.minimum(size, width_m * .25)
        _box(site, pose, rectangle(float(size[0]), float(size[1]), u, v), site.material(name),
             height_m + rng.uniform(.4, 2.2))


def wings(
    site: Site, pose: Pose, length_m: float, width_m: float, eave_m: float, roof: Roof
) -> None:
    """Paint a house of one or two wings, with a porch or terrace now and then."""
    rng = site.rng
    if site.chance(.5):
        terrace = site.material(site.pick(slabs=2, concrete=1, bricks=1, footpath=1))
        points = rectangle(length_m * rng.uniform(.4, .9), rng.uniform(2.5, 5),
                           rng.uniform(-2, 2), -(width_m / 2 + 1.5))
        site.canvas.fill(pose.at(points), site.canvas.region(terrace, None, pose.heading_rad))
    house(site, pose, length_m, width_m, eave_m, roof)
    if site.chance(.4):
        side = float(rng.choice((-1, 1)))
        short = width_m * rng.uniform(.5, .8)
        reach = rng.uniform(3, 6)
        wing = pose.moved(side * (length_m / 2 - short / 2), width_m / 2 + reach / 2 - width_m / 4,
                          np.pi / 2)
        house(site, wing, reach + width_m / 2, short, eave_m * rng.uniform(.7, .98),
              replace(roof, shape='gable') if roof.shape == 'hip' else roof, .4)


def shed(site: Site, pose: Pose) -> None:
    """Paint a garden shed or garage."""
    rng = site.rng
    recipe = site.pick(sheet=2, bitumen=2, brown_tiles=1, tiles=1, roof_dark=1)
    shape = site.pick(flat=1, gable=1, shed=1.5)
    roof = Roof(shape, recipe, site.material(recipe), .25)
    house(site, pose, rng.uniform(2.2, 6), rng.uniform(2, 3.6), rng.uniform(2, 2.6), roof, 0.0)


def hall(site: Site, pose: Pose, length_m: float, width_m: float) -> None:
    """Paint a warehouse: a long sheet roof with skylight strips, bays or a flat roof."""
    rng = site.rng
    height = rng.uniform(5, 13)
    style = site.pick(gable=2, flat=2, saw=1, bays=1)
    if style == 'flat':
        recipe = site.pick(white_roof=2, gravel_roof=1, bitumen=2, sheet=2)
        house(site, pose, length_m, width_m, height,
              Roof('flat', recipe, site.material(recipe), 0.0), .7)
    elif style == 'gable':
        house(site, pose, length_m, width_m, height,
              Roof('gable', 'sheet', site.material('sheet'), .12), 0.0)
    else:
        _bays(site, pose, length_m, width_m, height, 'shed' if style == 'saw' else 'gable')
    if style != 'flat':
        pane = site.material('glass_roof')
        for u in np.arange(-length_m / 2 + 4, length_m / 2 - 3, rng.uniform(5, 12)):
            if site.chance(.85):
                _box(site, pose, rectangle(1.1, width_m * .36, float(u), width_m * .24), pane,
                     height + .6)
                _box(site, pose, rectangle(1.1, width_m * .36, float(u), -width_m * .24), pane,
                     height + .6)
    if site.chance(.25):
        _box(site, pose, rectangle(length_m * .5, width_m * .35, length_m * .15, width_m * .22),
             site.material('solar'), height + .8)


def _bays(
    site: Site, pose: Pose, length_m: float, width_m: float, height_m: float, shape: str
) -> None:
    count = max(2, round(length_m / site.rng.uniform(6, 14)))
    bay = length_m / count
    roof = Roof(shape, 'sheet', site.material('sheet'), .3 if shape == 'shed' else .16)
    for i in range(count):
        u = -length_m / 2 + bay * (i + .5)
        # The ridge of each bay runs across the hall.
        points, h = rectangle(width_m, bay), height_m + bay / 2 * roof.pitch
        turned = pose.moved(u, 0, np.pi / 2)
        if shape == 'shed':
            _face(site, turned, points, roof.material, h, (0, roof.pitch), True)
        else:
            for sign in (1, -1):
                _face(site, turned, rectangle(width_m, bay / 2, 0, sign * bay / 4),
                      roof.material, h, (0, -sign * roof.pitch), True)


def tank(site: Site, pose: Pose, radius_m: float) -> None:
    """Paint a round tank or silo."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(t), np.sin(t)], -1)
    metal = site.material(site.pick(roof_light=2, sheet=1, roof_dark=.6))
    height = site.rng.uniform(4, 14)
    _box(site, pose, ring * radius_m, _vary(site, metal, .2), height)
    _box(site, pose, ring * (radius_m * .9), metal, height)
    _box(site, pose, ring * .5, site.material('roof_dark'), height + .4)


def greenhouse(site: Site, pose: Pose, length_m: float, width_m: float) -> None:
    """Paint a greenhouse or polytunnel."""
    roof = Roof('gable', 'sheet', site.material('glass_roof'), .25)
    house(site, pose, length_m, width_m, 2.4, roof, 0.0)
