# SPDX-License-Identifier: Apache-2.0
"""The five stages of CLIPSeg as torch modules: what is exported, and what the exports must equal.

Shapes as in `models.clipseg`; H and W are the sides of the camera's image.
"""

import torch
from torch import Tensor, nn

from blabberseg_ros.models.clipseg import ClipSeg


class ImageEncoder(nn.Module):
    """From the camera's bytes to the image code: resize, normalise, tower, projections."""

    scale: Tensor
    offset: Tensor
    position: Tensor

    def __init__(self, model: ClipSeg) -> None:
        """Fix the input size to the configuration's, and the position embedding with it."""
        super().__init__()
        config = model.config
        self.model = model
        std = torch.tensor(config.std)
        self.register_buffer('scale', (1 / (255 * std))[:, None, None])
        self.register_buffer('offset', (torch.tensor(config.mean) / std)[:, None, None])
        self.register_buffer('position', model.position_embedding(config.grid).detach().clone())

    def forward(self, image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Encode an image of any size; the matrices resize it."""
        # TensorRT takes uint8 only as the input of a cast.
        pixels = resize(image.float().permute(2, 0, 1), rows, cols)
        return self.model.encode_image((pixels * self.scale - self.offset)[None], self.position)


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


class Fusion(nn.Module):
    """From logits to the probability of safe ground, blurred and resized by the matrices."""

    def forward(self, logits: Tensor, positive: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Sum the positives' share of the softmax over the prompts, then resize."""
        # Softmax over the first axis by hand: engines would transpose the whole tensor for it.
        weight = torch.exp(logits - logits.amax(0, keepdim=True))
        safe = (positive[:, None, None] * weight).sum(0)
        return rows @ (safe / weight.sum(0)) @ cols


def resize(image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Resize grey levels as PIL's bilinear filter does, to whole levels.

    PIL rounds after each of its two passes, across first or down first depending on its version
    and the image. Rounding once, half up, keeps within one level of it whichever way it went;
    rounding twice would not, since ties can fall apart twice.

    Args:
        image: float [3, H, W] with whole values in 0..255.
        rows: float [S, H].
        cols: float [W, S].

    Returns:
        float [3, S, S] with whole values in 0..255.
    """
    return torch.clamp(torch.floor(rows @ (image @ cols) + 0.5), 0, 255)
