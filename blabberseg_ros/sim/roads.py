# SPDX-License-Identifier: Apache-2.0
"""Cutting a settlement into blocks, and the roads, rails and rivers on the cuts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blabberseg_ros.sim import vehicles
from blabberseg_ros.sim.canvas import Material, Points
from blabberseg_ros.sim.layout import Site, area, clip
from blabberseg_ros.sim.planting import hedgerow, tree_row


@dataclass(frozen=True)
class Kind:
    """A kind of corridor between blocks.

    Attributes:
        width_m: Of the carriageway, track or water.
        walk_m: Of the pavement on each side.
        verge_m: Of the grass between or beyond.
        surface: Recipe.
        walk: Recipe of the pavement.
        lanes: Number of lanes; 0 for no markings.
        traffic: Moving vehicles per 100 m.
        parked: Share of the kerb with parked cars.
        trees: Chance of a row of trees.
    """

    width_m: float
    walk_m: float = 0.0
    verge_m: float = 0.0
    surface: str = 'asphalt'
    walk: str = 'footpath'
    lanes: int = 0
    traffic: float = 0.0
    parked: float = 0.0
    trees: float = 0.0

    @property
    def reach_m(self) -> float:
        """Half of the whole corridor."""
        return self.width_m / 2 + self.walk_m + self.verge_m


KINDS = {
    'highway': Kind(15.0, 0.0, 6.0, 'asphalt', lanes=4, traffic=5.0, trees=.4),
    'avenue': Kind(13.0, 3.5, 2.0, 'asphalt', 'slabs', 4, 3.5, .5, .8),
    'main': Kind(8.5, 2.2, 0.5, 'asphalt', 'footpath', 2, 2.5, .3, .35),
    'street': Kind(6.5, 1.8, 0.0, 'asphalt', 'footpath', 2, 1.2, .5, .25),
    'alley': Kind(5.0, 1.0, 0.0, 'dark_asphalt', 'footpath', 0, .8, .4, .1),
    'cobbled': Kind(5.5, 1.2, 0.0, 'cobble', 'slabs', 0, .6, .25, .15),
    'lane': Kind(4.2, 0.0, 1.8, 'asphalt', lanes=0, traffic=.8, trees=.4),
    'country': Kind(6.0, 0.0, 2.2, 'asphalt', lanes=2, traffic=1.4, trees=.45),
    'track': Kind(3.2, 0.0, 1.2, 'earth', trees=.2),
    'gravel_track': Kind(3.0, 0.0, 1.0, 'gravel', trees=.2),
    'path': Kind(2.4, 0.0, .8, 'footpath', trees=.4),
    'hedgerow': Kind(2.5, 0.0, .6, 'rough'),
    'boundary': Kind(0.8, 0.0, .3, 'meadow'),
    'rail': Kind(10.0, 0.0, 4.0, 'ballast'),
    'river': Kind(34.0, 0.0, 5.0, 'water', trees=.5),
    'canal': Kind(17.0, 4.0, 1.5, 'water', 'slabs', trees=.6),
    'stream': Kind(4.0, 0.0, 4.0, 'water', trees=.7),
}


@dataclass(frozen=True)
class Cut:
    """A corridor: its centre line, overlapping its neighbours at both ends, and its kind."""

    start: tuple[float, float]
    end: tuple[float, float]
    kind: Kind
    name: str

    @property
    def length_m(self) -> float:
        """Length of the centre line."""
        return float(np.hypot(self.end[0] - self.start[0], self.end[1] - self.start[1]))

    def band(self, left_m: float, right_m: float, from_m: float, to_m: float) -> Points:
        """Give the layout rectangle between two lateral offsets and two distances."""
        a, b = np.asarray(self.start), np.asarray(self.end)
        ahead = (b - a) / max(self.length_m, 1e-6)
        side = np.array([-ahead[1], ahead[0]])
        return np.array([
            a + ahead * from_m + side * right_m, a + ahead * to_m + side * right_m,
            a + ahead * to_m + side * left_m, a + ahead * from_m + side * left_m])

    def point(self, distance_m: float, offset_m: float = 0.0) -> tuple[float, float]:
        """Give the layout point at a distance along and an offset to the left."""
        a, b = np.asarray(self.start), np.asarray(self.end)
        ahead = (b - a) / max(self.length_m, 1e-6)
        x, y = a + ahead * distance_m + np.array([-ahead[1], ahead[0]]) * offset_m
        return float(x), float(y)

    @property
    def heading_rad(self) -> float:
        """Direction of the centre line in the layout."""
        return float(np.arctan2(self.end[1] - self.start[1], self.end[0] - self.start[0]))


def cut_blocks(
    site: Site, domain: Points, ranks: Sequence[Sequence[str]], block_m: tuple[float, float],
    skew_rad: float,
) -> tuple[list[Points], list[Cut]]:
    """Cut a convex domain into blocks, in two until each is small enough.

    Args:
        site: Source of randomness, and of what is in view.
        domain: Layout polygon, counter-clockwise.
        ranks: For each depth the kinds to choose from; the last serves all that are deeper.
        block_m: Least and greatest side of a finished block.
        skew_rad: How far cuts turn from square.

    Returns:
        Blocks and corridors, both in layout coordinates.
    """
    blocks: list[Points] = []
    cuts: list[Cut] = []
    todo = [(domain, 0)]
    while todo:
        polygon, depth = todo.pop()
        if not site.visible(polygon):
            continue
        kinds = ranks[min(depth, len(ranks) - 1)]
        name = kinds[int(site.rng.integers(len(kinds)))]
        goal_m = site.rng.uniform(*block_m)
        if depth >= 1 and area(polygon) < 1.5 * goal_m ** 2:
            blocks.append(polygon)
            continue
        halves, cut = _cut(site, polygon, name, skew_rad)
        if len(halves) < 2:
            blocks.append(polygon)
            continue
        cuts.append(cut)
        todo += [(half, depth + 1) for half in halves]
    return blocks, cuts


def _cut(
    site: Site, polygon: Points, name: str, skew_rad: float
) -> tuple[list[Points], Cut]:
    kind = KINDS[name]
    edges = np.roll(polygon, -1, axis=0) - polygon
    longest = edges[int(np.argmax(np.hypot(edges[:, 0], edges[:, 1])))]
    across = np.arctan2(longest[1], longest[0]) + site.rng.normal(0, skew_rad)
    normal = np.array([np.cos(across), np.sin(across)])
    reach = polygon @ normal
    offset = reach.min() + (reach.max() - reach.min()) * site.rng.uniform(.33, .67)
    left = clip(polygon, normal, offset - kind.reach_m)
    right = clip(polygon, -normal, -(offset + kind.reach_m))
    side = np.array([-normal[1], normal[0]])
    chord = clip(clip(polygon, normal, offset + .01), -normal, -(offset - .01))
    span = chord @ side if len(chord) else np.array([0.0, 0.0])
    overlap_m = 5.5 if kind.surface != 'water' else 20.0
    a = normal * offset + side * (span.min() - overlap_m)
    b = normal * offset + side * (span.max() + overlap_m)
    cut = Cut((float(a[0]), float(a[1])), (float(b[0]), float(b[1])), kind, name)
    return [half for half in (left, right) if area(half) > 60.0], cut


def draw_cuts(site: Site, cuts: Sequence[Cut]) -> None:
    """Draw all corridors: verges, then pavements, then carriageways, markings and traffic."""
    surfaces = {name: site.material(kind.surface) for name, kind in sorted(KINDS.items())}
    walks = {name: site.material(kind.walk) for name, kind in sorted(KINDS.items())}
    verge = site.material(site.pick(meadow=2, lawn=1, dry_grass=1, rough=1))
    for cut in cuts:
        reach, length = cut.kind.reach_m + .4, cut.length_m
        site.paint(cut.band(reach, -reach, 0, length), verge)
    for cut in cuts:
        if cut.kind.walk_m:
            reach = cut.kind.width_m / 2 + cut.kind.walk_m
            site.paint(cut.band(reach, -reach, 0, cut.length_m), walks[cut.name],
                       heading_rad=cut.heading_rad)
    for cut in sorted(cuts, key=lambda c: c.kind.surface != 'water'):
        half = cut.kind.width_m / 2
        natural = cut.name in ('track', 'river', 'stream', 'hedgerow', 'gravel_track')
        site.paint(cut.band(half, -half, 0, cut.length_m), surfaces[cut.name],
                   heading_rad=cut.heading_rad,
                   ragged_m=(half ** .5 * .35 if natural else 0.0))
        if cut.name == 'canal':
            for sign in (-1, 1):
                site.line([cut.point(0, sign * half), cut.point(cut.length_m, sign * half)],
                          .5, 'wall', .4)
    for cut in cuts:
        _furnish(site, cut)


def _furnish(site: Site, cut: Cut) -> None:
    kind, length = cut.kind, cut.length_m
    if kind.surface in ('asphalt', 'dark_asphalt', 'cobble'):
        _wear(site, cut)
    if kind.lanes and site.chance(.85):
        _markings(site, cut)
    if cut.name == 'rail':
        _rails(site, cut)
    if cut.name == 'hedgerow':
        hedgerow(site, cut.point(0), cut.point(length))
    if cut.name in ('track', 'gravel_track'):
        verge = site.material('meadow')
        site.line([cut.point(0), cut.point(length)], .5, verge)
    if kind.trees and site.chance(kind.trees):
        offset = kind.width_m / 2 + kind.walk_m * .5 + kind.verge_m * .6
        for side in ((1,), (-1,), (1, -1))[int(site.rng.integers(3))]:
            tree_row(site, cut.point(0, side * offset), cut.point(length, side * offset))
    if kind.surface == 'water':
        site.later.append(lambda: vehicles.boats_along(site, cut))
    elif kind.traffic or kind.parked:
        site.later.append(lambda: vehicles.traffic_along(site, cut))


def _wear(site: Site, cut: Cut) -> None:
    """Lay repair patches, wheel tracks, manholes and lamp posts."""
    half, length, rng = cut.kind.width_m / 2, cut.length_m, site.rng
    for _ in range(rng.poisson(length / 28)):
        at, side = rng.uniform(0, length), rng.uniform(-half * .8, half * .8)
        long, wide = rng.uniform(1, 12), rng.uniform(.5, 2)
        site.paint(cut.band(min(side + wide, half), max(side - wide, -half), at, at + long),
                   'patch')
    for _ in range(rng.poisson(length / 25)):
        x, y = cut.point(rng.uniform(0, length), rng.uniform(-half * .7, half * .7))
        site.paint(site.blob(x, y, .4, .02), 'patch')
    if cut.kind.walk_m and site.chance(.8):
        lamp = site.material('steel')
        for at in np.arange(rng.uniform(5, 20), length, rng.uniform(18, 32)):
            x, y = cut.point(float(at), half + .6)
            site.paint(site.blob(x, y, .22, .02), lamp, height_m=rng.uniform(4.5, 8))


def _markings(site: Site, cut: Cut) -> None:
    kind, length = cut.kind, cut.length_m
    paint = site.material('paint')
    half = kind.width_m / 2
    gap = 8.0 + kind.walk_m  # keep clear of the junctions at both ends
    lines = {2: (0.0,), 4: (-half / 2, 0.0, half / 2)}[kind.lanes]
    for offset in lines:
        solid = site.chance(.25) or (kind.lanes == 4 and offset == 0.0)
        dash_m, space_m = (length, 0.0) if solid else (3.0, float(site.rng.uniform(3, 9)))
        at = gap
        while at < length - gap:
            stop = min(at + dash_m, length - gap)
            site.paint(cut.band(offset + .1, offset - .1, at, stop), paint)
            at = stop + space_m + .01
    if site.chance(.5):
        for side in (half - .35, -half + .35):
            site.paint(cut.band(side + .08, side - .08, gap, length - gap), paint)
    if kind.walk_m and length > 40:
        for at in (gap - 1.5, length - gap - 1.5):
            if site.chance(.6):
                _crossing(site, cut, at, paint)
        if length > 90 and site.chance(.5):
            _crossing(site, cut, length * site.rng.uniform(.35, .65), paint)


def _crossing(site: Site, cut: Cut, at_m: float, paint: Material) -> None:
    half = cut.kind.width_m / 2
    for side in np.arange(-half + .5, half - .3, 1.0):
        site.paint(cut.band(side + .5, side, at_m, at_m + 3.0), paint)


def _rails(site: Site, cut: Cut) -> None:
    rail = site.material('rail')
    sleepers = site.material('patch')
    for track in (-2.2, 2.2):
        for at in np.arange(0, cut.length_m, 1.3):
            site.paint(cut.band(track + 1.25, track - 1.25, at, at + .35), sleepers)
        for gauge in (-.72, .72):
            site.line([cut.point(0, track + gauge), cut.point(cut.length_m, track + gauge)],
                      .15, rail)
    mast = site.material('steel')
    for at in np.arange(10, cut.length_m, 40):
        x, y = cut.point(float(at), 4.6)
        site.paint(site.blob(x, y, .25, .02), mast, height_m=7.0)
    site.later.append(lambda: vehicles.train_along(site, cut))
