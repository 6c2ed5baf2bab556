# SPDX-License-Identifier: Apache-2.0
"""A procedural piece of ground, seen straight from above: colours, classes and heights."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from blabberseg_ros.sim import classes, vehicles
from blabberseg_ros.sim.canvas import Canvas, Points
from blabberseg_ros.sim.families import ALL_FAMILIES, FAMILIES, HELD_OUT_FAMILIES, USES, Family
from blabberseg_ros.sim.fill_in import fill_in
from blabberseg_ros.sim.harbour import draw_sea
from blabberseg_ros.sim.layout import Frame, Pose, Site, area, rectangle
from blabberseg_ros.sim.look import Look, draw_look
from blabberseg_ros.sim.palette import RECIPES, Palette
from blabberseg_ros.sim.roads import cut_blocks, draw_cuts
from blabberseg_ros.sim.shading import grade, shade
from blabberseg_ros.sim.vegetation import plant
from blabberseg_ros.sim.vehicles import Person

__all__ = ['FAMILIES', 'HELD_OUT_FAMILIES', 'World', 'generate_world', 'mirrored']


@dataclass(frozen=True, eq=False)
class World:
    """A square map; the origin is in the middle, x points east and y north.

    Row 0 is the northern edge. Outside the square the map goes on, mirrored at its edges.

    Attributes:
        seed: What it was made from.
        family: Kind of place.
        resolution_m: Metres per pixel.
        rgb: uint8 [N, N, 3].
        labels: uint8 [N, N], class ids, see `classes`.
        height_m: float32 [N, N], above the ground.
        people: Everyone on the map, for drawing them in detail from low altitude.
    """

    seed: int
    family: str
    resolution_m: float
    rgb: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    height_m: NDArray[np.float32]
    people: tuple[Person, ...] = ()

    @property
    def size_m(self) -> float:
        """Side of the map."""
        return self.labels.shape[0] * self.resolution_m

    def label_at(self, x_m: float, y_m: float) -> int:
        """Give the class at a point; outside the map, in its mirror image.

        Args:
            x_m: East.
            y_m: North.
        """
        size = self.labels.shape[0]
        col = np.floor((x_m + self.size_m / 2) / self.resolution_m)
        row = np.floor((self.size_m / 2 - y_m) / self.resolution_m)
        return int(self.labels[int(mirrored(row, size)), int(mirrored(col, size))])

    def footprint(self, x_m: float, y_m: float, radius_m: float) -> dict[int, float]:
        """Give the share of each class under a disc, to score a touchdown.

        Args:
            x_m: East, of the centre.
            y_m: North, of the centre.
            radius_m: Of the disc.

        Returns:
            Class id to share, largest first; the shares add up to 1.
        """
        reach = int(np.ceil(radius_m / self.resolution_m))
        step = np.arange(-reach, reach + 1)
        dx, dy = np.meshgrid(step, step)
        near = dx ** 2 + dy ** 2 <= max((radius_m / self.resolution_m) ** 2, 0.0)
        size = self.labels.shape[0]
        col = np.floor((x_m + self.size_m / 2) / self.resolution_m) + dx[near]
        row = np.floor((self.size_m / 2 - y_m) / self.resolution_m) + dy[near]
        under = self.labels[mirrored(row, size).astype(int), mirrored(col, size).astype(int)]
        count = np.bincount(under, minlength=12)
        return {int(c): float(count[c] / count.sum()) for c in np.argsort(-count, kind='stable')
                if count[c]}

    def is_safe(self, x_m: float, y_m: float, radius_m: float) -> bool:
        """Tell whether a disc lies on safe ground alone, see `classes.SAFE`."""
        return set(self.footprint(x_m, y_m, radius_m)) <= classes.SAFE


def mirrored(index: NDArray[np.float64] | float, size: int) -> NDArray[np.float64]:
    """Fold an index onto 0..size - 1, mirrored at the edges (..., 1, 0, 0, 1, ...)."""
    folded = np.mod(index, 2 * size)
    return np.asarray(np.minimum(folded, 2 * size - 1 - folded))


def generate_world(
    seed: int, family: str | None = None, size_m: float = 300.0, resolution_m: float = 0.1
) -> World:
    """Make a world; the same arguments give the same bytes.

    Args:
        seed: Of all that is random.
        family: Kind of place; by default one of `FAMILIES`, by the seed.
        size_m: Side of the map.
        resolution_m: Metres per pixel.

    Raises:
        ValueError: The family is unknown, or the map too small.
    """
    choice, look_rng, palette_rng, layout_rng, tree_rng, shade_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6))
    if family is None:
        family = FAMILIES[int(choice.integers(len(FAMILIES)))]
    if family not in ALL_FAMILIES:
        raise ValueError(
            f'Unknown family {family!r}. Choose one of: {", ".join(ALL_FAMILIES)}.')
    size_px = round(size_m / resolution_m)
    if size_px < 64 or size_m < 40:
        raise ValueError(
            f'A map of {size_m} m at {resolution_m} m per pixel is too small to hold every class. '
            'Use at least 40 m and 64 pixels.')
    kind = ALL_FAMILIES[family]
    look = draw_look(look_rng)
    palette = Palette(palette_rng, {**RECIPES, **kind.recipes}, look.dryness)
    canvas = Canvas(size_px, resolution_m)
    site = Site(canvas, _draw_frame(layout_rng, kind), palette, look, layout_rng,
                dict(kind.species), _skewed(layout_rng, dict(kind.roofs)))
    people = _build(site, kind)
    trees = plant(canvas, site.trees, look, tree_rng)
    rgb, labels, height_m = shade(canvas, trees, look, shade_rng)
    world = World(seed, family, resolution_m, rgb, labels, height_m)
    return replace(world, people=_in_view(world, people, look))


def _in_view(world: World, people: list[Person], look: Look) -> tuple[Person, ...]:
    """Keep who no tree hides, in the colours that the map shows them in, shadow included."""
    seen = []
    for person in people:
        if world.label_at(person.x_m, person.y_m) != classes.PERSON:
            continue
        clothes, hair = grade(np.asarray([person.clothes, person.hair], np.float32), look) / 1.0
        col = int((person.x_m + world.size_m / 2) / world.resolution_m)
        row = int((world.size_m / 2 - person.y_m) / world.resolution_m)
        shown = world.rgb[max(row - 1, 0):row + 2, max(col - 1, 0):col + 2].mean()
        light = float(np.clip(shown / max((clothes.mean() + hair.mean()) / 2, 1.0), 0.3, 1.0))
        seen.append(replace(person, clothes=tuple(light * clothes), hair=tuple(light * hair)))
    return tuple(seen)


def _draw_frame(rng: np.random.Generator, kind: Family) -> Frame:
    bends = []
    for _ in range(2):
        heading, wavelength = rng.uniform(0, 2 * np.pi), rng.uniform(160, 420)
        k = 2 * np.pi / wavelength
        amplitude = rng.uniform(*kind.bend_m) * wavelength / 420
        push = heading + np.pi / 2
        bends.append((
            float(k * np.cos(heading)), float(k * np.sin(heading)),
            float(amplitude * np.cos(push)), float(amplitude * np.sin(push)),
            float(rng.uniform(0, 2 * np.pi))))
    return Frame(float(rng.uniform(0, 2 * np.pi)), tuple(bends))


def _skewed(rng: np.random.Generator, weights: dict[str, float]) -> dict[str, float]:
    """Let chance favour some entries, so that places of one family differ."""
    return {name: weight * float(np.exp(rng.normal(0, .9))) for name, weight in weights.items()}


def _build(site: Site, kind: Family) -> list[Person]:
    """Paint everything, from the ground up."""
    background = site.material('meadow')
    half = site.canvas.half_m
    site.canvas.fill(Pose(0, 0, 0).at(rectangle(2.2 * half, 2.2 * half)),
                     site.canvas.region(background))
    reach = 2 * (half * 1.42 + kind.bend_m[1] + 10)
    shift = site.rng.uniform(-half * .4, half * .4, 2)
    domain: Points = rectangle(reach * 1.4, reach * 1.4) + shift
    if kind.sea:
        domain = draw_sea(site, domain)
    blocks, cuts = cut_blocks(site, domain, kind.ranks, kind.block_m, kind.skew_rad)
    draw_cuts(site, cuts)
    weights = _skewed(site.rng, dict(kind.uses))
    for block in blocks:
        _fill_block(site, block, weights)
    for paint in site.later:
        paint()
    fill_in(site)
    return vehicles.place_people(site)


def _fill_block(site: Site, block: Points, weights: dict[str, float]) -> None:
    name = site.pick(**weights)
    size = area(block)
    if size < 500 and name not in ('plaza', 'park', 'meadow', 'waste', 'car_park', 'houses'):
        name = site.pick(meadow=2, park=1, car_park=1, plaza=1)
    USES[name](site, block)
