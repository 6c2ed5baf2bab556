# SPDX-License-Identifier: Apache-2.0
"""From region numbers to colour, labels and height, with one sun and its cast shadows."""

import cv2
import numpy as np
from numpy.typing import NDArray

from blabberseg_ros.sim import classes
from blabberseg_ros.sim.canvas import Canvas, RegionTable, Wave
from blabberseg_ros.sim.look import Look
from blabberseg_ros.sim.noise import spectral_tile
from blabberseg_ros.sim.vegetation import TreeLayer

_STRIP_PX = 64  # divides the noise tiles; a strip's working set stays in the CPU cache
_PENUMBRA_CM = np.float32(25.0)
_LEAF_PENUMBRA_CM = np.float32(500.0)

Image = NDArray[np.uint8]


def shade(
    canvas: Canvas, trees: TreeLayer, look: Look, rng: np.random.Generator
) -> tuple[Image, Image, NDArray[np.float32]]:
    """Turn a painted map into pictures.

    Args:
        canvas: Painted regions.
        trees: Crowns over them.
        look: Light and film.
        rng: Source of randomness.

    Returns:
        rgb uint8 [N, N, 3], labels uint8 [N, N], height in metres float32 [N, N].
    """
    table = canvas.table()
    ground_cm = _region_height_cm(canvas.regions, table)
    hidden = trees.height_cm < ground_cm  # a crown under an eave
    trees.crown[hidden] = 0
    height_cm = np.maximum(ground_cm, np.where(hidden, np.int16(0), trees.height_cm))
    shadow_cm = cast_shadow_cm(height_cm, canvas.resolution_m, look)
    noise = _Noise(rng, canvas.size_px, canvas.resolution_m, look)
    waves = wave_table(rng)
    labels = table.label[canvas.regions]
    labels[trees.crown > 0] = classes.TREE
    rgb = np.empty((canvas.size_px, canvas.size_px, 3), np.uint8)
    for top in range(0, canvas.size_px, _STRIP_PX):
        rows = slice(top, min(top + _STRIP_PX, canvas.size_px))
        colour = _ground_colour(canvas.regions[rows], table, noise, waves, look, rows)
        _paint_trees(colour, trees, noise, look, canvas.resolution_m, rows)
        # Light filters into a crown: its own shadow is soft, only that of tall things is hard.
        leafy = trees.crown[rows] > 0
        excess = shadow_cm[rows] - height_cm[rows].astype(np.float32)
        dark = np.clip(excess / np.where(leafy, _LEAF_PENUMBRA_CM, _PENUMBRA_CM), 0.0, 1.0)
        dark *= np.where(leafy, np.float32(0.8), np.float32(1.0))
        colour *= 1.0 - dark[..., None] * (1.0 - np.asarray(look.shadow, np.float32))
        rgb[rows] = grade(colour, look)
    if look.blur_px > 0.25:
        cv2.GaussianBlur(rgb, (0, 0), look.blur_px, dst=rgb)
    return rgb, labels, height_cm.astype(np.float32) * np.float32(0.01)


def _region_height_cm(regions: NDArray[np.uint16], table: RegionTable) -> NDArray[np.int16]:
    """Evaluate each region's plane, in centimetres."""
    level = np.rint(table.plane[0] * 100.0)
    sloped = np.any(table.plane[1:] != 0.0, axis=0)
    heights = np.where(sloped, 0, level).astype(np.int16)[regions]
    row, col = np.nonzero(sloped[regions])
    number = regions[row, col]
    value = (table.plane[0][number] + table.plane[1][number] * col
             + table.plane[2][number] * row)
    heights[row, col] = np.clip(value * 100.0, 0.0, 9000.0).astype(np.int16)
    return heights


