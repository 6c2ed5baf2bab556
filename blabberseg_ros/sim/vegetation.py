# SPDX-License-Identifier: Apache-2.0
"""Tree crowns: a bank of height sprites, and the layer that they are planted on."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from blabberseg_ros.sim.canvas import Canvas, Colour
from blabberseg_ros.sim.look import Look
from blabberseg_ros.sim.noise import spectral_tile
from blabberseg_ros.sim.palette import hsv

_SPRITE_PX = 96
_VARIANTS = 6
KINDS = ('broadleaf', 'conifer', 'bare', 'shrub', 'palm')


@dataclass(frozen=True)
class Tree:
    """One crown.

    Attributes:
        x_m: East.
        y_m: North.
        radius_m: Of the crown.
        height_m: Of its top.
        kind: One of `KINDS`.
        colour: Sunlit leaves, RGB in 0..255.
    """

    x_m: float
    y_m: float
    radius_m: float
    height_m: float
    kind: str
    colour: Colour


@dataclass(frozen=True)
class TreeLayer:
    """All crowns, drawn; 0 where there is none.

    Attributes:
        crown: uint16 [N, N], crown number, from 1.
        height_cm: int16 [N, N].
        cover: uint8 [N, N], share of the ground hidden, 255 for all.
        colour: float32 [T + 1, 3], by crown number.
    """

    crown: NDArray[np.uint16]
    height_cm: NDArray[np.int16]
    cover: NDArray[np.uint8]
    colour: NDArray[np.float32]


def tree_colour(rng: np.random.Generator, look: Look, kind: str) -> Colour:
    """Draw the colour of a crown's leaves, season included."""
    value = look.leaf_value * rng.uniform(.8, 1.22)
    if kind == 'bare':
        return hsv(rng.uniform(18, 42), rng.uniform(.06, .2), rng.uniform(.30, .52))
    if kind == 'conifer':
        return hsv(rng.normal(115, 15), rng.uniform(.16, .36), value * .8)
    if kind == 'palm':
        return hsv(rng.normal(85, 10), rng.uniform(.2, .4), value)
    if rng.random() < look.autumn:
        return hsv(rng.normal(look.autumn_hue, 8), rng.uniform(.2, .46), value * 1.25)
    if rng.random() < 0.025:  # blossom or copper leaves
        return hsv(rng.uniform(-25, 15), rng.uniform(.06, .25), rng.uniform(.3, .62))
    return hsv(rng.normal(look.leaf_hue, 9), rng.uniform(.22, .46), value)


def plant(canvas: Canvas, trees: list[Tree], look: Look, rng: np.random.Generator) -> TreeLayer:
    """Draw all crowns, the lower ones first.

    Args:
        canvas: Gives size and resolution.
        trees: What to draw.
        look: Grain of the leaves.
        rng: Source of randomness.
    """
    size = canvas.size_px
    layer = TreeLayer(
        np.zeros((size, size), np.uint16), np.zeros((size, size), np.int16),
        np.zeros((size, size), np.uint8),
        np.zeros((min(len(trees), 65534) + 1, 3), np.float32))
    bank = _sprite_bank(rng)
    for number, tree in enumerate(sorted(trees, key=lambda t: t.height_m)[:65534], 1):
        layer.colour[number] = tree.colour
        variants = bank[tree.kind]
        _stamp(canvas, layer, number, tree, variants[rng.integers(len(variants))])
    return layer


def _stamp(
    canvas: Canvas, layer: TreeLayer, number: int, tree: Tree,
    sprite: tuple[NDArray[np.float32], NDArray[np.uint8]],
) -> None:
    side = max(3, round(2.2 * tree.radius_m / canvas.resolution_m))
    col, row = np.rint(canvas.to_px((tree.x_m, tree.y_m))).astype(int) - side // 2
    c0, r0 = max(col, 0), max(row, 0)
    c1, r1 = min(col + side, canvas.size_px), min(row + side, canvas.size_px)
    if c0 >= c1 or r0 >= r1:
        return
    mode = cv2.INTER_AREA if side < _SPRITE_PX else cv2.INTER_LINEAR
    height = cv2.resize(sprite[0], (side, side), interpolation=mode)
    cover = cv2.resize(sprite[1], (side, side), interpolation=mode)
    view = np.s_[r0:r1, c0:c1]
    part = np.s_[r0 - row:r1 - row, c0 - col:c1 - col]
    height_cm = (height[part] * (100.0 * tree.height_m)).astype(np.int16)
    above = (cover[part] > 40) & (height_cm >= layer.height_cm[view])
    layer.height_cm[view][above] = height_cm[above]
    layer.cover[view][above] = cover[part][above]
    layer.crown[view][above] = number


