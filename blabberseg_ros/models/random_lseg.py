# SPDX-License-Identifier: Apache-2.0
"""LSeg with random weights that behave like trained ones, for tests and benchmarks."""

import torch
from torch import Tensor

from blabberseg_ros.models.lseg import LSeg
from blabberseg_ros.models.lseg_config import LSegConfig

# Residual branches are kept small, so that the deep networks neither explode nor go deaf.
_BRANCHES = ('attn.proj.weight', 'mlp.fc2.weight', 'conv2.weight', 'conv3.weight')
_BRANCH_GAIN = 0.5
_TRANSPOSED = ('vision.reassemble.0.1.weight', 'vision.reassemble.1.1.weight')
# Sizes of a network whose export takes seconds.
SMALL = LSegConfig(
    input_size_px=128, pretrain_grid=6, vision_width=48, vision_heads=3, vision_layers=4,
    vision_mlp=96, hooks=(0, 1, 2, 3), reassemble=(16, 24, 32, 40), features=20, embed_dim=24,
    text_width=32, text_heads=2, text_layers=2, text_mlp=64)
# Side of the noise on which the mean of the pixels' vectors is measured. The head's bias takes it
# off: without that every pixel of a random network points the same way.
_PROBE_PX = 96


@torch.no_grad()
def random_lseg(config: LSegConfig, seed: int = 0) -> LSeg:
    """Return a network whose matrices are drawn from N(0, 1 / fan-in).

    Args:
        config: sizes of the network.
        seed: of the weights; the same seed gives the same weights.

    Returns:
        The network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    model = LSeg(config).eval()
    for name, weight in model.named_parameters():
        weight.copy_(_draw(name, weight, generator))
    pixels = torch.randn(1, 3, _PROBE_PX, _PROBE_PX, generator=generator)
    code = model.encode_images(pixels)
    head = model.head
    head.get_parameter('bias').copy_(-(head.weight.flatten(1) @ code.mean((0, 2, 3))))
    return model


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if weight.ndim == 1:
        # Norms and biases off their neutral values, so that a mixed-up pair shows.
        return 0.1 * noise + (1.0 if name.endswith('.weight') else 0.0)
    if ('embed' in name and 'patch' not in name) or name.endswith('cls_token'):
        return 0.5 * noise
    # A transposed convolution without overlap sums over its input channels, the first axis.
    inputs_first = name == 'text.text_projection' or name in _TRANSPOSED
    fan_in = weight.shape[0] if inputs_first else weight[0].numel()
    gain = _BRANCH_GAIN if name.endswith(_BRANCHES) else 1.0
    return gain * noise / fan_in ** 0.5