def cast_shadow_cm(
    height_cm: NDArray[np.int16], resolution_m: float, look: Look
) -> NDArray[np.int16]:
    """Give the height of the shadow's upper edge over each pixel.

    Doubling: the shadow over 2**(k+1) steps is the greater of that over 2**k steps here, and the
    same 2**k steps further towards the sun, lowered by what the ray has climbed. So the cost grows
    with the logarithm of the longest shadow.

    Returns:
        int16 [N, N]; a pixel is in shadow where this exceeds its own height.
    """
    east, north = np.cos(look.sun_azimuth_rad), np.sin(look.sun_azimuth_rad)
    climb_cm = 100.0 * resolution_m * np.tan(look.sun_elevation_rad)
    reach_px = float(height_cm.max()) / climb_cm + 2.0
    edge = np.full_like(height_cm, -30000)
    _raise_towards(edge, height_cm, east, -north, climb_cm)
    step = 1
    while step < reach_px:
        _raise_towards(edge, edge.copy(), east * step, -north * step, climb_cm * step)
        step *= 2
    return edge


def _raise_towards(
    target: NDArray[np.int16], source: NDArray[np.int16], dx: float, dy: float, drop_cm: float
) -> None:
    """Raise target(p) to source(p + (dx, dy)) - drop where that is higher."""
    cols, rows = round(dx), round(dy)
    height, width = target.shape
    if abs(rows) >= height or abs(cols) >= width:
        return
    here = np.s_[max(0, -rows):height - max(0, rows), max(0, -cols):width - max(0, cols)]
    there = np.s_[max(0, rows):height - max(0, -rows), max(0, cols):width - max(0, -cols)]
    np.maximum(target[here], source[there] - np.int16(round(drop_cm)), out=target[here])


