# SPDX-License-Identifier: Apache-2.0
"""Sizes of a CLIPSeg network, apart from the network so that reading them needs no torch."""

from dataclasses import dataclass
from typing import ClassVar

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.manifest_config import ManifestConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HEADS = ('simple', 'complex')


@dataclass(frozen=True)
class ClipSegConfig(ManifestConfig):
    """Sizes of a CLIPSeg network; the defaults are those of the published rd64-refined.

    Attributes:
        input_size_px: side of the square input image, a multiple of `patch_size_px`.
        patch_size_px: side of a patch.
        pretrain_grid: patches along one side of the images that CLIP was trained on.
        vision_layers: blocks of the image tower that are kept: the last one extracted, plus one.
        extract: block indices (from 0) whose output goes to the decoder, ascending.
        embed_dim: length of a prompt's conditional.
        reduce_dim: width of the decoder.
        decoder_ffn: hidden width of the decoder blocks.
        head: `simple` (one transposed convolution) or `complex` (rd64-refined).
        mean, std: normalisation of the RGB channels, of values in 0..1. ImageNet's, not CLIP's.

    Raises:
        BundleError: on construction, when the sizes do not fit together.
    """

    network: ClassVar[str] = 'CLIPSeg'
    family: ClassVar[str] = 'clipseg'
    title: ClassVar[str] = 'CLIPSeg'

    input_size_px: int = 352
    patch_size_px: int = 16
    pretrain_grid: int = 14
    vision_width: int = 768
    vision_heads: int = 12
    vision_layers: int = 10
    vision_mlp: int = 3072
    extract: tuple[int, ...] = (3, 6, 9)
    embed_dim: int = 512
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12
    text_mlp: int = 2048
    vocab_size: int = 49408
    context_length: int = 77
    reduce_dim: int = 64
    decoder_heads: int = 4
    decoder_ffn: int = 2048
    head: str = 'complex'
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have."""
        check_input_size(self.input_size_px, self.patch_size_px)
        for name, width, heads in (('vision', self.vision_width, self.vision_heads),
                                   ('text', self.text_width, self.text_heads),
                                   ('decoder', self.reduce_dim, self.decoder_heads)):
            if width % heads:
                raise BundleError(f'the {name} width {width} cannot be split over {heads} heads; '
                                  'this is not a CLIPSeg configuration')
        if self.head not in HEADS:
            raise BundleError(f'the decoder head {self.head!r} is unknown; CLIPSeg has '
                              f'{" and ".join(HEADS)}')
        if list(self.extract) != sorted(set(self.extract)) or not self.extract:
            raise BundleError(f'the extracted layers {self.extract} are not in ascending order')
        if self.vision_layers != self.extract[-1] + 1:
            raise BundleError(f'{self.vision_layers} vision layers do not end with the last '
                              f'extracted one, {self.extract[-1]}')

    @property
    def grid(self) -> int:
        """Return the number of patches along one side of the input."""
        return self.input_size_px // self.patch_size_px

    @property
    def tokens(self) -> int:
        """Return the number of image tokens, the class token included."""
        return self.grid ** 2 + 1

    @property
    def variant(self) -> str:
        """Return the name of the published variant that these sizes belong to."""
        name = f'rd{self.reduce_dim}'
        return f'{name}-refined' if self.head == 'complex' else name


def check_input_size(size_px: int, patch_size_px: int = 16) -> None:
    """Refuse an input size that cannot be cut into whole patches.

    Raises:
        BundleError: naming the two nearest sizes that work.
    """
    if size_px > 0 and size_px % patch_size_px == 0:
        return
    below = max(size_px // patch_size_px, 1) * patch_size_px
    raise BundleError(
        f'an input size of {size_px} px cannot be cut into patches of {patch_size_px} px; the '
        f'nearest sizes that work are {below} and {below + patch_size_px} px')
