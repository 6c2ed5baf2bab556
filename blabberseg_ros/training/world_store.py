# SPDX-License-Identifier: Apache-2.0
"""Worlds in device memory, and camera crops cut out of them there.

A map is kept as one 32-bit word a pixel (red, green, blue, class) at four resolutions, each half
of the one before, so that a crop of any altitude is read with bilinear taps and little aliasing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blabberseg_ros.sim.render import DETAIL_AMPLITUDE, DETAIL_M, DETAIL_PX, detail_tile
from blabberseg_ros.training.config import CropsConfig
from blabberseg_ros.training.worlds import POINTS, Map

LEVELS = 4


@dataclass(frozen=True)
class Crops:
    """A batch of training images before augmentation.

    Attributes:
        rgb: float32 [B, 3, S, S] in 0..1.
        labels: int64 [B, S, S], class ids.
    """

    rgb: Tensor
    labels: Tensor


class WorldStore:
    """Device-resident maps; worlds are added in order and never leave."""

    def __init__(self, capacity: int, side_px: int, classes: int, device: torch.device) -> None:
        """Reserve memory for `capacity` maps of `side_px` × `side_px` pixels."""
        self._step = 1 << (LEVELS - 1)
        self._side = side_px - side_px % self._step
        sides = [self._side >> level for level in range(LEVELS)]
        sizes = [capacity * side * side for side in sides]
        self._words = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self._sides = torch.tensor(sides, device=device)
        self._offsets = torch.tensor([sum(sizes[:level]) for level in range(LEVELS)],
                                     device=device)
        self._level_views = [
            part.view(capacity, side, side)
            for part, side in zip(self._words.split(sizes), sides, strict=True)]
        self._points = torch.zeros((capacity, classes, POINTS, 2), device=device)
        self._has = torch.zeros((capacity, classes), dtype=torch.bool, device=device)
        self._detail = torch.from_numpy(detail_tile(0))[None, None].to(device)
        self._amplitude = torch.tensor(
            [DETAIL_AMPLITUDE.get(index, 0.0) / 255.0 for index in range(classes)], device=device)
        self.counts = torch.zeros(classes, dtype=torch.int64)
        self.device = device
        self.filled = 0

    def add(self, world: Map) -> None:
        """Store the next world."""
        slot, side = self.filled, self._side
        colour = send(world.rgb, self.device)[:side, :side].float().permute(2, 0, 1)
        classes = send(world.labels, self.device)[:side, :side].int()
        for level, view in enumerate(self._level_views):
            if level:
                colour = functional.avg_pool2d(colour[None], 2)[0]
                classes = classes[1::2, 1::2]
            red, green, blue = colour.round().int()
            view[slot] = red | green << 8 | blue << 16 | classes << 24
        self._points[slot] = send(world.points, self.device)
        self._has[slot] = send(world.counts > 0, self.device)
        self.counts += torch.from_numpy(world.counts)
        self.filled += 1

    def crop(self, batch: int, available: Tensor, size_px: int, resolution_m: float,
             config: CropsConfig) -> Crops:
        """Cut random camera views out of the first `available` worlds, int64 [] on the device.

        Position, heading, mirroring and altitude are random, from torch's generator of the device.
        A view that reaches beyond the edge of its world sees it mirrored there.
        """
        def uniform(*shape: int) -> Tensor:
            return torch.rand((batch, *shape), device=self.device)

        world = torch.minimum((uniform() * available).long(), available - 1)
        span = math.log(config.max_altitude_m / config.min_altitude_m)
        altitude = config.min_altitude_m * torch.exp(span * uniform())
        # Ground pixels from one side of the view to the other.
        extent = altitude * (2.0 * math.tan(math.radians(config.fov_deg) / 2.0) / resolution_m)
        centre = self._centres(world, extent, uniform, config.centred)
        yaw = 2.0 * math.pi * uniform()
        mirror = torch.where(uniform() < 0.5, -1.0, 1.0)

        axis = (torch.arange(size_px, device=self.device) + 0.5) / size_px - 0.5
        u = (extent * mirror)[:, None, None] * axis[None, None, :]
        v = extent[:, None, None] * axis[None, :, None]
        cosine, sine = torch.cos(yaw)[:, None, None], torch.sin(yaw)[:, None, None]
        x = centre[:, 0, None, None] + cosine * u - sine * v
        y = centre[:, 1, None, None] + sine * u + cosine * v

        # The level whose pixels are about as large as the view's; now and then a blurrier one.
        level = torch.log2(extent / size_px) + uniform() - 0.5 + (uniform() < 0.15).float()
        level = level.round().clamp(0, LEVELS - 1).long()
        rgb = self._bilinear(world, level, x, y)
        labels = (self._nearest(world, torch.zeros_like(level), x, y) >> 24).long()
        rgb = rgb + self._detail_of(labels, rgb, x, y, extent / size_px, resolution_m)
        return Crops(rgb.clamp(0.0, 1.0), labels)

    def _detail_of(self, labels: Tensor, rgb: Tensor, x: Tensor, y: Tensor, zoom: Tensor,
                   resolution_m: float) -> Tensor:
        """Return the fine texture that the camera simulator adds when it is low."""
        fade = (1.6 - 2.0 * zoom).clamp(0.0, 1.0)[:, None, None, None]
        to_tile = resolution_m / DETAIL_M * 2.0 / DETAIL_PX
        # The tile is mirrored without end; where each image starts in it does not matter.
        place = torch.stack((x, y), dim=3) * to_tile
        place = (torch.remainder(place + 1.0, 4.0) - 2.0).abs() - 1.0
        tile = self._detail.expand(len(labels), 1, -1, -1)
        texture = functional.grid_sample(tile, place, align_corners=False,
                                         padding_mode='reflection')
        return fade * texture * self._amplitude[labels][:, None] * rgb[:, 1:2] * (255.0 / 110.0)

    def _centres(self, world: Tensor, extent: Tensor, uniform: Callable[..., Tensor],
                 centred: float) -> Tensor:
        """Draw view centres in map pixels, [B, 2]: anywhere, or near a pixel of some class."""
        anywhere = uniform(2) * self._side
        classes = torch.randint(1, len(self.counts), world.shape, device=self.device)
        point = torch.randint(POINTS, world.shape, device=self.device)
        jitter = (uniform(2) - 0.5) * 0.7 * extent[:, None]
        near = self._points[world, classes, point] + jitter
        aimed = (uniform() < centred) & self._has[world, classes]
        return torch.where(aimed[:, None], near, anywhere)

    def _bilinear(self, world: Tensor, level: Tensor, x: Tensor, y: Tensor) -> Tensor:
        scale = (1 << level)[:, None, None]
        x, y = x / scale - 0.5, y / scale - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        rows = []
        for dy in (0, 1):
            left, right = (_unpack(self._read(world, level, x0 + dx, y0 + dy)) for dx in (0, 1))
            rows.append(left + fx * (right - left))
        return (rows[0] + fy * (rows[1] - rows[0])) / 255.0

    def _nearest(self, world: Tensor, level: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._read(world, level, x.floor(), y.floor())

    def _read(self, world: Tensor, level: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Read words [B, S, S] at whole pixel positions, mirrored at the edges."""
        side = self._sides[level][:, None, None]
        start = self._offsets[level][:, None, None] + world[:, None, None] * side * side
        return self._words[start + _mirrored(y, side) * side + _mirrored(x, side)]


def send(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device; where memory can be pinned, without waiting for it."""
    tensor = torch.from_numpy(values)
    if device.type == 'cuda':
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _mirrored(position: Tensor, side: Tensor) -> Tensor:
    """Fold positions at the edges: -1 becomes 0 and `side` becomes `side` - 1."""
    folded = torch.remainder(position.long(), 2 * side)
    return torch.minimum(folded, 2 * side - 1 - folded)


def _unpack(words: Tensor) -> Tensor:
    """Split words [B, S, S] into rgb float32 [B, 3, S, S] in 0..255."""
    return torch.stack([(words >> shift) & 255 for shift in (0, 8, 16)], dim=1).float()
