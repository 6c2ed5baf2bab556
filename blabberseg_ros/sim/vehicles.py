# SPDX-License-Identifier: Apache-2.0
"""Things that move: cars, vans, lorries, buses, trains, boats, and people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blabberseg_ros.sim import classes
from blabberseg_ros.sim.canvas import Canvas, Colour, Material, Plane, Points
from blabberseg_ros.sim.layout import Pose, Site, rectangle
from blabberseg_ros.sim.palette import hsv

if TYPE_CHECKING:
    from blabberseg_ros.sim.roads import Cut


@dataclass(frozen=True)
class Person:
    """One person, seen from above.

    Attributes:
        x_m: East.
        y_m: North.
        heading_rad: Where the person faces, counter-clockwise from east.
        shoulder_m: Width of the shoulders.
        lying: Stretched out on the ground.
        clothes: RGB in 0..255.
        hair: RGB in 0..255.
    """

    x_m: float
    y_m: float
    heading_rad: float
    shoulder_m: float
    lying: bool
    clothes: Colour
    hair: Colour

    def outlines(self) -> tuple[tuple[Points, Colour], ...]:
        """Give body parts as world polygons with their colours, to be painted in order."""
        pose = Pose(self.x_m, self.y_m, self.heading_rad)
        half = self.shoulder_m / 2
        parts: list[tuple[Points, Colour]] = []
        if self.lying:
            legs = _darker(self.clothes, .55)
            parts.append((rectangle(.85, .34, -.62), legs))
            parts.append((_ellipse(.36, half * .9), self.clothes))
            parts.append((_ellipse(.13, .12, .45), self.hair))
        else:
            shoes = _darker(self.clothes, .45)
            parts.append((_ellipse(.17, .10, .14, half * .45), shoes))
            parts.append((_ellipse(.17, .10, -.12, -half * .45), shoes))
            parts.append((_ellipse(.19, half), self.clothes))
            parts.append((_ellipse(.14, .13, .05), self.hair))
        return tuple((pose.at(points), colour) for points, colour in parts)


def _darker(colour: Colour, factor: float) -> Colour:
    return (factor * colour[0], factor * colour[1], factor * colour[2])


def _ellipse(a: float, b: float, u: float = 0.0, v: float = 0.0) -> Points:
    t = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    return np.stack([a * np.cos(t) + u, b * np.sin(t) + v], -1)


def draw_person(rng: np.random.Generator, x_m: float, y_m: float) -> Person:
    """Draw a person's looks at random, at a world point."""
    if rng.random() < .55:  # most clothes are dark or grey
        clothes = hsv(rng.uniform(0, 360), rng.uniform(0, .25), rng.uniform(.08, .45))
    else:
        clothes = hsv(rng.uniform(0, 360), rng.uniform(.1, .8), rng.uniform(.45, .95))
    hair = hsv(rng.uniform(15, 45), rng.uniform(.1, .5), rng.uniform(.08, .6))
    return Person(
        x_m, y_m, float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(.5, .72)),
        bool(rng.random() < .12), clothes, hair)


def paint_person(canvas: Canvas, person: Person) -> None:
    """Paint a person on the map."""
    height = .35 if person.lying else 1.7
    for points, colour in person.outlines():
        material = Material(classes.PERSON, colour, _darker(colour, .7), 0, .3, .05, .06)
        canvas.fill(points, canvas.region(material, Plane(height)))


_BLOCKED = frozenset({
    classes.VEHICLE, classes.BUILDING, classes.WATER, classes.STRUCTURE})
_GROUND = frozenset({classes.GRASS, classes.SOIL, classes.PAVED, classes.FIELD, classes.ROAD})


def place_people(site: Site) -> list[Person]:
    """Place the groups that the site asks for, on open ground only; give who found room."""
    people: list[Person] = []
    for x, y, count, spread_m in site.crowds:
        for dx, dy in site.rng.normal(0, spread_m, (count, 2)):
            px, py = (float(v) for v in site.frame.to_world((x + dx, y + dy)))
            if site.canvas.label_at(px, py) in _GROUND:
                people.append(draw_person(site.rng, px, py))
                paint_person(site.canvas, people[-1])
    return people


def _paint_colour(rng: np.random.Generator) -> Colour:
    shade = rng.random()
    if shade < .30:
        return hsv(210, rng.uniform(0, .06), rng.uniform(.74, .95))
    if shade < .55:
        return hsv(210, rng.uniform(0, .1), rng.uniform(.10, .26))
    if shade < .80:
        return hsv(210, rng.uniform(0, .1), rng.uniform(.34, .66))
    hue = rng.choice((0, 4, 215, 225, 200, 30, 50, 120))
    return hsv(float(hue), rng.uniform(.3, .75), rng.uniform(.25, .65))


def _part(
    site: Site, pose: Pose, points: Points, colour: Colour, height_m: float, grain: float = .02
) -> None:
    material = Material(classes.VEHICLE, colour, _darker(colour, .85), 0, .25, .02, grain)
    site.canvas.fill(pose.at(points), site.canvas.region(material, Plane(height_m)))


