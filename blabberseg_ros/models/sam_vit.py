# SPDX-License-Identifier: Apache-2.0
"""SAM's image encoders ViT-B, ViT-L and ViT-H, with the names of their checkpoints.

Source: Kirillov et al., Segment Anything (2023); Li et al., Exploring Plain Vision Transformer
Backbones for Object Detection (2022).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.fpseg_config import STRIDE_PX, SamVitConfig
from blabberseg_ros.models.layers import Mlp, from_windows, neck, to_windows

_NORM_EPS = 1e-6


class SamVit(nn.Module):
    """A ViT whose blocks attend within windows, but for a few that see the whole image."""

    def __init__(self, config: SamVitConfig, width: int) -> None:
        """Create the encoder with torch's initial weights.

        Args:
            config: sizes.
            width: channels of the embedding.
        """
        super().__init__()
        self.patch_embed = nn.ModuleDict(
            {'proj': nn.Conv2d(3, config.width, STRIDE_PX, STRIDE_PX)})
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.width))
        self.blocks = nn.Sequential(*(
            Block(config, window=0 if index in config.global_blocks else config.window)
            for index in range(config.depth)))
        self.neck = neck(config.width, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised images, float [B, 3, S, S], as [B, width, S / 16, S / 16]."""
        x = self.patch_embed['proj'](pixels).permute(0, 2, 3, 1) + self.pos_embed
        return self.neck(self.blocks(x).permute(0, 3, 1, 2))


class Block(nn.Module):
    """Attention and MLP, each after a norm."""

    def __init__(self, config: SamVitConfig, window: int) -> None:
        """Create the layers.

        Args:
            config: sizes.
            window: side of the windows in tokens; 0 attends to the whole image.
        """
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.attn = Attention(config.width, config.heads, window or config.grid)
        self.norm2 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.mlp = Mlp(config.width, config.width * config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [B, H, W, C]."""
        batch, height, width, channels = x.shape
        tokens = self.norm1(x)
        if self.window:
            tokens = self.attn(to_windows(tokens, self.window))
            tokens = from_windows(tokens, self.window, batch, height, width)
        else:
            tokens = self.attn(tokens.reshape(batch, height * width, channels))
            tokens = tokens.reshape(x.shape)
        x = x + tokens
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Attention in a square of tokens, with a position term for rows and one for columns."""

    offsets: Tensor
    places: Tensor

    def __init__(self, width: int, heads: int, side: int) -> None:
        """Create the layers for squares of `side` x `side` tokens."""
        super().__init__()
        self.heads = heads
        self.side = side
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.register_buffer('offsets', offset_index(side), persistent=False)
        self.register_buffer('places', one_hot_places(side), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform squares [B, side * side, C]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        # The position term of a pair is a sum of one entry for the key's row and one for its
        # column. Written as further channels of query and key, it costs no N x N table.
        position = self._positions(query)
        query = torch.cat((query * query.shape[-1] ** -0.5, position), dim=-1)
        places = self.places.to(key.dtype).expand(*key.shape[:2], -1, -1)
        x = functional.scaled_dot_product_attention(
            query, torch.cat((key, places), dim=-1), value, scale=1.0)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))

    def _positions(self, query: Tensor) -> Tensor:
        """Return for each query what it makes of each row and column: [B, heads, N, 2 side]."""
        side = self.side
        square = query.unflatten(2, (side, side))
        # [B, heads, row, column, d] with the tables [row, row', d] and [column, column', d].
        rows = square @ self.rel_pos_h[self.offsets].transpose(1, 2)
        columns = square.transpose(2, 3) @ self.rel_pos_w[self.offsets].transpose(1, 2)
        return torch.cat((rows, columns.transpose(2, 3)), dim=-1).flatten(2, 3)


def offset_index(side: int) -> Tensor:
    """Return the row of the position table for each pair of rows: int64 [side, side]."""
    place = torch.arange(side)
    return place[:, None] - place + side - 1


def one_hot_places(side: int) -> Tensor:
    """Return for each of side x side tokens its row and its column, [side², 2 side]."""
    one_hot = torch.eye(side)
    return torch.cat((one_hot.repeat_interleave(side, dim=0), one_hot.repeat(side, 1)), dim=1)