def _sprite_bank(
    rng: np.random.Generator,
) -> dict[str, list[tuple[NDArray[np.float32], NDArray[np.uint8]]]]:
    bank: dict[str, list[tuple[NDArray[np.float32], NDArray[np.uint8]]]] = {}
    for kind in KINDS:
        sprites = []
        for _ in range(_VARIANTS):
            height, cover = _sprite(rng, kind)
            for turn in range(4):
                sprites.append((np.ascontiguousarray(np.rot90(height, turn)),
                                np.ascontiguousarray(np.rot90(cover, turn))))
        bank[kind] = sprites
    return bank


def _sprite(
    rng: np.random.Generator, kind: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Make one crown: relative height 0 to 1 and cover, in a square of 2.2 radii."""
    axis = ((np.arange(_SPRITE_PX) + 0.5) / _SPRITE_PX * 2.2 - 1.1).astype(np.float32)
    y, x = np.repeat(axis[:, None], _SPRITE_PX, 1), np.repeat(axis[None], _SPRITE_PX, 0)
    if kind == 'bare':
        return _bare_sprite(rng, x, y)
    angle = np.arctan2(y, x)
    edge = np.ones_like(x)
    for lobe in range(2, 8):
        edge += rng.normal(0, .11 / lobe ** .6) * np.cos(lobe * angle + rng.uniform(0, 6.3))
    if kind == 'palm':
        edge *= 0.62 + 0.38 * np.abs(np.cos(angle * rng.integers(5, 7) + rng.uniform(0, 6.3)))
    leaves = spectral_tile(rng, _SPRITE_PX, 5, 34, 1.3)
    fine = spectral_tile(rng, _SPRITE_PX, 2, 6, 0.5)
    radius = np.hypot(x, y) / edge + 0.05 * leaves + 0.03 * fine
    inside = np.clip(1.0 - radius, 0.0, 1.0)
    if kind == 'conifer':
        spokes = 0.022 * np.cos(angle * rng.integers(9, 14) + rng.uniform(0, 6.3))
        dome = 0.4 + 0.6 * inside + spokes * (radius > .15)
    else:
        dome = 0.5 + 0.5 * np.sqrt(1.0 - (1.0 - inside) ** 2)
    height = dome * (1.0 + 0.075 * leaves + 0.022 * fine)
    cover = np.clip((1.0 - radius) * 9.0, 0.0, 1.0) * np.clip(0.97 + 0.08 * leaves, 0.75, 1.0)
    return (
        np.clip(np.where(cover > 0.12, height, 0.0), 0.0, 1.0).astype(np.float32),
        (cover * 255).astype(np.uint8),
    )


def _bare_sprite(
    rng: np.random.Generator, x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Make a leafless crown: branches drawn as forking lines over a thin veil of twigs."""
    image = np.zeros(x.shape, np.uint8)
    centre = _SPRITE_PX / 2
    ends = [(centre, centre, rng.uniform(0, 6.3), _SPRITE_PX * 0.2, 3)
            for _ in range(int(rng.integers(5, 9)))]
    while ends:
        px, py, heading, length, level = ends.pop()
        qx, qy = px + length * np.cos(heading), py + length * np.sin(heading)
        cv2.line(image, (round(px * 8), round(py * 8)), (round(qx * 8), round(qy * 8)),
                 (90, 150, 200, 235)[level], 1, cv2.LINE_AA, 3)
        if level:
            ends += [(qx, qy, heading + rng.normal(0, .5), length * rng.uniform(.5, .85),
                      level - 1) for _ in range(3)]
    twigs = 70 + 45 * spectral_tile(rng, _SPRITE_PX, 2, 12, 0.6)
    hull = np.clip((1.0 - np.hypot(x, y) + 0.12 * spectral_tile(rng, _SPRITE_PX, 12, 60)) * 6,
                   0, 1)
    cover = np.maximum(image.astype(np.float32), np.clip(twigs, 42, 255)) * hull
    height = np.where(image > 60, 0.92 - 0.3 * np.hypot(x, y), 0.0) * (hull > 0.2)
    return np.clip(height, 0, 1).astype(np.float32), cover.astype(np.uint8)