def _hull(length: float, width: float, bevel: float) -> Points:
    a, b = length / 2, width / 2
    return np.array([
        (-a + bevel * .6, -b), (a - bevel, -b), (a, -b + bevel), (a, b - bevel), (a - bevel, b),
        (-a + bevel * .6, b), (-a, b - bevel * .6), (-a, -b + bevel * .6)])


def car(site: Site, pose: Pose, kind: str = '') -> None:
    """Paint a car, van, lorry or bus; a parked crowd is mostly cars."""
    kind = kind or site.pick(car=.84, van=.11, lorry=.04, bus=.01)
    if kind == 'lorry':
        _lorry(site, pose)
    elif kind == 'bus':
        _bus(site, pose)
    else:
        _car(site, pose, kind == 'van')


def _car(site: Site, pose: Pose, van: bool) -> None:
    rng = site.rng
    length = rng.uniform(4.8, 6.2) if van else rng.uniform(3.7, 4.9)
    width = rng.uniform(1.9, 2.15) if van else rng.uniform(1.68, 1.92)
    height = rng.uniform(2.0, 2.8) if van else rng.uniform(1.5, 1.75)
    body = hsv(210, .02, rng.uniform(.8, .95)) if van and site.chance(.7) else _paint_colour(rng)
    glass = hsv(205, .25, rng.uniform(.08, .3))
    _part(site, pose, _hull(length, width, .4), body, height * .62)
    a, b = length / 2, width / 2 - .14
    front = a - (1.0 if van else 1.25)
    rear = -a + (.1 if van else rng.uniform(.35, .8))
    _part(site, pose, np.array([(rear, -b), (front, -b), (front, b), (rear, b)]), glass, height)
    bright = rng.uniform(1.0, 1.14)
    roof = (min(body[0] * bright, 250.0), min(body[1] * bright, 250.0), min(body[2] * bright,
                                                                           250.0))
    top = np.array([(rear + (.05 if van else .5), -b + .1), (front - .65, -b + .1),
                    (front - .65, b - .1), (rear + (.05 if van else .5), b - .1)])
    _part(site, pose, top, roof, height)


def _lorry(site: Site, pose: Pose) -> None:
    rng = site.rng
    length, width = rng.uniform(7, 13), rng.uniform(2.3, 2.6)
    cab = _paint_colour(rng)
    load = hsv(rng.uniform(0, 360), rng.choice((.04, .4)), rng.uniform(.4, .92))
    _part(site, pose, rectangle(2.2, width, length / 2 - 1.1), cab, 2.9)
    _part(site, pose, rectangle(.5, width * .9, length / 2 - .35), hsv(205, .2, .15), 2.2)
    box = rectangle(length - 2.6, width, -1.3)
    _part(site, pose, box, load, 3.4)
    if site.chance(.4):
        for u in np.arange(-length / 2 + .5, length / 2 - 2.6, 1.2):
            _part(site, pose, rectangle(.12, width, float(u)),
                  _darker(load, .8), 3.4)


def _bus(site: Site, pose: Pose) -> None:
    rng = site.rng
    length = rng.uniform(10.5, 13)
    body = hsv(rng.uniform(0, 360), rng.choice((.05, .5)), rng.uniform(.55, .92))
    _part(site, pose, _hull(length, 2.55, .35), body, 3.0)
    _part(site, pose, rectangle(.5, 2.2, length / 2 - .4), hsv(205, .2, .14), 2.8)
    for u in (-length * .3, 0.0, length * .25):
        _part(site, pose, rectangle(1.8, 1.4, u), hsv(210, .03, rng.uniform(.5, .85)), 3.2)


def container(site: Site, pose: Pose, label: int = classes.STRUCTURE) -> None:
    """Paint a freight container."""
    colour = hsv(site.rng.uniform(0, 360), site.rng.uniform(.1, .6), site.rng.uniform(.3, .7))
    material = Material(label, colour, _darker(colour, .8), .1, .4, .04, .08)
    length = 6.1 if site.chance(.5) else 12.2
    region = site.canvas.region(material, Plane(2.6), pose.heading_rad)
    site.canvas.fill(pose.at(rectangle(length, 2.45)), region)


