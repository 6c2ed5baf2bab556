# SPDX-License-Identifier: Apache-2.0
"""The five stages of CLIPSeg as torch modules: what is exported, and what the exports must equal.

    image_encoder   image uint8 [H, W, 3], rows [S, H], cols [W, S] -> code [L, T, r]
    text_encoder    tokens int32 [P, 77] -> conditional [P, D]
    film            conditional [P, D] -> mul [P, r], add [P, r]
    decoder         code [L, T, r], mul [P, r], add [P, r] -> logits [P, S, S]
    fusion          logits [P, S, S], positive [P], rows [H, S], cols [S, W] -> probability [H, W]

H, W and P are free; H and W are the sides of the camera's image. Everything is float32 unless said
otherwise. Shapes as in `models.clipseg`.
"""

from torch import Tensor, nn

from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.stages import (
    PixelInput,
    Stage,
    fusion_stage,
    image_inputs,
    text_inputs,
)


def stages(model: ClipSeg) -> dict[str, Stage]:
    """Return the stages of a network, in the order of their use."""
    config = model.config
    side, width = config.input_size_px, config.reduce_dim
    code = TensorSpec('code', 'float32', (len(config.extract), config.tokens, width))
    pair = tuple(TensorSpec(name, 'float32', ('prompts', width)) for name in ('mul', 'add'))
    conditional = TensorSpec('conditional', 'float32', ('prompts', config.embed_dim))
    logits = TensorSpec('logits', 'float32', ('prompts', side, side))
    return {
        'text_encoder': Stage(TextEncoder(model), text_inputs(config.context_length),
                              (conditional,)),
        'film': Stage(Film(model), (conditional,), pair),
        'image_encoder': Stage(ImageEncoder(model), image_inputs(side), (code,)),
        'decoder': Stage(Decoder(model), (code, *pair), (logits,)),
        'fusion': fusion_stage(side),
    }


class ImageEncoder(nn.Module):
    """From the camera's bytes to the image code: resize, normalise, tower, projections."""

    position: Tensor

    def __init__(self, model: ClipSeg) -> None:
        """Fix the input size to the configuration's, and the position embedding with it."""
        super().__init__()
        config = model.config
        self.model = model
        self.pixels = PixelInput(config.mean, config.std)
        self.register_buffer('position', model.position_embedding(config.grid).detach().clone())

    def forward(self, image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Encode an image of any size; the matrices resize it."""
        return self.model.encode_image(self.pixels(image, rows, cols), self.position)


class TextEncoder(nn.Module):
    """From token ids to conditionals."""

    def __init__(self, model: ClipSeg) -> None:
        """Take the network's text tower."""
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens [P, 77]."""
        return self.model.encode_text(tokens)


class Film(nn.Module):
    """From conditionals to FiLM pairs."""

    def __init__(self, model: ClipSeg) -> None:
        """Take the network's FiLM layers."""
        super().__init__()
        self.model = model

    def forward(self, conditional: Tensor) -> tuple[Tensor, Tensor]:
        """Project conditionals [P, D]."""
        return self.model.film(conditional)


class Decoder(nn.Module):
    """From an image code and FiLM pairs to logits."""

    def __init__(self, model: ClipSeg) -> None:
        """Take the network's decoder."""
        super().__init__()
        self.model = model

    def forward(self, code: Tensor, mul: Tensor, add: Tensor) -> Tensor:
        """Decode one image for P prompts."""
        return self.model.decode(code, mul, add)
