# SPDX-License-Identifier: Apache-2.0
"""Plane geometry of a settlement: a bent coordinate frame and convex blocks cut by roads."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from blabberseg_ros.sim.canvas import Canvas, Material, Plane, Points
from blabberseg_ros.sim.look import Look
from blabberseg_ros.sim.palette import Palette
from blabberseg_ros.sim.vegetation import Tree


@dataclass(frozen=True)
class Frame:
    """Layout coordinates to world coordinates: a gentle bend, then a rotation.

    Attributes:
        angle_rad: Rotation of the whole layout.
        bends: Each bend: wave vector (2), displacement (2), phase; metres and radians.
    """

    angle_rad: float
    bends: tuple[tuple[float, float, float, float, float], ...] = ()

    def to_world(self, points: ArrayLike) -> Points:
        """Map points [..., 2]."""
        p = np.asarray(points, np.float64)
        q = p.copy()
        for kx, ky, ax, ay, phase in self.bends:
            wave = np.sin(p[..., 0] * kx + p[..., 1] * ky + phase)
            q[..., 0] += ax * wave
            q[..., 1] += ay * wave
        c, s = np.cos(self.angle_rad), np.sin(self.angle_rad)
        return np.stack([c * q[..., 0] - s * q[..., 1], s * q[..., 0] + c * q[..., 1]], axis=-1)

    def pose(self, x: float, y: float, heading_rad: float = 0.0) -> 'Pose':
        """Give the rigid local frame at a layout point; the heading is in the layout too."""
        ahead = (x + 0.5 * np.cos(heading_rad), y + 0.5 * np.sin(heading_rad))
        p, q = self.to_world([(x, y), ahead])
        return Pose(float(p[0]), float(p[1]), float(np.arctan2(q[1] - p[1], q[0] - p[0])))


@dataclass(frozen=True)
class Pose:
    """A position in the world, in metres, and a heading counter-clockwise from east."""

    x_m: float
    y_m: float
    heading_rad: float

    def at(self, points: ArrayLike) -> Points:
        """Map local points [..., 2] (u ahead, v to the left) to the world."""
        p = np.asarray(points, np.float64)
        c, s = np.cos(self.heading_rad), np.sin(self.heading_rad)
        return np.stack([
            self.x_m + c * p[..., 0] - s * p[..., 1],
            self.y_m + s * p[..., 0] + c * p[..., 1]], axis=-1)

    def moved(self, u_m: float, v_m: float, turn_rad: float = 0.0) -> 'Pose':
        """Give the pose at a local offset, turned."""
        x, y = self.at((u_m, v_m))
        return Pose(float(x), float(y), self.heading_rad + turn_rad)


def rectangle(length_m: float, width_m: float, u_m: float = 0.0, v_m: float = 0.0) -> Points:
    """Give the corners of a rectangle around (u, v), counter-clockwise."""
    a, b = length_m / 2, width_m / 2
    return np.array([(u_m - a, v_m - b), (u_m + a, v_m - b),
                     (u_m + a, v_m + b), (u_m - a, v_m + b)])


def clip(polygon: Points, normal: ArrayLike, offset: float) -> Points:
    """Cut a convex polygon to the half plane normal . p <= offset; may come back empty."""
    if len(polygon) == 0:
        return polygon
    side = polygon @ np.asarray(normal, np.float64) - offset
    kept: list[Points] = []
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if side[i] <= 0:
            kept.append(polygon[i])
        if (side[i] < 0 < side[j]) or (side[j] < 0 < side[i]):
            kept.append(polygon[i] + (polygon[j] - polygon[i]) * side[i] / (side[i] - side[j]))
    return np.array(kept) if len(kept) >= 3 else np.empty((0, 2))


def clip_convex(polygon: Points, by: Points) -> Points:
    """Cut a convex polygon to a convex, counter-clockwise one."""
    for i in range(len(by)):
        edge = by[(i + 1) % len(by)] - by[i]
        normal = np.array([edge[1], -edge[0]])
        polygon = clip(polygon, normal, float(normal @ by[i]))
    return polygon


def inset(polygon: Points, margin_m: float) -> Points:
    """Shrink a convex, counter-clockwise polygon by a margin; may come back empty."""
    out = polygon
    for i in range(len(polygon)):
        edge = polygon[(i + 1) % len(polygon)] - polygon[i]
        length = float(np.hypot(*edge))
        if length < 1e-6:
            continue
        normal = np.array([edge[1], -edge[0]]) / length
        out = clip(out, normal, float(normal @ polygon[i]) - margin_m)
    return out


def area(polygon: Points) -> float:
    """Give the area of a polygon, positive when counter-clockwise."""
    if len(polygon) < 3:
        return 0.0
    x, y = polygon[:, 0], polygon[:, 1]
    return float(0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


def inside(polygon: Points, points: ArrayLike, margin_m: float = 0.0) -> np.ndarray:
    """Tell which points [..., 2] lie in a convex, counter-clockwise polygon by a margin."""
    p = np.asarray(points, np.float64)
    result = np.ones(p.shape[:-1], bool)
    for i in range(len(polygon)):
        edge = polygon[(i + 1) % len(polygon)] - polygon[i]
        length = max(float(np.hypot(*edge)), 1e-9)
        normal = np.array([edge[1], -edge[0]]) / length
        result &= (p - polygon[i]) @ normal <= -margin_m
    return result


def subdivide(points: Points, step_m: float = 5.0) -> Points:
    """Add points along the edges of a closed polygon, so that it can be bent."""
    out = []
    for i in range(len(points)):
        a, b = points[i], points[(i + 1) % len(points)]
        count = max(1, int(np.hypot(*(b - a)) / step_m))
        out.append(a + (b - a) * (np.arange(count) / count)[:, None])
    return np.concatenate(out)


@dataclass(frozen=True)
class Grid:
    """Axes of a block: origin at its centre, u along its longest side.

    Attributes:
        origin: Layout point.
        heading_rad: Direction of u in the layout.
        length_m: Extent along u.
        width_m: Extent along v.
    """

    origin: tuple[float, float]
    heading_rad: float
    length_m: float
    width_m: float

    def to_layout(self, points: ArrayLike) -> Points:
        """Map (u, v) points [..., 2] to the layout."""
        return Pose(*self.origin, self.heading_rad).at(points)


def grid_of(polygon: Points) -> Grid:
    """Fit axes to a convex polygon along its longest side."""
    edges = np.roll(polygon, -1, axis=0) - polygon
    longest = edges[int(np.argmax(np.hypot(edges[:, 0], edges[:, 1])))]
    heading = float(np.arctan2(longest[1], longest[0]))
    axes = np.array([(np.cos(heading), np.sin(heading)), (-np.sin(heading), np.cos(heading))])
    local = polygon @ axes.T
    low, high = local.min(0), local.max(0)
    x, y = ((low + high) / 2) @ axes
    return Grid((float(x), float(y)), heading, *(float(v) for v in high - low))


@dataclass
class Site:
    """What every builder needs: the canvas, the bent frame, materials, light and randomness.

    Attributes:
        canvas: Painted in world coordinates.
        frame: Layout to world.
        palette: Materials of this world.
        look: Light and season of this world.
        rng: Source of randomness.
        species: Weights of the kinds of trees.
        roofs: Weights of the roof coverings.
        trees: Crowns to plant when the ground is done.
        later: Painters to run when all ground and buildings are done (cars).
        crowds: Groups of people to place last: layout x, y, number, spread in metres.
    """

    canvas: Canvas
    frame: Frame
    palette: Palette
    look: Look
    rng: np.random.Generator
    species: dict[str, float]
    roofs: dict[str, float]
    trees: list[Tree] = field(default_factory=list)
    later: list[Callable[[], None]] = field(default_factory=list)
    crowds: list[tuple[float, float, int, float]] = field(default_factory=list)

    def chance(self, probability: float) -> bool:
        """Toss a coin."""
        return bool(self.rng.random() < probability)

    def pick(self, **weights: float) -> str:
        """Choose a name by weight."""
        names = list(weights)
        total = np.cumsum([weights[name] for name in names])
        return names[int(np.searchsorted(total, self.rng.random() * total[-1]))]

    def visible(self, polygon: Points) -> bool:
        """Tell whether a layout polygon may touch the map."""
        world = self.frame.to_world(polygon)
        half = self.canvas.half_m
        return bool(np.all(world.max(0) > -half) and np.all(world.min(0) < half))

    def material(self, name: str, label: int | None = None) -> Material:
        """Draw a material from the palette."""
        return self.palette.draw(self.rng, name, label)

    def paint(
        self, polygon: Points, material: Material | str, *, heading_rad: float = 0.0,
        ragged_m: float = 0.0, height_m: float = 0.0,
    ) -> int:
        """Paint a layout polygon.

        Args:
            polygon: Layout coordinates.
            material: Or the name of a recipe.
            heading_rad: Of the rows, in the layout.
            ragged_m: How far the outline wanders, for natural borders.
            height_m: Above the ground.

        Returns:
            Region number.
        """
        if len(polygon) < 3:
            return -1
        if isinstance(material, str):
            material = self.material(material)
        points = subdivide(polygon, 1.5 if ragged_m else 5.0)
        if ragged_m:
            points = points + self.wander(len(points), ragged_m)
        x, y = (float(v) for v in points[0])
        heading = self.frame.pose(x, y, heading_rad).heading_rad
        region = self.canvas.region(material, Plane(height_m), heading)
        self.canvas.fill(self.frame.to_world(points), region)
        return region

    def line(
        self, points: ArrayLike, width_m: float, material: Material | str,
        height_m: float = 0.0, closed: bool = False,
    ) -> None:
        """Paint a line of layout points."""
        if isinstance(material, str):
            material = self.material(material)
        path = np.asarray(points, np.float64)
        dense = subdivide(path) if closed else along(path)
        region = self.canvas.region(material, Plane(height_m))
        self.canvas.stroke(self.frame.to_world(dense), width_m, region, closed)

    def wander(self, count: int, amplitude_m: float) -> Points:
        """Give smooth closed noise for an outline of `count` points."""
        t = np.linspace(0, 2 * np.pi, count, endpoint=False)[:, None]
        total = np.zeros((count, 2))
        for octave in (2, 3, 5, 9, 17, 33):
            if octave * 2 < count:
                phase = self.rng.uniform(0, 2 * np.pi, 2)
                total += np.sin(octave * t + phase) * self.rng.normal(0, 1, 2) / octave ** .5
        return total * amplitude_m * 0.6

    def blob(self, x: float, y: float, radius_m: float, roughness: float = 0.2) -> Points:
        """Give an irregular round outline around a layout point."""
        count = max(10, int(radius_m * 5))
        t = np.linspace(0, 2 * np.pi, count, endpoint=False)
        stretch = self.rng.uniform(0.7, 1.0)
        circle = np.stack([np.cos(t), stretch * np.sin(t)], -1) * radius_m
        circle += self.wander(count, roughness * radius_m * 0.8)
        turned = Pose(x, y, float(self.rng.uniform(0, np.pi)))
        return turned.at(circle)


def along(path: Points, step_m: float = 5.0) -> Points:
    """Add points along an open line."""
    parts = []
    for a, b in pairwise(path):
        count = max(1, int(np.hypot(*(b - a)) / step_m))
        parts.append(a + (b - a) * (np.arange(count) / count)[:, None])
    return np.concatenate([*parts, path[-1:]])
