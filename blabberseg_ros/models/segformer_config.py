# SPDX-License-Identifier: Apache-2.0
"""Sizes and labels of a Segformer network, apart from it so that reading them needs no torch."""

from dataclasses import dataclass, replace
from typing import ClassVar

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.clipseg_config import IMAGENET_MEAN, IMAGENET_STD
from blabberseg_ros.models.manifest_config import ManifestConfig

# The deepest stage has a 32nd of the input's sides.
STRIDE_PX = 32
STAGES = 4
# A label map holds one byte a pixel.
MAX_LABELS = 256
# The label logits have a quarter of the input's sides.
LOGITS_STRIDE_PX = 4


@dataclass(frozen=True)
class SegformerConfig(ManifestConfig):
    """Sizes of a Segformer network; the defaults are those of B4, labels apart.

    Attributes:
        labels: names of the classes, in the order of the logits.
        input_size_px: side of the square input image, a multiple of 32.
        hidden: width of each of the four stages.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        reductions: by how much each side of the keys' and values' grid is shorter than that of
            the queries, for each stage.
        mlp_ratios: hidden width of a block's MLP relative to the stage's.
        patch_sizes_px: kernel of each stage's patch embedding; its strides are 4, 2, 2, 2.
        decoder_width: width of the head.
        mean, std: normalisation of the RGB channels, of values in 0..1.
        text_layers: blocks of CLIP's text tower, which finds the labels nearest in meaning to a
            prompt; 0 where the bundle has none.
        min_similarity: a prompt whose nearest label has a smaller cosine stands for none.

    Raises:
        BundleError: on construction, when the sizes do not fit together.
    """

    network: ClassVar[str] = 'Segformer'
    family: ClassVar[str] = 'segformer'
    title: ClassVar[str] = 'Segformer'

    labels: tuple[str, ...]
    input_size_px: int = 512
    hidden: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (3, 8, 27, 3)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratios: tuple[int, ...] = (4, 4, 4, 4)
    patch_sizes_px: tuple[int, ...] = (7, 3, 3, 3)
    decoder_width: int = 768
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    embed_dim: int = 512
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 0
    text_mlp: int = 2048
    vocab_size: int = 49408
    context_length: int = 77
    min_similarity: float = 0.8

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have."""
        check_input_size(self.input_size_px)
        per_stage = (self.hidden, self.depths, self.heads, self.reductions, self.mlp_ratios,
                     self.patch_sizes_px)
        if any(len(values) != STAGES for values in per_stage):
            raise BundleError('Segformer has four stages; one of its lists of sizes has another '
                              'length')
        for width, heads, reduction in zip(self.hidden, self.heads, self.reductions, strict=True):
            if heads < 1 or width % heads:
                raise BundleError(f'{heads} attention heads do not divide a width of {width}; '
                                  'this is not a Segformer configuration')
            if reduction < 1:
                raise BundleError(f'a reduction of {reduction} is none')
        if any(side % reduction for side, reduction in zip(
                self.grids, self.reductions, strict=True)):
            raise BundleError(f'an input of {self.input_size_px} px gives grids of {self.grids}, '
                              f'which the reductions {self.reductions} do not divide')
        if not 2 <= len(self.labels) <= MAX_LABELS:
            raise BundleError(f'{len(self.labels)} labels were given; 2 to {MAX_LABELS} are taken')

    @property
    def grids(self) -> tuple[int, ...]:
        """Return the side of each stage's grid."""
        return tuple(self.input_size_px // 2 ** (2 + stage) for stage in range(STAGES))

    @property
    def logits_side(self) -> int:
        """Return the side of the label logits."""
        return self.input_size_px // LOGITS_STRIDE_PX

    @property
    def reads_text(self) -> bool:
        """Return whether prompts can be matched by meaning."""
        return self.text_layers > 0

    @property
    def variant(self) -> str:
        """Return the name of the published variant that these sizes belong to, or the width."""
        for name, (hidden, depths) in _VARIANTS.items():
            if (self.hidden, self.depths) == (hidden, depths):
                return name
        return f'w{self.hidden[0]}'


_SMALL, _LARGE = (32, 64, 160, 256), (64, 128, 320, 512)
_VARIANTS = {
    'b0': (_SMALL, (2, 2, 2, 2)), 'b1': (_LARGE, (2, 2, 2, 2)), 'b2': (_LARGE, (3, 4, 6, 3)),
    'b3': (_LARGE, (3, 4, 18, 3)), 'b4': (_LARGE, (3, 8, 27, 3)), 'b5': (_LARGE, (3, 6, 40, 3))}


def variant_config(variant: str, labels: tuple[str, ...],
                   input_size_px: int = 512) -> SegformerConfig:
    """Return the sizes of a published variant, `b0` to `b5`."""
    hidden, depths = _VARIANTS[variant]
    config = SegformerConfig(labels, input_size_px, hidden, depths)
    return replace(config, decoder_width=256) if variant in ('b0', 'b1') else config


def check_input_size(size_px: int) -> None:
    """Refuse an input size that is no multiple of 32.

    Raises:
        BundleError: naming the two nearest sizes that work.
    """
    if size_px > 0 and size_px % STRIDE_PX == 0:
        return
    below = max(size_px // STRIDE_PX, 1) * STRIDE_PX
    raise BundleError(
        f'an input size of {size_px} px is no multiple of {STRIDE_PX} px, which Segformer needs; '
        f'the nearest sizes that work are {below} and {below + STRIDE_PX} px')
