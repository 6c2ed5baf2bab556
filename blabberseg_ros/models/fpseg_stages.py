# SPDX-License-Identifier: Apache-2.0
"""The four stages of FPSeg as torch modules: what is exported, and what the exports must equal.

    image_encoder   image uint8 [H, W, 3], rows [S, H], cols [W, S] -> code [C, S/16, S/16]
    decoder         code, tokens [n, P, C], dense [n, C], bias [n, P] -> logits [n, S/4, S/4]
    fusion          logits, positive [n], rows [H, S/4], cols [S/4, W] -> probability [H, W]
    merge           logits -> classes int32 [S/4, S/4]

H, W and n, the number of classes, are free. The classes are inputs: which, how many and in which
order is the caller's choice. Everything is float32 unless said otherwise. Shapes as in
`models.fpseg`.
"""

import torch
from torch import Tensor, nn

from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.stages import Stage, image_inputs, resize


def stages(model: FpSeg) -> dict[str, Stage]:
    """Return the stages of a network, in the order of their use."""
    config = model.config
    width, grid, side = config.width, config.grid, config.mask_size_px
    code = TensorSpec('code', 'float32', (width, grid, grid))
    classes = (TensorSpec('tokens', 'float32', ('prompts', config.prompt_size, width)),
               TensorSpec('dense', 'float32', ('prompts', width)),
               TensorSpec('bias', 'float32', ('prompts', config.prompt_size)))
    logits = TensorSpec('logits', 'float32', ('prompts', side, side))
    return {
        'image_encoder': Stage(ImageEncoder(model), image_inputs(config.input_size_px), (code,)),
        'decoder': Stage(Decoder(model), (code, *classes), (logits,)),
        'fusion': Stage(
            FusionWithBackground(),
            (logits, TensorSpec('positive', 'float32', ('prompts',)),
             TensorSpec('rows', 'float32', ('height', side)),
             TensorSpec('cols', 'float32', (side, 'width'))),
            (TensorSpec('probability', 'float32', ('height', 'width')),)),
        'merge': Stage(Merge(), (logits,), (TensorSpec('classes', 'int32', (side, side)),)),
    }


class ImageEncoder(nn.Module):
    """From the camera's bytes to the embedding: resize, normalise, encode."""

    scale: Tensor
    offset: Tensor

    def __init__(self, model: FpSeg) -> None:
        """Take the network's encoder."""
        super().__init__()
        self.model = model
        std = torch.tensor(model.config.std)
        self.register_buffer('scale', (1 / (255 * std))[:, None, None])
        self.register_buffer('offset', (torch.tensor(model.config.mean) / std)[:, None, None])

    def forward(self, image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Encode an image of any size; the matrices resize it, and pad it where they are zero."""
        # TensorRT takes uint8 only as the input of a cast.
        pixels = resize(image.float().permute(2, 0, 1), rows, cols)
        # SAM pads after the normalisation: 1 inside the image, 0 outside, where no row and no
        # column has a weight.
        inside = rows.sum(1, keepdim=True) * cols.sum(0, keepdim=True)
        normalised = pixels * self.scale - self.offset * inside
        return self.model.encode_images(normalised[None])[0]


class Decoder(nn.Module):
    """From an embedding and any classes to their logits."""

    def __init__(self, model: FpSeg) -> None:
        """Take the network's decoder."""
        super().__init__()
        self.model = model

    def forward(self, code: Tensor, tokens: Tensor, dense: Tensor, bias: Tensor) -> Tensor:
        """Decode one image for n classes."""
        return self.model.decode(code[None], tokens, dense, bias)


class FusionWithBackground(nn.Module):
    """From logits to the probability of safe ground, at the size of the image.

    Each class decides for itself, so nothing need be there at all. A background with the logit 0,
    from which on a class counts as seen, takes part in the softmax and is never safe.
    """

    def forward(self, logits: Tensor, positive: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Sum the positives' share of the softmax over classes and background, then resize."""
        highest = logits.amax(0, keepdim=True).clamp(min=0)
        weight = torch.exp(logits - highest)
        safe = (positive[:, None, None] * weight).sum(0)
        return rows @ (safe / (weight.sum(0) + torch.exp(-highest[0]))) @ cols


class Merge(nn.Module):
    """From logits to a semantic map: the class that is surest, or -1 where none is seen."""

    def forward(self, logits: Tensor) -> Tensor:
        """Return the index of the highest logit above 0 for each cell."""
        highest, index = logits.max(dim=0)
        return torch.where(highest > 0, index, -1).to(torch.int32)
