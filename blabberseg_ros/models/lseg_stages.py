# SPDX-License-Identifier: Apache-2.0
"""The stages of LSeg as torch modules: what is exported, and what the exports must equal.

    image_encoder   image uint8 [h, w, 3], rows [H, h], cols [w, W]
                    -> code [C, H/4, W/4], length [H/2, W/2]
    text_encoder    tokens int32 [P, 77] -> embedding [P, D], of length 1
    decoder         code, length, embedding -> logits [P, H, W]
    features        code, length -> features [D, H/2, W/2], of length 1
    fusion          logits [P, H, W], positive [P], rows [h, H], cols [W, w] -> probability [h, w]

h and w are the sides of the camera's image; H and W, multiples of 32, those of the network's input
(`models.lseg` tells why this equals the plain network).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.models.lseg import LSeg, length_factor, upsampled
from blabberseg_ros.models.stages import Fusion, Stage, resize, text_inputs

# Sides of what a stage takes or gives: those of the network's input, halves and quarters of them.
_INPUT = ('input_height', 'input_width')
_HALF = ('half_height', 'half_width')
_QUARTER = ('quarter_height', 'quarter_width')
# Vectors of the published network are some hundreds long. In half precision the squares of such
# numbers would overflow; those of numbers in this unit do not.
_LENGTH_UNIT = 16


def stages(model: LSeg) -> dict[str, Stage]:
    """Return the stages of a network, in the order of their use."""
    config = model.config
    code = TensorSpec('code', 'float32', (config.features, *_QUARTER))
    length = TensorSpec('length', 'float32', _HALF)
    embedding = TensorSpec('embedding', 'float32', ('prompts', config.embed_dim))
    logits = TensorSpec('logits', 'float32', ('prompts', *_INPUT))
    image = (TensorSpec('image', 'uint8', ('height', 'width', 3)),
             TensorSpec('rows', 'float32', (_INPUT[0], 'height')),
             TensorSpec('cols', 'float32', ('width', _INPUT[1])))
    fused = (logits, TensorSpec('positive', 'float32', ('prompts',)),
             TensorSpec('rows', 'float32', ('height', _INPUT[0])),
             TensorSpec('cols', 'float32', (_INPUT[1], 'width')))
    return {
        'text_encoder': Stage(TextEncoder(model), text_inputs(config.context_length),
                              (embedding,)),
        'image_encoder': Stage(ImageEncoder(model), image, (code, length)),
        'decoder': Stage(Decoder(model), (code, length, embedding), (logits,)),
        'features': Stage(Features(model), (code, length), (
            TensorSpec('features', 'float32', (config.embed_dim, *_HALF)),)),
        'fusion': Stage(Fusion(), fused, (
            TensorSpec('probability', 'float32', ('height', 'width')),)),
    }


class ImageEncoder(nn.Module):
    """From the camera's bytes to the code, and the lengths of the pixels' vectors."""

    scale: Tensor
    offset: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(self, model: LSeg) -> None:
        """Derive what computes the lengths."""
        super().__init__()
        self.model = model
        std = torch.tensor(model.config.std)
        factor, shift = length_factor(model.head)
        self.register_buffer('scale', (1 / (255 * std))[:, None, None])
        self.register_buffer('offset', (torch.tensor(model.config.mean) / std)[:, None, None])
        self.register_buffer('factor', factor[:, :, None, None] / _LENGTH_UNIT)
        self.register_buffer('shift', shift / _LENGTH_UNIT)

    def forward(self, image: Tensor, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        """Encode an image of any size; the matrices resize it to the network's."""
        # TensorRT takes uint8 only as the input of a cast.
        pixels = resize(image.float().permute(2, 0, 1), rows, cols)
        # The network may answer in half precision.
        code = self.model.encode_checked((pixels * self.scale - self.offset)[None]).float()
        return code[0], self.lengths(code)[0]

    def lengths(self, codes: Tensor) -> Tensor:
        """Return how long the head's answers are: [B, C, H/4, W/4] to [B, H/2, W/2]."""
        fine = upsampled(codes, 2 * codes.shape[-2], 2 * codes.shape[-1])
        parts = functional.conv2d(fine, self.factor, self.shift)
        return _LENGTH_UNIT * parts.square().sum(1).sqrt()


class TextEncoder(nn.Module):
    """From token ids to unit vectors."""

    def __init__(self, model: LSeg) -> None:
        """Take the network's text tower."""
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens [P, 77]."""
        embedding = self.model.encode_text(tokens)
        return embedding / embedding.square().sum(-1, keepdim=True).sqrt()


class Decoder(nn.Module):
    """From a code and the prompts' vectors to logits."""

    def __init__(self, model: LSeg) -> None:
        """Take the network's head."""
        super().__init__()
        self.model = model

    def forward(self, code: Tensor, length: Tensor, embedding: Tensor) -> Tensor:
        """Segment one image for P prompts."""
        head = self.model.head
        weight, bias = embedding @ head.weight.flatten(1), embedding @ head.get_parameter('bias')
        scores = (weight @ code.flatten(1) + bias[:, None]).unflatten(1, code.shape[-2:])[None]
        height, width = length.shape
        logits = self.model.config.logit_scale * upsampled(scores, height, width) / length
        return upsampled(logits, 2 * height, 2 * width)[0]


class Features(nn.Module):
    """From a code to the vectors of the pixels, for those who fuse them into maps."""

    def __init__(self, model: LSeg) -> None:
        """Take the network's head."""
        super().__init__()
        self.model = model

    def forward(self, code: Tensor, length: Tensor) -> Tensor:
        """Return the vector of every second pixel."""
        # The head runs before the doubling here too.
        return upsampled(self.model.head(code[None]), *length.shape)[0] / length
