# SPDX-License-Identifier: Apache-2.0
"""TinyViT, MobileSAM's image encoder, with the names of its checkpoint.

Source: Wu et al., TinyViT (ECCV 2022); Zhang et al., Faster Segment Anything (2023).
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.folding import fold_batch_norm
from blabberseg_ros.models.fpseg_config import TinyVitConfig
from blabberseg_ros.models.layers import from_windows, neck, to_windows


class TinyVit(nn.Module):
    """Four stages, the first of convolutions, and a neck: one cell for 16 x 16 pixels."""

    def __init__(self, config: TinyVitConfig, width: int, *, with_bias: bool = True,
                 norms: bool = True) -> None:
        """Create the encoder with torch's initial weights.

        Args:
            config: sizes.
            width: channels of the embedding.
            with_bias: whether attention uses its learned biases; without, they count as zero.
            norms: whether convolutions have batch norms, as in training and in checkpoints.
        """
        super().__init__()
        dims = config.embed_dims
        self.patch_embed = nn.ModuleDict({'seq': nn.Sequential(
            ConvNorm(3, dims[0] // 2, 3, stride=2, norm=norms), nn.GELU(),
            ConvNorm(dims[0] // 2, dims[0], 3, stride=2, norm=norms))})
        self.layers = nn.ModuleList()
        for index, channels in enumerate(dims):
            stage = nn.ModuleDict({'blocks': nn.Sequential(*(
                MobileBlock(channels, config.mbconv_ratio, norms) if index == 0 else
                TinyVitBlock(channels, config.heads[index], config.windows[index],
                             config.mlp_ratio, with_bias, norms)
                for _ in range(config.depths[index])))})
            if index + 1 < len(dims):
                stage['downsample'] = Merging(
                    channels, dims[index + 1], config.strides[index], norms)
            self.layers.append(stage)
        self.neck = neck(dims[-1], width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised images, float [B, 3, S, S], as [B, width, S / 16, S / 16]."""
        x = self.patch_embed['seq'](pixels)
        for stage in cast(Iterable[nn.ModuleDict], self.layers):
            for part in stage.values():
                x = part(x)
        return self.neck(x)


class ConvNorm(nn.Module):
    """A convolution with a batch norm behind it until `fold`, and a bias from then on."""

    def __init__(self, channels: int, out: int, kernel: int = 1, *, stride: int = 1,
                 groups: int = 1, norm: bool = True) -> None:
        """Create the layers under the checkpoint's names, with a batch norm or else a bias."""
        super().__init__()
        self.c = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups,
                           bias=not norm)
        self.bn = nn.BatchNorm2d(out) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        x = self.c(x)
        return x if self.bn is None else self.bn(x)

    @torch.no_grad()
    def fold(self) -> None:
        """Turn the batch norm into weights and a bias."""
        if self.bn is None:
            return
        weight, bias = fold_batch_norm(self.c.weight, self.bn)
        self.c.weight.copy_(weight)
        self.c.bias = nn.Parameter(bias)
        self.bn = None


class MobileBlock(nn.Module):
    """Widen, convolve each channel, narrow; the activation follows the sum."""

    def __init__(self, channels: int, ratio: int, norms: bool) -> None:
        """Create the layers."""
        super().__init__()
        hidden = channels * ratio
        self.conv1 = ConvNorm(channels, hidden, norm=norms)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden, norm=norms)
        self.conv3 = ConvNorm(hidden, channels, norm=norms)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        y = functional.gelu(self.conv2(functional.gelu(self.conv1(x))))
        return functional.gelu(x + self.conv3(y))


class Merging(nn.Module):
    """Change the width and, if the stride is 2, halve the resolution."""

    def __init__(self, channels: int, out: int, stride: int, norms: bool) -> None:
        """Create the layers."""
        super().__init__()
        self.conv1 = ConvNorm(channels, out, norm=norms)
        self.conv2 = ConvNorm(out, out, 3, stride=stride, groups=out, norm=norms)
        self.conv3 = ConvNorm(out, out, norm=norms)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        return self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(x)))))


class TinyVitBlock(nn.Module):
    """Attention in windows, a convolution over their borders, an MLP."""

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: int,
                 with_bias: bool, norms: bool) -> None:
        """Create the layers."""
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, heads, window, with_bias)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels, norm=norms)
        self.mlp = NormMlp(channels, channels * mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        batch, _, height, width = x.shape
        tokens = x.permute(0, 2, 3, 1)
        # Padded before the norm: a pad token becomes the norm's bias, not zero.
        windows = self.attn(to_windows(tokens, self.window))
        tokens = tokens + from_windows(windows, self.window, batch, height, width)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (tokens + self.mlp(tokens)).permute(0, 3, 1, 2)


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a learned bias for each distance."""

    index: Tensor

    def __init__(self, channels: int, heads: int, window: int, with_bias: bool) -> None:
        """Create the layers, with zero biases as before training."""
        super().__init__()
        self.heads = heads
        self.with_bias = with_bias
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer('index', distance_index(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform windows [B, N, C]."""
        batch, tokens, channels = x.shape
        # One head's queries, keys and values lie side by side, unlike in most transformers.
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, self.heads, -1).transpose(1, 2)
        query, key, value = qkv.chunk(3, dim=-1)
        # Looked up each time: the original keeps the expanded table and uses a stale one.
        bias = self.attention_biases[:, self.index][None] if self.with_bias else None
        x = functional.scaled_dot_product_attention(query, key, value, bias)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, channels))


class NormMlp(nn.Module):
    """A layer norm and two linear layers with a GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        """Create the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [..., C]."""
        return self.fc2(functional.gelu(self.fc1(self.norm(x))))


def distance_index(window: int) -> Tensor:
    """Return for each pair of a window's tokens the index of its bias: |dy| * window + |dx|.

    Returns:
        int64 [window², window²].
    """
    place = torch.arange(window)
    apart = (place[:, None] - place).abs()
    index = apart[:, None, :, None] * window + apart[None, :, None, :]
    return index.reshape(window * window, window * window)
