# SPDX-License-Identifier: Apache-2.0
"""The image towers of LSeg: an image to four levels, each of half the size of the one before.

A level is float [B, c, H/n, W/n] with n = 4, 8, 16, 32.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.folding import NormedConv2d
from blabberseg_ros.models.lseg_config import LSegConfig

# timm's ViT; CLIP's and torch's own is 1e-5.
_NORM_EPS = 1e-6


class SelfAttention(nn.Module):
    """Multi-head self-attention with timm's names."""

    def __init__(self, width: int, heads: int) -> None:
        """Create the two projections."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, T, width] to tokens of the same shape."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = functional.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between, with timm's names."""

    def __init__(self, width: int, hidden: int) -> None:
        """Create both layers."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to [..., width]."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Transformer block with the norms before, with timm's names."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        """Create attention, perceptron and norms."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_NORM_EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, T, width] to tokens of the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ReadOut(nn.Module):
    """The class token mixed into every other one.

    DPT's is one layer on each token beside the class token. The class token's part is the same
    for all of them; as a layer of its own it is computed once.
    """

    def __init__(self, width: int) -> None:
        """Create both parts of the layer."""
        super().__init__()
        self.own = nn.Linear(width, width, bias=False)
        self.shared = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [B, 1 + T, width], class token first, to [B, T, width]."""
        return functional.gelu(self.own(x[:, 1:]) + self.shared(x[:, :1]))


class VitTower(nn.Module):
    """A ViT whose hooked blocks are reassembled into levels (DPT, Ranftl et al., ICCV 2021)."""

    def __init__(self, config: LSegConfig) -> None:
        """Create the tower; weights are torch's initial ones, embeddings small and random."""
        super().__init__()
        width = config.vision_width
        self.hooks = config.hooks
        self.pretrain_grid = config.pretrain_grid
        self.patch_embed = nn.Conv2d(3, width, config.patch_size_px, stride=config.patch_size_px)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + config.pretrain_grid ** 2, width))
        self.blocks = nn.ModuleList(
            Block(width, config.vision_heads, config.vision_mlp)
            for _ in range(config.vision_layers))
        self.readout = nn.ModuleList(ReadOut(width) for _ in config.hooks)
        first, second, third, fourth = config.reassemble
        self.reassemble = nn.ModuleList((
            nn.Sequential(nn.Conv2d(width, first, 1),
                          nn.ConvTranspose2d(first, first, 4, stride=4)),
            nn.Sequential(nn.Conv2d(width, second, 1),
                          nn.ConvTranspose2d(second, second, 2, stride=2)),
            nn.Sequential(nn.Conv2d(width, third, 1)),
            nn.Sequential(nn.Conv2d(width, fourth, 1),
                          nn.Conv2d(fourth, fourth, 3, stride=2, padding=1))))

    def position_embedding(self, height: int, width: int) -> Tensor:
        """Return the position embedding for a grid of patches, [1, 1 + height * width, C].

        The class token's row is kept, the others are resized bilinearly, not antialiased.
        """
        side = self.pretrain_grid
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid = functional.interpolate(grid, (height, width), mode='bilinear', align_corners=False)
        return torch.cat((self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)), dim=1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the four levels of images, float [B, 3, H, W], sides multiples of 32."""
        patches = self.patch_embed(pixels)
        batch, _, height, width = patches.shape
        x = torch.cat((self.cls_token.expand(batch, -1, -1),
                       patches.flatten(2).transpose(1, 2)), dim=1)
        x = x + self.position_embedding(height, width)
        levels: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.hooks:
                levels.append(self._level(len(levels), x, height, width))
        return levels

    def _level(self, index: int, x: Tensor, height: int, width: int) -> Tensor:
        """Lay the tokens of a hooked block out as a map, at the scale of its level."""
        image = self.readout[index](x).transpose(1, 2).unflatten(2, (height, width))
        return self.reassemble[index](image)


class Bottleneck(nn.Module):
    """torchvision's ResNet bottleneck (stride in the 3x3 convolution)."""

    def __init__(self, channels: int, width: int, stride: int, norms: bool) -> None:
        """Create the convolutions; the shortcut has one where the shape changes."""
        super().__init__()
        out = 4 * width
        self.conv1 = NormedConv2d(channels, width, 1, norm=norms)
        self.conv2 = NormedConv2d(width, width, 3, stride=stride, padding=1, norm=norms)
        self.conv3 = NormedConv2d(width, out, 1, norm=norms)
        self.downsample = (NormedConv2d(channels, out, 1, stride=stride, norm=norms)
                           if stride != 1 or channels != out else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels, h, w] to [B, 4 * width, h / stride, w / stride]."""
        y = functional.relu(self.conv1(x))
        y = functional.relu(self.conv2(y))
        return functional.relu(self.conv3(y) + self.downsample(x))


class ResNetTower(nn.Module):
    """A ResNet whose four stages are the levels."""

    def __init__(self, config: LSegConfig, norms: bool) -> None:
        """Create the tower with torch's initial weights."""
        super().__init__()
        width = config.resnet_width
        self.stem = NormedConv2d(3, width, 7, stride=2, padding=3, norm=norms)
        self.stages = nn.ModuleList()
        channels = width
        for index, count in enumerate(config.resnet_blocks):
            blocks = []
            for block in range(count):
                stride = 2 if index and block == 0 else 1
                blocks.append(Bottleneck(channels, width * 2 ** index, stride, norms))
                channels = 4 * width * 2 ** index
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the four levels of images, float [B, 3, H, W], sides multiples of 32."""
        x = functional.max_pool2d(functional.relu(self.stem(pixels)), 3, stride=2, padding=1)
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels
