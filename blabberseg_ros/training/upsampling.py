# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions and enlargements as matrix products, for training.

With a kernel as large as its stride, a transposed convolution is one matrix product a pixel and a
rearrangement. cuDNN has no good kernel for it with 16 channels in and 1 out; a product is fast.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.clipseg import ClipSeg


class ProductUpsampling(nn.ConvTranspose2d):
    """Transposed convolution whose kernel equals its stride, as a matrix product."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map [N, C, H, W] to [N, O, H · k, W · k]."""
        n, channels, height, width = x.shape
        out, k = self.out_channels, self.kernel_size[0]
        y = x.flatten(2).transpose(1, 2) @ self.weight.reshape(channels, -1)
        y = y.reshape(n, height, width, out, k, k).permute(0, 3, 1, 4, 2, 5)
        y = y.reshape(n, out, height * k, width * k)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]


def use_products(model: ClipSeg) -> None:
    """Replace the transposed convolutions of a model's head; names and weights stay as they are.

    Raises:
        ValueError: a kernel differs from its stride.
    """
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if type(child) is nn.ConvTranspose2d:
                setattr(parent, name, _as_product(child))


def _as_product(layer: nn.ConvTranspose2d) -> ProductUpsampling:
    kernel, stride = layer.kernel_size, layer.stride
    if kernel != stride or kernel[0] != kernel[1]:
        raise ValueError(f'kernel {kernel} and stride {stride} differ')
    product = ProductUpsampling(
        layer.in_channels, layer.out_channels, kernel[0], stride=kernel[0])
    product.weight, product.bias = layer.weight, layer.bias
    return product


class SparseUpsampling:
    """Bilinear enlargement of which only some rows and columns are wanted, as matrix products."""

    def __init__(self, align_corners: bool) -> None:
        """Choose what stays in its place: the corner pixels' centres, or the maps' corners."""
        self._align_corners = align_corners
        self._weights: dict[tuple[int, int], Tensor] = {}

    def __call__(self, maps: Tensor, side: int, some: slice) -> Tensor:
        """Enlarge maps [..., h, w] to [..., side, side] and return some rows and columns."""
        height, width = maps.shape[-2:]
        down = self._weights_of(height, side, maps.device)[some]
        across = self._weights_of(width, side, maps.device)[some]
        return down @ maps @ across.T

    def _weights_of(self, length: int, side: int, device: torch.device) -> Tensor:
        """Return what each pixel of an axis takes from the small one, [side, length]."""
        key = (length, side)
        if key not in self._weights:
            each = torch.eye(length, device=device)[None]
            self._weights[key] = functional.interpolate(
                each, side, mode='linear', align_corners=self._align_corners)[0].T.contiguous()
        return self._weights[key]
