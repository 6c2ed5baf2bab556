# SPDX-License-Identifier: Apache-2.0
"""SAM's two-way mask decoder, told by learned tokens which class to look for.

Names are those of the published FPSeg checkpoints. What every class shares is computed once: the
image is projected for the first layer without a class, whose `dense` vector then enters as a bias.

Source: Kirillov et al., Segment Anything (2023); FPSeg (github.com/JanKrabbe/FPSeg).
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.fpseg_config import FpSegConfig
from blabberseg_ros.models.layers import ChannelNorm, Mlp


class PromptEncoder(nn.Module):
    """The learned tokens of the classes, and the position code of the embedding's cells."""

    def __init__(self, config: FpSegConfig) -> None:
        """Create tokens from N(0, 1), as training starts."""
        super().__init__()
        self.prompt_embeddings = nn.Parameter(
            torch.randn(len(config.class_names), config.prompt_size, config.width))
        self.no_mask_embed = nn.Embedding(1, config.width)
        self.pe_layer = PositionCode(config.width)

    def position(self, grid: int) -> Tensor:
        """Return the position code of `grid` x `grid` cells, float [grid², width]."""
        return self.pe_layer(grid)


class PositionCode(nn.Module):
    """Random Fourier features of a cell's place."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        """Draw the frequencies; a checkpoint has its own."""
        super().__init__()
        self.register_buffer('positional_encoding_gaussian_matrix', torch.randn(2, width // 2))

    def forward(self, grid: int) -> Tensor:
        """Return the code of `grid` x `grid` cells, row by row, float [grid², width]."""
        frequencies = self.positional_encoding_gaussian_matrix
        place = (torch.arange(grid, device=frequencies.device) + 0.5) / grid * 2 - 1
        # torch.meshgrid is taken apart for ONNX, and names of nodes would differ from torch's.
        rows, columns = place[:, None].expand(grid, grid), place.expand(grid, grid)
        angle = torch.stack((columns, rows), dim=-1) @ frequencies * (2 * math.pi)
        return torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(0, 1)


class MaskDecoder(nn.Module):
    """Tokens and image attend to each other; what the mask token learns weighs the pixels."""

    def __init__(self, config: FpSegConfig) -> None:
        """Create the decoder with torch's initial weights."""
        super().__init__()
        width = config.width
        self.mask_tokens = nn.Embedding(1, width)
        self.transformer = TwoWayTransformer(config)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2), ChannelNorm(width // 4), nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2), nn.GELU())
        self.output_hypernetworks_mlps = nn.ModuleList([HyperNetwork(width, width // 8)])

    def forward(self, image: Tensor, position: Tensor, tokens: Tensor, dense: Tensor,
                bias: Tensor | None = None) -> Tensor:
        """Segment.

        Args:
            image: cells [B, n, width], or [1, n, width] of one image for all classes.
            position: code of the cells, [n, width].
            tokens: of a class for each row, [B, P, width].
            dense: of these classes, [B, width].
            bias: added to the attention to each token, [B, P]: very negative for one that is
                padding. None if every class has P tokens.

        Returns:
            Logits [B, 4 grid, 4 grid].
        """
        mask_token = self.mask_tokens.weight.expand(tokens.shape[0], 1, -1)
        if bias is not None:
            bias = functional.pad(bias, (1, 0))[:, None, None]
        mask_token, image = self.transformer(
            image, position, torch.cat((mask_token, tokens), dim=1), dense, bias)
        return self._upscale(image, self.output_hypernetworks_mlps[0](mask_token))

    def _upscale(self, image: Tensor, weights: Tensor) -> Tensor:
        """Return what the weights [B, 1, width / 8] make of the cells' 4 x 4 pixels.

        Transposed convolutions whose stride is their kernel are matrix products, and the pixels
        need not be put in their places before the last step.
        """
        first, norm, _, second, _ = cast(_Upscaling, tuple(self.output_upscaling))
        x = functional.gelu(norm.of_tokens(_four_from_each(image, first)))
        x = functional.gelu(_four_from_each(x, second))
        batch, cells, channels = x.shape[0], image.shape[1], x.shape[-1]
        x = x.reshape(batch, cells * 16, channels) @ weights.transpose(1, 2)
        grid = math.isqrt(cells)
        x = x.reshape(batch, grid, grid, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return x.reshape(batch, 4 * grid, 4 * grid)


_Upscaling = tuple[nn.ConvTranspose2d, ChannelNorm, nn.GELU, nn.ConvTranspose2d, nn.GELU]


def _four_from_each(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    """Apply a 2 x 2 transposed convolution to tokens: [..., C] to [..., 4, C']."""
    channels, out = layer.weight.shape[:2]
    weight = layer.weight.permute(2, 3, 1, 0).reshape(4 * out, channels)
    return functional.linear(x, weight).unflatten(-1, (4, out)) + layer.bias


class TwoWayTransformer(nn.Module):
    """Layers in which tokens look at the image and the image at the tokens."""

    def __init__(self, config: FpSegConfig) -> None:
        """Create the layers."""
        super().__init__()
        self.layers = nn.ModuleList(TwoWayLayer(config) for _ in range(config.decoder_depth))
        self.final_attn_token_to_image = Attention(config.width, config.decoder_heads, 2)
        self.norm_final_attn = nn.LayerNorm(config.width)

    def forward(self, image: Tensor, position: Tensor, tokens: Tensor, dense: Tensor,
                bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mask token [B, 1, width] and the image [B, n, width]; see `MaskDecoder`."""
        queries = tokens
        for index, layer in enumerate(cast(Iterable[TwoWayLayer], self.layers)):
            if index == 0:
                queries, image = layer.first(image, position, tokens, dense, bias)
            else:
                queries, image = layer(image, position, queries, tokens, bias)
        # Of the last attention only the mask token is used.
        mask_token = queries[:, :1]
        found = self.final_attn_token_to_image.of_one_query(
            mask_token + tokens[:, :1], image + position, image)
        return self.norm_final_attn(mask_token + found), image


class TwoWayLayer(nn.Module):
    """Tokens to tokens, tokens to image, MLP, image to tokens; a norm after each."""

    def __init__(self, config: FpSegConfig) -> None:
        """Create the layers."""
        super().__init__()
        width, heads = config.width, config.decoder_heads
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = ReluMlp(width, config.decoder_mlp)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, 2)

    def first(self, image: Tensor, position: Tensor, tokens: Tensor, dense: Tensor,
              bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run as the first layer, on an image [B or 1, n, width] that no class has changed."""
        queries = self.norm1(self.self_attn(tokens, tokens, tokens, bias))
        # With `dense` added to each cell, all scores of a query move alike, which the softmax
        # ignores, and all values move by the same vector.
        attention = self.cross_attn_token_to_image
        found = attention.to_shared(queries + tokens, image + position, image,
                                    functional.linear(dense, attention.v_proj.weight)[:, None])
        queries = self.norm2(queries + found)
        queries = self.norm3(queries + self.mlp(queries))
        # Here `dense` adds one score to each token, the same for all cells.
        attention = self.cross_attn_image_to_token
        shift = functional.linear(dense, attention.q_proj.weight)[:, None]
        answer = attention(image + position, queries + tokens, queries, bias, shift)
        return queries, self.norm4(image + dense[:, None] + answer)

    def forward(self, image: Tensor, position: Tensor, queries: Tensor, tokens: Tensor,
                bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run as a later layer, on an image [B, n, width]."""
        placed = queries + tokens
        queries = self.norm1(queries + self.self_attn(placed, placed, queries, bias))
        found = self.cross_attn_token_to_image(queries + tokens, image + position, image)
        queries = self.norm2(queries + found)
        queries = self.norm3(queries + self.mlp(queries))
        answer = self.cross_attn_image_to_token(image + position, queries + tokens, queries, bias)
        return queries, self.norm4(image + answer)


class Attention(nn.Module):
    """Attention with four projections, perhaps narrower inside."""

    def __init__(self, width: int, heads: int, downsample: int = 1) -> None:
        """Create the projections under SAM's names."""
        super().__init__()
        self.heads = heads
        inner = width // downsample
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None,
                shift: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: [B, Q, width], or [1, Q, width] for all rows.
            key: [B, K, width].
            value: [B, K, width].
            bias: of the scores, broadcast to [B, heads, Q, K].
            shift: added to each projected query, [B, 1, inner].

        Returns:
            [B, Q, width].
        """
        key = self._split(self.k_proj(key))
        if shift is not None:
            scores = self._split(shift * key.shape[-1] ** -0.5)
            scores = scores @ key.transpose(2, 3)
            bias = scores if bias is None else bias + scores
        query = self._split(self.q_proj(query)).expand(key.shape[0], -1, -1, -1)
        x = functional.scaled_dot_product_attention(
            query, key, self._split(self.v_proj(value)), bias)
        return self.out_proj(self._join(x))

    def to_shared(self, query: Tensor, key: Tensor, value: Tensor, shift: Tensor) -> Tensor:
        """Attend from [B, Q, width] to [1 or B, K, width], with `shift` [B, 1, inner] of values.

        All rows that look at one image are one long list of queries.
        """
        heads = self._split(self.q_proj(query))
        key, value = self._split(self.k_proj(key)), self._split(self.v_proj(value))
        if key.shape[0] == 1:
            rows, _, count, depth = heads.shape
            heads = heads.transpose(0, 1).reshape(1, self.heads, -1, depth)
            x = functional.scaled_dot_product_attention(heads, key, value)
            x = x.reshape(self.heads, rows, count, depth).transpose(0, 1)
        else:
            x = functional.scaled_dot_product_attention(heads, key, value)
        return self.out_proj(self._join(x) + shift)

    def of_one_query(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from [B, 1, width] to [B, K, width] without projecting keys and values.

        With a single query it is cheaper to take its projection through the keys' weights once:
        q · (W k) = (Wᵀ q) · k, and a sum of projected values is the projected sum.
        """
        depth = self.q_proj.out_features // self.heads
        heads = self.q_proj(query).reshape(-1, self.heads, 1, depth) * depth ** -0.5
        key_weight = self.k_proj.weight.reshape(self.heads, depth, -1)
        value_weight = self.v_proj.weight.reshape(self.heads, depth, -1)
        # [B, heads, width] · [B, K, width]; the keys' bias moves all scores alike.
        scores = (heads @ key_weight).squeeze(2) @ key.transpose(1, 2)
        gathered = (scores.softmax(dim=-1) @ value)[:, :, None]
        x = gathered @ value_weight.transpose(1, 2)
        return self.out_proj(self._join(x) + self.v_proj.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class ReluMlp(Mlp):
    """Two linear layers with a ReLU between them."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [..., width]."""
        return self.lin2(functional.relu(self.lin1(x)))


class HyperNetwork(nn.Module):
    """Three linear layers: from the mask token to the weights of the pixels' channels."""

    def __init__(self, width: int, out: int) -> None:
        """Create the layers under SAM's names."""
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, out)])

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, 1, width]."""
        first, second, last = self.layers
        return last(functional.relu(second(functional.relu(first(x)))))
