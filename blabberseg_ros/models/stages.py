# SPDX-License-Identifier: Apache-2.0
"""What the families' stages have in common: how a stage is described, resizing, fusion.

A stage is a torch module with named inputs and outputs. From this one description come the ONNX
graph, the reference that engines are compared with, and the names of its nodes. The stages of a
family are listed in `models.FAMILY_stages`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blabberseg_ros.engines.base import TensorSpec

# Example lengths of the free axes, all different from each other and from the sizes of networks.
_EXAMPLE_LENGTHS = {'prompts': 3, 'height': 41, 'width': 57, 'input_height': 96,
                    'input_width': 160, 'half_height': 48, 'half_width': 80,
                    'quarter_height': 24, 'quarter_width': 40}
_OTHER_EXAMPLE_LENGTH = 5


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a network.

    Attributes:
        module: in evaluation mode. Parameters of the network lie under its attribute `model`.
        inputs: in the order of the module's arguments; a text in a shape is a free axis.
        outputs: in the order of the module's results.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def example(self) -> tuple[Tensor, ...]:
        """Return one tensor for each input, small along the free axes."""
        return tuple(_example(spec) for spec in self.inputs)


def _example(spec: TensorSpec) -> Tensor:
    shape = [_EXAMPLE_LENGTHS.get(length, _OTHER_EXAMPLE_LENGTH) if isinstance(length, str)
             else length for length in spec.shape]
    # Ones: token ids that stand for words.
    return torch.ones(shape, dtype=getattr(torch, spec.dtype))


def image_inputs(side: int) -> tuple[TensorSpec, ...]:
    """Return the inputs of an image encoder: a camera's image, and what resizes it to a square."""
    return (TensorSpec('image', 'uint8', ('height', 'width', 3)),
            TensorSpec('rows', 'float32', (side, 'height')),
            TensorSpec('cols', 'float32', ('width', side)))


def text_inputs(context_length: int = 77) -> tuple[TensorSpec, ...]:
    """Return the input of a text tower: token ids."""
    return (TensorSpec('tokens', 'int32', ('prompts', context_length)),)


def fusion_stage(side: int, count: int | str = 'prompts') -> Stage:
    """Return the stage from logits [count, side, side] to the probability of safe ground."""
    return Stage(
        Fusion(),
        (TensorSpec('logits', 'float32', (count, side, side)),
         TensorSpec('positive', 'float32', (count,)),
         TensorSpec('rows', 'float32', ('height', side)),
         TensorSpec('cols', 'float32', (side, 'width'))),
        (TensorSpec('probability', 'float32', ('height', 'width')),))


class PixelInput(nn.Module):
    """From the camera's bytes to what a network takes: resized and normalised."""

    scale: Tensor
    offset: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the normalisation of values in 0..1."""
        super().__init__()
        self.register_buffer('scale', (1 / (255 * torch.tensor(std)))[:, None, None])
        self.register_buffer('offset', (torch.tensor(mean) / torch.tensor(std))[:, None, None])

    def forward(self, image: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Map uint8 [H, W, 3] to float [1, 3, S, S]; the matrices resize it."""
        # TensorRT takes uint8 only as the input of a cast.
        pixels = resize(image.float().permute(2, 0, 1), rows, cols)
        return (pixels * self.scale - self.offset)[None]


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
