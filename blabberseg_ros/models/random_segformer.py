# SPDX-License-Identifier: Apache-2.0
"""Segformer with random weights that behave like trained ones, for tests and benchmarks."""

import torch
from torch import Tensor

from blabberseg_ros.models.segformer import Segformer
from blabberseg_ros.models.segformer_config import SegformerConfig

# A frame takes milliseconds, an export seconds. Any prompt stands for some label.
SMALL = SegformerConfig(
    labels=('building', 'tree', 'water', 'vehicle', 'road', 'grass', 'soil', 'paved', 'structure',
            'person', 'field', 'sky', 'rail track', 'fence', 'bridge', 'roof'),
    input_size_px=128, hidden=(16, 24, 40, 48), depths=(1, 2, 1, 1), heads=(1, 2, 5, 6),
    decoder_width=32, embed_dim=24, text_width=32, text_heads=2, text_layers=2, text_mlp=64,
    min_similarity=-1.0)


@torch.no_grad()
def random_segformer(config: SegformerConfig, seed: int = 0,
                     logits_std: float = 2.0) -> Segformer:
    """Return a network with random weights whose logits have a chosen standard deviation.

    Args:
        config: sizes of the network.
        seed: of the weights; the same seed gives the same weights.
        logits_std: standard deviation of the logits over labels and pixels.

    Returns:
        The network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(seed)
    model = Segformer(config).eval()
    for name, weight in model.named_parameters():
        weight.copy_(_draw(name, weight, generator))
    # Statistics need no full-size image.
    logits = model.encode_image(torch.randn(1, 3, 64, 64, generator=generator))
    last = model.head.classifier
    last.weight.mul_(logits_std / logits.std())
    # No label wins everywhere.
    last.get_parameter('bias').sub_((logits * logits_std / logits.std()).mean((0, 2, 3)))
    if config.reads_text:
        words = torch.randint(1, config.vocab_size, (len(config.labels), config.context_length),
                              generator=generator)
        model.label_embedding.copy_(model.embed_text(words))
    return model


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if weight.ndim == 1:
        # Norms and biases off their neutral values, so that a mixed-up pair shows.
        is_scale = 'norm' in name or 'ln_' in name
        return 0.1 * noise + (1.0 if is_scale and name.endswith('.weight') else 0.0)
    if 'embedding' in name and 'proj' not in name:
        return noise
    fan_in = weight.shape[0] if name == 'text.text_projection' else weight[0].numel()
    return noise / fan_in ** 0.5
