# SPDX-License-Identifier: Apache-2.0
"""Layers that SAM's encoders and decoder have in common."""

import torch
from torch import Tensor, nn
from torch.nn import functional

# Norms over the channels of an image; those of tokens have torch's default of 1e-5.
CHANNEL_NORM_EPS = 1e-6


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel, [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        """Create the norm with unit scale."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return self.of_tokens(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def of_tokens(self, x: Tensor) -> Tensor:
        """Normalise tokens [..., C]."""
        # The library's own norm, which every engine knows and keeps in fp32.
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias,
                                     CHANNEL_NORM_EPS)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        """Create the layers under SAM's names."""
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [..., width]."""
        return self.lin2(functional.gelu(self.lin1(x)))


def neck(width: int, out: int) -> nn.Sequential:
    """Return the layers that end both kinds of encoder: [B, width, g, g] to [B, out, g, g]."""
    return nn.Sequential(
        nn.Conv2d(width, out, 1, bias=False), ChannelNorm(out),
        nn.Conv2d(out, out, 3, padding=1, bias=False), ChannelNorm(out))


def to_windows(x: Tensor, side: int) -> Tensor:
    """Cut tokens [B, H, W, C] into windows [B * windows, side * side, C].

    Zeros are padded on the right and at the bottom; nothing hides them from the attention, as the
    networks were trained that way.
    """
    batch, height, width, channels = x.shape
    down, across = -(-height // side), -(-width // side)
    x = functional.pad(x, (0, 0, 0, across * side - width, 0, down * side - height))
    x = x.reshape(batch, down, side, across, side, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, side * side, channels)


def from_windows(x: Tensor, side: int, batch: int, height: int, width: int) -> Tensor:
    """Put windows together again and crop the padding: [B, H, W, C]."""
    down, across = -(-height // side), -(-width // side)
    x = x.reshape(batch, down, across, side, side, -1).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, down * side, across * side, -1)[:, :height, :width]
