# SPDX-License-Identifier: Apache-2.0
"""Sizes and class names of an FPSeg network, apart from it so that reading them needs no torch."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.clipseg_config import IMAGENET_MEAN, IMAGENET_STD
from blabberseg_ros.models.manifest_config import ManifestConfig, tuples

ATTENTION_BIASES = ('live', 'zero')
FITS = ('squash', 'letterbox')
# Pixels of the input image to one cell of the embedding, whatever the encoder.
STRIDE_PX = 16
# Steps of the decoder's two transposed convolutions: a mask has S / 4 pixels a side.
MASK_SCALE = 4

# Order of the published weights: Cityscapes' classes, each category after its first member.
CITYSCAPES_CLASSES = (
    'road', 'flat', 'sidewalk', 'parking', 'rail track', 'building', 'construction', 'wall',
    'fence', 'guard rail', 'bridge', 'tunnel', 'pole', 'object', 'polegroup', 'traffic light',
    'traffic sign', 'vegetation', 'nature', 'terrain', 'sky', 'person', 'human', 'rider', 'car',
    'vehicle', 'truck', 'bus', 'caravan', 'trailer', 'train', 'motorcycle', 'bicycle')


def _check_heads(what: str, width: int, heads: int) -> None:
    if heads < 1 or width < 1 or width % heads:
        raise BundleError(f'the {what} width {width} cannot be split over {heads} heads; this is '
                          'not an FPSeg configuration')


@dataclass(frozen=True)
class TinyVitConfig:
    """Sizes of a TinyViT; the defaults are MobileSAM's.

    Attributes:
        embed_dims: channels of the four stages.
        depths: blocks of each stage; the first stage is convolutional.
        heads: attention heads of each stage; the first is unused.
        windows: side of the attention window in tokens, for each stage; the first is unused.
        strides: of the three layers between the stages. Their product is 4, after the patch
            embedding's 4.
        mbconv_ratio, mlp_ratio: hidden channels over channels.
    """

    embed_dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    windows: tuple[int, ...] = (7, 7, 14, 7)
    strides: tuple[int, ...] = (2, 2, 1)
    mbconv_ratio: int = 4
    mlp_ratio: int = 4
    kind: str = 'tiny_vit'

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have."""
        if not all(len(values) == 4 for values in (
                self.embed_dims, self.depths, self.heads, self.windows)):
            raise BundleError('a TinyViT has four stages; give four embed_dims, depths, heads and '
                              'windows')
        if len(self.strides) != 3 or self.strides[0] * self.strides[1] * self.strides[2] != 4:
            raise BundleError(f'the strides {self.strides} do not multiply to 4, so the embedding '
                              f'would not have one cell for {STRIDE_PX} pixels')
        for width, heads in zip(self.embed_dims[1:], self.heads[1:], strict=True):
            _check_heads('stage', width, heads)
        if self.embed_dims[0] % 2:
            raise BundleError(f'the first width, {self.embed_dims[0]}, is not even')


@dataclass(frozen=True)
class SamVitConfig:
    """Sizes of SAM's image encoder; the defaults are ViT-B's.

    Attributes:
        width, depth, heads: of the transformer.
        global_blocks: indices of the blocks that attend to the whole image.
        window: side of the other blocks' windows in tokens.
        mlp_ratio: hidden channels over channels.
        grid: patches along one side of the input image.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    mlp_ratio: int = 4
    grid: int = 64
    kind: str = 'sam_vit'

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have."""
        _check_heads('encoder', self.width, self.heads)
        if self.width // self.heads % 2:
            raise BundleError(f'{self.width // self.heads} channels a head are not even')


EncoderConfig = TinyVitConfig | SamVitConfig
ENCODERS: dict[str, EncoderConfig] = {
    'mobilesam': TinyVitConfig(),
    'vit_b': SamVitConfig(),
    'vit_l': SamVitConfig(1024, 24, 16, (5, 11, 17, 23)),
    'vit_h': SamVitConfig(1280, 32, 16, (7, 15, 23, 31)),
}
_KINDS: dict[str, type[EncoderConfig]] = {'tiny_vit': TinyVitConfig, 'sam_vit': SamVitConfig}


