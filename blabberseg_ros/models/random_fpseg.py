# SPDX-License-Identifier: Apache-2.0
"""FPSeg with random weights that behave like trained ones, for tests and benchmarks."""

import torch
from torch import Tensor

from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import FpSegConfig, TinyVitConfig
from blabberseg_ros.sim.classes import CLASSES

# A frame takes milliseconds, an export seconds. Windows of 7 do not divide its 32 and 16 cells,
# so padding takes part.
SMALL = FpSegConfig(
    encoder=TinyVitConfig(embed_dims=(16, 32, 48, 64), depths=(1, 1, 2, 1), heads=(1, 2, 3, 4),
                          windows=(7, 7, 7, 7)),
    class_names=tuple(CLASSES.values()), prompt_size=3, input_size_px=256, width=32,
    decoder_heads=2, decoder_mlp=64)
_TABLES = ('attention_biases', 'pos_embed', 'rel_pos')


@torch.no_grad()
def random_fpseg(config: FpSegConfig, seed: int = 0, logits_std: float = 2.0) -> FpSeg:
    """Return a network with random weights whose logits have a chosen standard deviation.

    Args:
        config: sizes of the network.
        seed: of the weights; the same seed gives the same weights.
        logits_std: standard deviation of the logits over classes and pixels.

    Returns:
        The network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    model = FpSeg(config).eval()
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            weight.copy_(_draw(name, weight, generator))
    # The decoder takes any grid: a small embedding of unit cells tells enough.
    embedding = torch.randn(1, config.width, 8, 8, generator=generator)
    logits = model.decode(embedding, model.prompt_encoder.prompt_embeddings)
    state = model.state_dict()
    for kind in ('weight', 'bias'):
        state[f'mask_decoder.output_hypernetworks_mlps.0.layers.2.{kind}'].mul_(
            logits_std / logits.std())
    return model


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if name.endswith('running_var'):
        return 1 + 0.1 * noise.abs()
    if weight.ndim == 1:
        # Norms and biases off their neutral values, so that a mixed-up pair shows.
        scale_of_norm = name.endswith('.weight')
        return 0.1 * noise + (1.0 if scale_of_norm else 0.0)
    if any(part in name for part in _TABLES):
        return 0.5 * noise
    if name.startswith('prompt_encoder.') or name.endswith('mask_tokens.weight'):
        return noise
    # A transposed convolution without overlap sums over its input channels, the first axis.
    inputs_first = 'output_upscaling' in name
    fan_in = weight.shape[0] if inputs_first else weight[0].numel()
    return noise / fan_in ** 0.5