def boat(site: Site, pose: Pose, length_m: float) -> None:
    """Paint a boat; long ones are barges."""
    rng = site.rng
    width = length_m * (.34 if length_m < 15 else .14)
    a, b = length_m / 2, width / 2
    hull = np.array([(-a, -b * .8), (a * .4, -b), (a, 0), (a * .4, b), (-a, b * .8)])
    white = hsv(rng.uniform(20, 60), rng.uniform(.0, .1), rng.uniform(.7, .95))
    if site.chance(.35):
        white = hsv(rng.uniform(0, 360), rng.uniform(.1, .6), rng.uniform(.2, .6))
    _part(site, pose, hull, white, 1.2)
    deck = hsv(rng.uniform(20, 40), rng.uniform(.1, .45), rng.uniform(.35, .7))
    _part(site, pose, hull * (.8, .66), deck, 1.3)
    cabin = rng.uniform(-.3, .1) * length_m
    _part(site, pose, rectangle(length_m * .3, width * .55, cabin), white, 2.2)
    _part(site, pose, rectangle(length_m * .05, width * .5, cabin + length_m * .15),
          hsv(205, .25, .2), 2.0)
    if length_m > 15:
        for u in np.linspace(-.35, .35, 5) * length_m:
            _part(site, pose, rectangle(length_m * .08, width * .6, float(u)),
                  hsv(rng.uniform(0, 360), .1, rng.uniform(.2, .7)), 1.8)


def traffic_along(site: Site, cut: Cut) -> None:
    """Fill a road with moving and parked vehicles."""
    rng, kind = site.rng, cut.kind
    half, length = kind.width_m / 2, cut.length_m
    lanes = max(kind.lanes, 2)
    for _ in range(rng.poisson(kind.traffic * length / 100)):
        lane = int(rng.integers(lanes))
        offset = -half + (lane + .5) * kind.width_m / lanes
        turn = np.pi if offset > 0 else 0.0
        x, y = cut.point(rng.uniform(4, max(length - 4, 5)), offset + rng.normal(0, .15))
        name = site.pick(car=.80, van=.11, lorry=.06, bus=.03)
        _place(site, x, y, cut.heading_rad + turn, name)
    if kind.walk_m:
        for _ in range(rng.poisson(length / rng.uniform(6, 40))):
            side = rng.choice((-1, 1)) * (half + kind.walk_m * rng.uniform(.2, .8))
            point = cut.point(rng.uniform(0, length), side * rng.choice((1.0, .3), p=(.93, .07)))
            site.crowds.append((*point, int(rng.integers(1, 4)), .6))
    if kind.walk_m and site.chance(kind.parked * 1.4):
        for side in (-1, 1):
            _kerb(site, cut, side, rng.uniform(.15, 1.0))


def _kerb(site: Site, cut: Cut, side: int, fill: float) -> None:
    if not site.chance(.7):
        return
    offset = side * (cut.kind.width_m / 2 - 1.05)
    turn = 0.0 if side < 0 else np.pi
    for at in np.arange(12.0, cut.length_m - 12.0, 5.6):
        if site.chance(fill):
            x, y = cut.point(float(at) + site.rng.normal(0, .2), offset)
            _place(site, x, y, cut.heading_rad + turn, site.pick(car=.9, van=.1))


def _place(site: Site, x: float, y: float, heading_rad: float, kind: str) -> None:
    """Park unless another vehicle is there already."""
    _place_at(site, site.frame.pose(x, y, heading_rad + site.rng.normal(0, .02)), kind)


def _place_at(site: Site, pose: Pose, kind: str) -> None:
    reach = 5.0 if kind in ('lorry', 'bus') else 2.0
    for u in (-reach, 0.0, reach):
        if site.canvas.label_at(*pose.at((u, 0.0))) in _BLOCKED:
            return
    car(site, pose, kind)


def park(site: Site, pose: Pose, kind: str = '') -> None:
    """Put a parked vehicle at a world pose, later, when the ground is done."""
    site.later.append(lambda: _place_at(site, pose, kind))


def boats_along(site: Site, cut: Cut) -> None:
    """Moor and sail a few boats on a river or canal."""
    half = cut.kind.width_m / 2
    if half < 5:
        return
    for side in (-1, 1):
        at = site.rng.uniform(5, 60)
        while at < cut.length_m and site.chance(.75):
            length = site.rng.uniform(18, 38) if site.chance(.4) else site.rng.uniform(5, 12)
            x, y = cut.point(at + length / 2, side * (half - 3.0))
            boat(site, site.frame.pose(x, y, cut.heading_rad), min(length, half * 2.4))
            at += length + site.rng.uniform(2, 40)


def train_along(site: Site, cut: Cut) -> None:
    """Put a train on a railway, more often than not."""
    if not site.chance(.6):
        return
    colour = hsv(site.rng.uniform(0, 360), site.rng.uniform(.02, .6), site.rng.uniform(.35, .85))
    start, cars = site.rng.uniform(0, cut.length_m * .6), int(site.rng.integers(2, 9))
    track = float(site.rng.choice((-2.2, 2.2)))
    for i in range(cars):
        at = start + i * 19.5
        if at > cut.length_m - 10:
            break
        x, y = cut.point(at, track)
        pose = site.frame.pose(x, y, cut.heading_rad)
        _part(site, pose, _hull(18.8, 2.85, .3), colour, 3.5)
        _part(site, pose, rectangle(17, .25, 0, .7), (90, 92, 95), 3.5)
        for u in (-5.0, 1.0, 6.0):
            _part(site, pose, rectangle(2.2, 1.5, u), hsv(210, .04, .6), 3.5)