@dataclass(frozen=True)
class FpSegConfig(ManifestConfig):
    """Sizes of an FPSeg network; the defaults are those of the published MobileSAM variant.

    Attributes:
        encoder: of the images.
        class_names: what the prompts stand for, in their order.
        prompt_size: tokens of the class that has most.
        input_size_px: side of the square input image.
        width: channels of the embedding and of the prompt tokens.
        decoder_depth, decoder_heads, decoder_mlp: sizes of the two-way transformer.
        attention_bias: `live`, or `zero` to leave TinyViT's attention biases out. The published
            FPSeg prompts were tuned on embeddings made without them: the original caches the
            biases before it loads them, and its precomputation never refreshes the cache.
        fit: `squash` stretches an image to the square; `letterbox` keeps its proportions and
            pads.
        mean, std: normalisation of the RGB channels, of values in 0..1.

    Raises:
        BundleError: on construction, when the sizes do not fit together.
    """

    network: ClassVar[str] = 'FPSeg'
    family: ClassVar[str] = 'fpseg'
    title: ClassVar[str] = 'FPSeg'

    encoder: EncoderConfig = TinyVitConfig()
    class_names: tuple[str, ...] = CITYSCAPES_CLASSES
    prompt_size: int = 64
    input_size_px: int = 1024
    width: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    attention_bias: str = 'live'
    fit: str = 'squash'
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        """Refuse sizes that no network can have."""
        if self.input_size_px < STRIDE_PX or self.input_size_px % STRIDE_PX:
            below = max(self.input_size_px // STRIDE_PX, 1) * STRIDE_PX
            raise BundleError(
                f'an input size of {self.input_size_px} px cannot be cut into cells of '
                f'{STRIDE_PX} px; the nearest sizes that work are {below} and '
                f'{below + STRIDE_PX} px')
        if isinstance(self.encoder, SamVitConfig) and self.encoder.grid != self.grid:
            raise BundleError(f'the encoder is made for {self.encoder.grid} cells a side and '
                              f'{self.input_size_px} px have {self.grid}; import the checkpoint '
                              'for this input size')
        _check_heads('decoder', self.width, 2 * self.decoder_heads)
        if self.width % 8:
            raise BundleError(f'the decoder width {self.width} is not a multiple of 8')
        for name, value, known in (('attention_bias', self.attention_bias, ATTENTION_BIASES),
                                   ('fit', self.fit, FITS)):
            if value not in known:
                raise BundleError(f'{name} is {value!r}; it must be {" or ".join(known)}')
        if not self.class_names or self.prompt_size < 1:
            raise BundleError('an FPSeg network needs at least one class and one prompt token')
        if not all(isinstance(name, str) for name in self.class_names):
            raise BundleError('the class names of an FPSeg network have to be texts')

    @property
    def grid(self) -> int:
        """Return the number of cells along one side of the embedding."""
        return self.input_size_px // STRIDE_PX

    @property
    def mask_size_px(self) -> int:
        """Return the side of a mask as the decoder gives it."""
        return self.grid * MASK_SCALE

    @property
    def variant(self) -> str:
        """Return the name of the published encoder of these sizes, or its kind."""
        encoder = self.encoder
        if isinstance(encoder, SamVitConfig):
            encoder = replace(encoder, grid=SamVitConfig.grid)
        return next((name for name, known in ENCODERS.items() if known == encoder),
                    self.encoder.kind)

    @classmethod
    def typed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the fields' values from plain ones, the encoder's sizes as their own class."""
        encoder = tuples(values['encoder'])
        return {**tuples(values), 'encoder': _KINDS[encoder['kind']](**encoder)}
