# SPDX-License-Identifier: Apache-2.0
"""Sizes of an LSeg network, apart from the network so that reading them needs no torch."""

from dataclasses import dataclass
from typing import ClassVar

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.manifest_config import ManifestConfig

BACKBONES = ('vit', 'resnet')
# The deepest feature map has a 32nd of the input's sides, and two steps of doubling lead back.
STRIDE_PX = 32
_BOTTLENECK_EXPANSION = 4


@dataclass(frozen=True)
class LSegConfig(ManifestConfig):
    """Sizes of an LSeg network; the defaults are those of the published ViT-L/16 (demo_e200).

    Attributes:
        backbone: `vit`, or `resnet` for torchvision's bottleneck ResNets.
        input_size_px: side of the square that the service resizes frames to; any multiple of 32
            works with the same weights.
        patch_size_px, pretrain_grid, vision_width, vision_heads, vision_layers, vision_mlp: of
            the ViT; not used by a ResNet.
        hooks: ViT blocks (from 0) whose output becomes a level, ascending; the last one ends it.
        reassemble: channels of the four levels that are made of the hooked blocks.
        resnet_blocks, resnet_width: of the ResNet; not used by a ViT.
        features: width of the fusion.
        embed_dim: length of the vectors that pixels and texts share.
        logit_scale: logits are the cosines times this.
        mean, std: normalisation of the RGB channels, of values in 0..1.

    Raises:
        BundleError: on construction, when the sizes do not fit together.
    """

    network: ClassVar[str] = 'LSeg'
    family: ClassVar[str] = 'lseg'
    title: ClassVar[str] = 'LSeg'

    backbone: str = 'vit'
    input_size_px: int = 480
    patch_size_px: int = 16
    pretrain_grid: int = 24
    vision_width: int = 1024
    vision_heads: int = 16
    vision_layers: int = 24
    vision_mlp: int = 4096
    hooks: tuple[int, ...] = (5, 11, 17, 23)
    reassemble: tuple[int, ...] = (256, 512, 1024, 1024)
    resnet_blocks: tuple[int, ...] = (3, 4, 23, 3)
    resnet_width: int = 64
    features: int = 256
    embed_dim: int = 512
    logit_scale: float = 1 / 0.07
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12
    text_mlp: int = 2048
    vocab_size: int = 49408
    context_length: int = 77
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have."""
        check_input_size(self.input_size_px)
        if self.backbone not in BACKBONES:
            raise BundleError(f'the backbone {self.backbone!r} is unknown; LSeg has '
                              f'{" and ".join(BACKBONES)}')
        for name, width, heads in (('vision', self.vision_width, self.vision_heads),
                                   ('text', self.text_width, self.text_heads)):
            if heads < 1 or width % heads:
                raise BundleError(f'{heads} {name} heads do not divide a width of {width}')
        levels = len(self.resnet_blocks) if self.backbone == 'resnet' else len(self.hooks)
        if levels != len(self.level_channels) or levels != 4:
            raise BundleError('LSeg fuses four levels: four hooks with four widths, or four '
                              'stages of a ResNet')
        if self.backbone == 'vit' and (list(self.hooks) != sorted(set(self.hooks))
                                       or self.vision_layers != self.hooks[-1] + 1):
            raise BundleError(f'the hooks {self.hooks} are not ascending, or {self.vision_layers} '
                              'vision layers do not end with the last of them')
        if self.backbone == 'vit' and self.patch_size_px != STRIDE_PX // 2:
            raise BundleError(f'patches of {self.patch_size_px} px are not known; the levels of '
                              f'LSeg are made for {STRIDE_PX // 2} px')

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Return the channels of the levels, at a 4th, 8th, 16th and 32nd of the input."""
        if self.backbone == 'resnet':
            return tuple(self.resnet_width * _BOTTLENECK_EXPANSION * 2 ** level
                         for level in range(4))
        return self.reassemble

    @property
    def variant(self) -> str:
        """Return the name of the published architecture that these sizes belong to."""
        if self.backbone == 'resnet':
            return f'rn{3 * sum(self.resnet_blocks) + 2}'
        size = {1024: 'l', 768: 'b', 384: 's'}.get(self.vision_width, f'{self.vision_width}-')
        return f'vit-{size}{self.patch_size_px}'


def rounded_size(size_px: int) -> int:
    """Return the nearest multiple of 32, the larger one of two that are equally near."""
    return max((size_px + STRIDE_PX // 2) // STRIDE_PX, 1) * STRIDE_PX


def check_input_size(*sides_px: int) -> None:
    """Refuse sides of an input that are no multiples of 32.

    Raises:
        BundleError: naming the two nearest lengths that work.
    """
    for side_px in sides_px:
        if side_px >= STRIDE_PX and side_px % STRIDE_PX == 0:
            continue
        below = max(side_px // STRIDE_PX, 1) * STRIDE_PX
        raise BundleError(
            f'an input side of {side_px} px is no multiple of {STRIDE_PX} px, which LSeg needs; '
            f'the nearest that work are {below} and {below + STRIDE_PX} px')
