# SPDX-License-Identifier: Apache-2.0
"""Segformer in torch: a pyramid of attention over ever coarser grids, and a light head.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021. Two things differ from the published code, and neither changes what is computed:

- The head projects each stage to the decoder's width, resizes it to the finest grid, concatenates
  and fuses by a 1 x 1 convolution. Projection, resizing and fusion are linear and resizing mixes
  pixels only, so each stage is projected straight to the fused width on its own grid and the
  results are added. In B4 at 512 pixels this saves 40 % of all products.
- Activations keep their channels last, [B, H, W, C]. The convolution that shortens keys and values
  has no overlap, so it is a linear layer over patches.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.segformer_config import SegformerConfig
from blabberseg_ros.models.text_tower import TextTower

# All norms, whatever a configuration says: so were the published weights of the hub made.
NORM_EPS = 1e-5
_STRIDES_PX = (4, 2, 2, 2)


class PatchEmbedding(nn.Module):
    """Overlapping patches to tokens."""

    def __init__(self, channels: int, width: int, kernel_px: int, stride_px: int) -> None:
        """Create convolution and norm."""
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_px, stride_px, kernel_px // 2)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, H / stride, W / stride, width]."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Attention(nn.Module):
    """Attention whose keys and values come from a shortened grid."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        """Create the layers."""
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        if reduction > 1:
            # Input: patches of reduction x reduction pixels, row by row, channels last.
            self.reduce = nn.Linear(reduction * reduction * width, width)
            self.reduce_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        batch, height, width, channels = x.shape
        size = channels // self.heads
        query = self.query(x).reshape(batch, height * width, self.heads, size).transpose(1, 2)
        key, value = self.key_value(self.shortened(x)).reshape(
            batch, -1, 2, self.heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, height, width, channels))

    def shortened(self, x: Tensor) -> Tensor:
        """Return the tokens that keys and values are made of: [B, T, C]."""
        batch, height, width, channels = x.shape
        step = self.reduction
        if step == 1:
            return x.flatten(1, 2)
        patches = x.reshape(batch, height // step, step, width // step, step, channels)
        patches = patches.transpose(2, 3).reshape(batch, -1, step * step * channels)
        return self.reduce_norm(self.reduce(patches))


class MixMlp(nn.Module):
    """MLP with a depthwise convolution inside, by which positions are known."""

    def __init__(self, width: int, hidden: int) -> None:
        """Create the layers."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        x = self.conv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(functional.gelu(x))


class Block(nn.Module):
    """Transformer block with the norms before its two branches."""

    def __init__(self, width: int, heads: int, reduction: int, mlp_ratio: int) -> None:
        """Create both branches."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MixMlp(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    """Blocks on one grid."""

    def __init__(self, config: SegformerConfig, index: int) -> None:
        """Create patch embedding, blocks and the norm behind them."""
        super().__init__()
        width = config.hidden[index]
        self.embedding = PatchEmbedding(
            config.hidden[index - 1] if index else 3, width, config.patch_sizes_px[index],
            _STRIDES_PX[index])
        self.blocks = nn.ModuleList(
            Block(width, config.heads[index], config.reductions[index], config.mlp_ratios[index])
            for _ in range(config.depths[index]))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, H', W']."""
        return self.transform(self.embedding(x))

    def transform(self, tokens: Tensor) -> Tensor:
        """Map embedded patches [B, H', W', width] to [B, width, H', W']."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).permute(0, 3, 1, 2)


class Head(nn.Module):
    """The four stages to label logits on the finest grid."""

    def __init__(self, config: SegformerConfig) -> None:
        """Create one projection a stage, and the classifier."""
        super().__init__()
        # One bias is enough for the sum of all four.
        self.mix = nn.ModuleList(
            nn.Conv2d(width, config.decoder_width, 1, bias=index == 0)
            for index, width in enumerate(config.hidden))
        self.classifier = nn.Conv2d(config.decoder_width, len(config.labels), 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map the stages' features to logits [B, L, H / 4, W / 4]."""
        size = features[0].shape[-2:]
        mixed = self.mix[0](features[0])
        for mix, feature in zip(list(self.mix)[1:], features[1:], strict=True):
            mixed = mixed + functional.interpolate(mix(feature), size, mode='bilinear',
                                                   align_corners=False)
        return self.classifier(functional.relu(mixed))


class Segformer(nn.Module):
    """Segformer: one logit a label on a grid of a quarter of the input's sides.

    Letters in shapes: B images, L labels, S input side, P texts, D length of a text's embedding.
    """

    label_embedding: Tensor
    # The networks alone: no engine resizes images, and none encodes text, in half precision.
    half_methods = ('encode_image',)
    # Their weights are converted once, not for every frame.
    half_parts = ('stages', 'head')

    def __init__(self, config: SegformerConfig) -> None:
        """Create the network with torch's initial weights."""
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, index) for index in range(len(config.hidden)))
        self.head = Head(config)
        if config.reads_text:
            self.text = TextTower(config)
            self.register_buffer(
                'label_embedding', torch.zeros(len(config.labels), config.embed_dim))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return label logits.

        Args:
            pixels: float [B, 3, S, S], normalised; S is any multiple of 32.

        Returns:
            float [B, L, S / 4, S / 4].
        """
        return self.head(self.features(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return label logits; see `encode_image`."""
        return self.encode_image(pixels)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Return the four stages' features, [B, C, S / 4, S / 4] to [B, C, S / 32, S / 32]."""
        features = []
        x = pixels
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def upsample(self, code: Tensor) -> Tensor:
        """Resize label logits [L, s, s] to the input's size, [L, S, S]."""
        side = self.config.input_size_px
        return functional.interpolate(code[None], (side, side), mode='bilinear',
                                      align_corners=False)[0]

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Return the unit vectors of texts, [P, D], from tokens int [P, 77]."""
        return functional.normalize(self.text(tokens), dim=-1)

    def similarity(self, tokens: Tensor) -> Tensor:
        """Return the cosine between texts, int [P, 77], and labels: float [P, L]."""
        return self.embed_text(tokens) @ self.label_embedding.T
