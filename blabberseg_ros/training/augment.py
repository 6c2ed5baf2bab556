# SPDX-License-Identifier: Apache-2.0
"""Photometric augmentation on the device: what stands between our world and a real camera.

Each function takes and returns rgb float [B, 3, H, W] in about 0..1 and draws its parameters per
image from torch's own generator of the device, which `torch.compile` can fuse and a CUDA graph can
replay. Nothing here moves a pixel, so labels stay as they are.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Rows turn RGB into luma and two colour axes; a hue is an angle between these.
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
_SHADOW_TONE = (1.0, 0.9, 0.75)
_JPEG_BLOCK = 8
# Share of images that are left alone: the simulated camera is a camera, too.
_AS_RENDERED = 0.12


class Augmentation(nn.Module):
    """Makes a rendered image look like it came from some camera on some day."""

    _to_yiq: Tensor
    _from_yiq: Tensor
    _shadow_tone: Tensor
    _basis: Tensor

    def __init__(self, classes: int, strength: float = 1.0) -> None:
        """Remember what to do, and keep what it takes on the device.

        Args:
            classes: number of classes, 0 included.
            strength: scale of every change; 0 leaves only the rounding to 8 bits.
        """
        super().__init__()
        self._classes = classes
        self._strength = strength
        to_yiq = torch.tensor(_TO_YIQ)
        self.register_buffer('_to_yiq', to_yiq)
        self.register_buffer('_from_yiq', torch.linalg.inv(to_yiq))
        self.register_buffer('_shadow_tone', torch.tensor(_SHADOW_TONE)[:, None, None])
        self.register_buffer('_basis', _cosine_basis())

    def forward(self, rgb: Tensor, labels: Tensor) -> Tensor:
        """Change images.

        Args:
            rgb: float [B, 3, H, W] in 0..1.
            labels: int64 [B, H, W].

        Returns:
            float [B, 3, H, W], 8-bit values divided by 255.
        """
        if self._strength > 0:
            draw = _Draw(rgb, self._strength)
            rendered = rgb
            rgb = _recolour_classes(rgb, labels, self._classes, draw)
            rgb = _cast_shadows(rgb, self._shadow_tone, draw)
            rgb = _illuminate(rgb, draw)
            rgb = _mix_colours(rgb, self._to_yiq, self._from_yiq, draw)
            rgb = _expose(rgb, draw)
            rgb = _haze(rgb, draw)
            rgb = _blur_or_sharpen(rgb, draw)
            rgb = _add_noise(rgb, draw)
            rgb = _compress(rgb, self._basis, draw)
            rgb = torch.where(draw.chance(_AS_RENDERED) > 0, rendered, rgb)
        return (rgb * 255.0).round().clamp(0.0, 255.0) / 255.0


class _Draw:
    """Random numbers for a batch; each call gives a tensor [B, ...]."""

    def __init__(self, rgb: Tensor, strength: float) -> None:
        self._batch = len(rgb)
        self._device = rgb.device
        self.strength = strength

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((self._batch, *shape), device=self._device)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand((self._batch, *shape), device=self._device)

    def chance(self, share: float) -> Tensor:
        """Return [B, 1, 1, 1]: 1 for a share of the images, 0 for the others."""
        return (self.uniform(1, 1, 1) < share).float()

    def clouds(self, cells: int, height: int, width: int, channels: int = 1) -> Tensor:
        """Return smooth noise of about unit variance, [B, channels, H, W]."""
        coarse = self.normal(channels, cells + 1, cells + 1)
        return functional.interpolate(
            coarse, (height, width), mode='bicubic', align_corners=False)


def _recolour_classes(rgb: Tensor, labels: Tensor, classes: int, draw: _Draw) -> Tensor:
    """Tint each class on its own and lay a random texture over it."""
    batch, _, height, width = rgb.shape
    tint = 0.05 * draw.normal(classes, 3) + 0.12 * draw.normal(classes, 1)
    gain = torch.exp(draw.strength * draw.chance(0.7)[:, 0] * tint)
    amount = draw.strength * draw.chance(0.5)[:, 0] * 0.10 * draw.normal(classes, 1).abs()
    table = torch.cat((gain, amount), dim=2).flatten(0, 1)
    offset = classes * torch.arange(batch, device=labels.device)[:, None, None]
    looked_up = table[labels + offset].permute(0, 3, 1, 2)
    texture = (draw.normal(1, height, width) + draw.clouds(88, height, width)
               + draw.clouds(22, height, width)) / 1.7
    return rgb * looked_up[:, :3] * (1.0 + looked_up[:, 3:] * texture)


def _cast_shadows(rgb: Tensor, tone: Tensor, draw: _Draw) -> Tensor:
    """Darken blobs with soft or hard edges, bluish as a sky-lit shadow is."""
    height, width = rgb.shape[2:]
    blobs = draw.clouds(5, height, width) + 0.4 * draw.clouds(17, height, width)
    edge = 2.0 + 30.0 * draw.uniform(1, 1, 1)
    mask = torch.sigmoid((blobs - 0.6 - 0.6 * draw.uniform(1, 1, 1)) * edge)
    depth = draw.strength * draw.chance(0.35) * (0.2 + 0.5 * draw.uniform(1, 1, 1)) * tone
    return rgb * (1.0 - mask * depth.clamp(max=0.8))


def _illuminate(rgb: Tensor, draw: _Draw) -> Tensor:
    """Let the brightness drift over the image and fall off towards its corners."""
    height, width = rgb.shape[2:]
    drift = 0.10 * draw.chance(0.5) * draw.clouds(2, height, width)
    y = torch.linspace(-1.0, 1.0, height, device=rgb.device)[:, None]
    x = torch.linspace(-1.0, 1.0, width, device=rgb.device)[None, :]
    fall_off = -0.25 * draw.chance(0.3) * draw.uniform(1, 1, 1) * (x * x + y * y)
    return rgb * torch.exp(draw.strength * (drift + fall_off))


def _mix_colours(rgb: Tensor, to_yiq: Tensor, from_yiq: Tensor, draw: _Draw) -> Tensor:
    """Apply white balance, saturation, a turn of the hue and some channel cross-talk."""
    s = draw.strength
    saturation = torch.exp(s * 0.30 * draw.normal(1, 1))
    saturation = saturation * (1.0 - draw.chance(0.04)[:, 0])
    angle = s * math.radians(7.0) * draw.normal(1, 1)
    cosine, sine = saturation * torch.cos(angle), saturation * torch.sin(angle)
    zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
    turn = torch.cat((torch.cat((one, zero, zero), 2),
                      torch.cat((zero, cosine, -sine), 2),
                      torch.cat((zero, sine, cosine), 2)), 1)
    hue = from_yiq @ turn @ to_yiq
    balance = torch.exp(s * 0.07 * draw.normal(3, 1))
    cross_talk = torch.eye(3, device=rgb.device) + s * 0.03 * draw.normal(3, 3)
    matrix = balance * (cross_talk @ hue)
    return torch.einsum('bij,bjhw->bihw', matrix, rgb).clamp(0.0, 2.0)


def _expose(rgb: Tensor, draw: _Draw) -> Tensor:
    """Change gain, contrast, offset and gamma."""
    s = draw.strength
    mean = rgb.mean((1, 2, 3), keepdim=True)
    contrast = torch.exp(s * 0.25 * draw.normal(1, 1, 1))
    gain = torch.exp(s * (0.30 * draw.normal(1, 1, 1) - 0.10))
    offset = s * 0.04 * draw.normal(1, 1, 1)
    rgb = gain * ((rgb - mean) * contrast + mean) + offset
    gamma = torch.exp(s * 0.25 * draw.normal(1, 1, 1))
    return rgb.clamp(1e-4, 1.5) ** gamma


def _haze(rgb: Tensor, draw: _Draw) -> Tensor:
    """Mix in airlight."""
    amount = draw.strength * draw.chance(0.35) * 0.5 * draw.uniform(1, 1, 1) ** 2
    airlight = 0.55 + 0.35 * draw.uniform(1, 1, 1) + 0.03 * draw.normal(3, 1, 1)
    return rgb + amount.clamp(max=0.8) * (airlight - rgb)


def _blur_or_sharpen(rgb: Tensor, draw: _Draw) -> Tensor:
    """Blur a part of the images, sharpen another as cameras do."""
    radius = 4
    sigma = 0.4 + 1.6 * draw.uniform(1) ** 2
    tap = torch.arange(-radius, radius + 1, device=rgb.device)
    kernel = torch.exp(-0.5 * (tap / sigma) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    blurred = rgb
    for axis in (2, 3):
        pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = functional.pad(blurred, pad, mode='replicate')
        length = rgb.shape[axis]
        blurred = sum(  # type: ignore[assignment]
            kernel[:, index, None, None, None] * padded.narrow(axis, index, length)
            for index in range(2 * radius + 1))
    choice = draw.uniform(1, 1, 1)
    sharpening = draw.strength * draw.uniform(1, 1, 1) * (choice > 0.75)
    amount = torch.where(choice < 0.4, -min(draw.strength, 1.0), sharpening)
    return rgb + amount * (rgb - blurred)


def _add_noise(rgb: Tensor, draw: _Draw) -> Tensor:
    """Add sensor noise, fine or in grains of two pixels, in colour or grey."""
    height, width = rgb.shape[2:]
    fine = draw.normal(3, height, width)
    grain = functional.interpolate(
        draw.normal(1, height // 2, width // 2), (height, width), mode='bilinear')
    level = draw.strength * draw.chance(0.6) * 0.035 * draw.uniform(1, 1, 1) ** 2
    return rgb + level * (fine + draw.chance(0.5) * grain)


def _compress(rgb: Tensor, basis: Tensor, draw: _Draw) -> Tensor:
    """Round the coefficients of 8×8 cosine transforms, coarser for higher frequencies."""
    batch, channels, height, width = rgb.shape
    if height % _JPEG_BLOCK or width % _JPEG_BLOCK:
        return rgb
    blocks = rgb.view(batch, channels, height // 8, 8, width // 8, 8)
    coefficients = torch.einsum('ui,bcyixj,vj->bcyuxv', basis, blocks, basis)
    order = torch.arange(8, device=rgb.device)
    frequency = (order[:, None] + order[None, :]).view(1, 1, 1, 8, 1, 8)
    quality = draw.uniform(1, 1, 1)[..., None, None] ** 2
    step = (0.01 + 0.08 * quality) * (1.0 + 0.6 * frequency)
    rounded = torch.round(coefficients / step) * step
    back = torch.einsum('ui,bcyuxv,vj->bcyixj', basis, rounded, basis).reshape(rgb.shape)
    amount = draw.chance(0.4) * min(draw.strength, 1.0)
    return rgb + amount * (back - rgb)


def _cosine_basis() -> Tensor:
    """Return the orthonormal cosine transform of length 8: [frequency, position]."""
    position = torch.arange(8) + 0.5
    order = torch.arange(8)[:, None]
    basis = torch.cos(math.pi / 8 * order * position) * math.sqrt(2 / 8)
    basis[0] /= math.sqrt(2.0)
    return basis
