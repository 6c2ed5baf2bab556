# SPDX-License-Identifier: Apache-2.0
"""The stages of Segformer as torch modules: what is exported, and what the exports must equal.

    image_encoder   image uint8 [H, W, 3], rows [S, H], cols [W, S] -> code [L, S / 4, S / 4]
    decoder         code [L, S / 4, S / 4] -> logits [L, S, S]
    fusion          logits [L, S, S], positive [L], rows [H, S], cols [S, W] -> probability [H, W]
    labels          code [L, S / 4, S / 4], rows [H, S / 4], cols [S / 4, W] -> labels uint8 [H, W]
    text_encoder    tokens int32 [P, 77] -> similarity [P, L], if the bundle has a text tower

The image code holds the logits of all labels, so prompts change nothing before the fusion. It is
always logits that are resized, never colours or label numbers. H, W and P are free. Everything is
float32 unless said otherwise.
"""

import torch
from torch import Tensor, nn

from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.models.segformer import Segformer
from blabberseg_ros.models.stages import (
    PixelInput,
    Stage,
    fusion_stage,
    image_inputs,
    text_inputs,
)


def stages(model: Segformer) -> dict[str, Stage]:
    """Return the stages of a network, in the order of their use."""
    config = model.config
    side, small, count = config.input_size_px, config.logits_side, len(config.labels)
    code = TensorSpec('code', 'float32', (count, small, small))
    found = {
        'image_encoder': Stage(ImageEncoder(model), image_inputs(side), (code,)),
        'decoder': Stage(Decoder(model), (code,),
                         (TensorSpec('logits', 'float32', (count, side, side)),)),
        'fusion': fusion_stage(side, count),
        'labels': Stage(
            Labels(), (code, TensorSpec('rows', 'float32', ('height', small)),
                       TensorSpec('cols', 'float32', (small, 'width'))),
            (TensorSpec('labels', 'uint8', ('height', 'width')),))}
    if config.reads_text:
        found['text_encoder'] = Stage(
            TextEncoder(model), text_inputs(config.context_length),
            (TensorSpec('similarity', 'float32', ('prompts', count)),))
    return found


class ImageEncoder(nn.Module):
    """From the camera's bytes to label logits: resize, normalise, network."""

    def __init__(self, model: Segformer) -> None:
        """Take the network and its normalisation."""
        super().__init__()
        self.model = model
        self.pixels = PixelInput(model.config.mean, model.config.std)

    def forward(self, image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Encode an image of any size; the matrices resize it."""
        return self.model.encode_image(self.pixels(image, rows, cols))[0]


class Decoder(nn.Module):
    """From an image code to logits at the input's size."""

    def __init__(self, model: Segformer) -> None:
        """Take the network."""
        super().__init__()
        self.model = model

    def forward(self, code: Tensor) -> Tensor:
        """Resize the logits."""
        return self.model.upsample(code)


class Labels(nn.Module):
    """From an image code to the likeliest label of each pixel of the camera's image."""

    def forward(self, code: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Resize the logits by the matrices, then choose."""
        return (rows @ code @ cols).argmax(0).to(torch.uint8)


class TextEncoder(nn.Module):
    """From token ids to the nearness of each label."""

    def __init__(self, model: Segformer) -> None:
        """Take the network's text tower."""
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Compare tokens [P, 77] with the labels."""
        return self.model.similarity(tokens)