class _Noise:
    """Four octave bands; all but the lowest are tiles, widened to the map once."""

    def __init__(
        self, rng: np.random.Generator, size_px: int, resolution_m: float, look: Look
    ) -> None:
        scale = look.noise_scale * 0.1 / resolution_m
        low = spectral_tile(rng, 256, 3, 80, 1.3)
        side = max(16, round(256 * size_px * resolution_m / 300.0 / look.noise_scale))
        self.low = cv2.resize(
            np.tile(low, (3, 3))[:side, :side], (size_px, size_px),
            interpolation=cv2.INTER_CUBIC)
        self._size = size_px
        self.mid = self._widen(spectral_tile(rng, 1024, 3 * scale, 140 * scale, 1.6))
        self.clump = self._widen(spectral_tile(rng, 512, 2.0 * scale, 30 * scale, 1.25))
        self.grain = self._widen(spectral_tile(rng, 512, 1.2, 4.0, 0.6))

    def _widen(self, tile: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.tile(tile, (1, -(-self._size // tile.shape[1])))[:, :self._size]

    @staticmethod
    def strip(wide: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
        start = rows.start % wide.shape[0]
        return wide[start:start + rows.stop - rows.start]


def wave_table(rng: np.random.Generator) -> NDArray[np.float32]:
    """Tabulate one period of each `canvas.Wave`.

    Returns:
        float32 [6, 256], values around -1 to 1.
    """
    t = np.arange(256, dtype=np.float32) / 256.0
    table = np.zeros((len(Wave), 256), np.float32)
    table[Wave.SINE] = np.sin(2 * np.pi * t)
    table[Wave.JOINT] = np.where(t < 0.1, -1.0, 0.1)
    table[Wave.SAW] = 1.0 - 2.0 * t
    table[Wave.BARS] = np.repeat(rng.uniform(-1, 1, 8), 32)
    crop = np.repeat(rng.uniform(0.45, 1.0, 8), 32) * np.cos(2 * np.pi * 8 * t)
    table[Wave.CROP] = crop + np.repeat(rng.uniform(-.35, .35, 8), 32)
    table[Wave.TRAMLINES] = np.where((np.abs(t - .47) < .011) | (np.abs(t - .53) < .011), -1, 0)
    return table


def _ground_colour(
    regions: NDArray[np.uint16], table: RegionTable, noise: _Noise, waves: NDArray[np.float32],
    look: Look, rows: slice,
) -> NDArray[np.float32]:
    """Colour a strip of regions: blend of two colours, grain, rows."""
    number = regions.astype(np.intp)
    low, mid, clump, grain = (weight.take(number) for weight in table.weights)
    blend = low * noise.low[rows] + mid * noise.strip(noise.mid, rows)
    # A soft limit: a hard one would make two flat tones, like camouflage.
    blend = np.clip(0.42 + 0.75 * look.wear * blend, -0.15, 1.15)
    texture = 1.0 + look.clump * clump * noise.strip(noise.clump, rows)
    texture += look.grain * grain * noise.strip(noise.grain, rows)
    for layer in range(2):
        striped = np.flatnonzero((table.amplitude[layer] != 0.0).take(number))
        which = number.ravel()[striped]
        row, col = np.divmod(striped, regions.shape[1])
        per_col, per_row, offset = table.phase[layer]
        # Rows are never perfectly straight: the clump noise bends them a little.
        bend = 0.02 * noise.strip(noise.clump, rows).ravel()[striped]
        phase = bend + per_col[which] * col + per_row[which] * (row + rows.start) + offset[which]
        wave = waves.ravel()[table.wave[layer][which] * 256
                             + ((phase * 256.0).astype(np.int64) & 255)]
        texture.ravel()[striped] += table.amplitude[layer][which] * wave
    first = table.colour.take(number, axis=0)
    second = table.second.take(number, axis=0)
    first += (second - first) * blend[..., None]
    first *= np.maximum(texture, 0.2)[..., None]
    return first


def _paint_trees(
    colour: NDArray[np.float32], trees: TreeLayer, noise: _Noise, look: Look,
    resolution_m: float, rows: slice,
) -> None:
    """Blend the crowns over a strip: lit towards the sun, dark away from it and between leaves."""
    size = trees.crown.shape[1]
    flat = np.flatnonzero(trees.crown[rows]) + rows.start * size
    if not flat.size:
        return
    height = trees.height_cm.ravel()
    east, north, _ = look.sun
    light = np.zeros(flat.size, np.float32)
    for reach, weight in ((1, .3), (3, .5), (6, .45)):
        step = round(-north * reach) * size + round(east * reach)
        ahead = np.clip(flat + step, 0, height.size - 1)
        behind = np.clip(flat - step, 0, height.size - 1)
        rise = height[behind].astype(np.float32) - height[ahead]
        light += np.float32(weight) * np.tanh(rise / (200.0 * resolution_m * reach))
    local = flat - rows.start * size
    light = 0.92 + look.relief * 0.36 * light
    light += look.clump * 0.07 * noise.strip(noise.clump, rows).ravel()[local]
    light += look.grain * 0.08 * noise.strip(noise.grain, rows).ravel()[local]
    np.clip(light, 0.35, 1.6, out=light)
    leaves = trees.colour[trees.crown.ravel()[flat]] * light[:, None]
    cover = trees.cover.ravel()[flat].astype(np.float32)[:, None] / 255.0
    pixels = colour.reshape(-1, 3)
    pixels[local] += (leaves - pixels[local]) * cover


def grade(colour: NDArray[np.float32], look: Look) -> Image:
    """Apply saturation, exposure, white balance, gamma and haze.

    Args:
        colour: float32 [..., 3] in 0..255.
        look: Film and haze.

    Returns:
        uint8 [..., 3].
    """
    weights = np.asarray((0.3, 0.59, 0.11), np.float32)
    grey = (colour @ weights)[..., None]
    gain = np.asarray(look.white_balance, np.float32) * np.float32(look.exposure / 255.0)
    value = (grey + (colour - grey) * np.float32(look.saturation)) * gain
    np.clip(value, 0.0, 1.25, out=value)
    value = np.power(value, np.float32(look.gamma))
    haze = np.asarray(look.haze_colour, np.float32) * np.float32(look.haze)
    value = value * np.float32(255.0 * (1.0 - look.haze)) + haze
    return np.clip(value, 0.0, 255.0).astype(np.uint8)
