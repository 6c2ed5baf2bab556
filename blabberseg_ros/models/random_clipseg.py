# SPDX-License-Identifier: Apache-2.0
"""CLIPSeg with random weights that behave like trained ones, for tests and benchmarks."""

import torch
from torch import Tensor

from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig

# A frame takes milliseconds, an export seconds.
SMALL = ClipSegConfig(
    vision_width=96, vision_heads=3, vision_mlp=384, text_width=48, text_heads=3, text_layers=3,
    text_mlp=192, embed_dim=48, reduce_dim=16, decoder_ffn=64)
_UNPROMPTED_GAIN = 0.2
_TRANSPOSED = ('trans_conv.weight', 'trans_conv.2.weight', 'trans_conv.4.weight')


@torch.no_grad()
def random_clipseg(config: ClipSegConfig, seed: int = 0, logits_std: float = 2.0) -> ClipSeg:
    """Return a network with random weights whose logits have a chosen standard deviation.

    The default initialisation gives logits of thousands, where float32 itself is only good to
    5e-3. Here each matrix is drawn from N(0, 1 / fan-in), and the last layer is scaled.

    Args:
        config: sizes of the network.
        seed: of the weights; the same seed gives the same weights.
        logits_std: standard deviation of the logits over prompts and pixels.

    Returns:
        The network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    model = ClipSeg(config).eval()
    for name, weight in model.named_parameters():
        weight.copy_(_draw(name, weight, generator))
    # Statistics need no full-size image: sixteen patches and a few prompts tell enough.
    pixels = torch.randn(1, 3, 4 * config.patch_size_px, 4 * config.patch_size_px,
                         generator=generator)
    tokens = torch.randint(1, config.vocab_size, (4, config.context_length), generator=generator)
    logits = model(pixels, tokens)
    *_, (_, last) = model.trans_conv.named_modules()
    state = dict(last.named_parameters())
    state['weight'].mul_(logits_std / logits.std())
    state['bias'].zero_()
    return model


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if weight.ndim == 1:
        # Norms and biases off their neutral values, so that a mixed-up pair shows.
        scale_of_norm = name.endswith('.weight')
        return 0.1 * noise + (1.0 if scale_of_norm else 0.0)
    if 'embedding' in name:
        return noise
    # Prompts in one template differ little: let what depends on them outweigh what does not.
    if name.startswith(('reduces.1', 'reduces.2')):
        noise *= _UNPROMPTED_GAIN
    # A transposed convolution without overlap sums over its input channels, the first axis.
    inputs_first = name == 'text_projection' or name in _TRANSPOSED
    fan_in = weight.shape[0] if inputs_first else weight[0].numel()
    return noise / fan_in ** 0.5
