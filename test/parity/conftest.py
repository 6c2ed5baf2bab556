# SPDX-License-Identifier: Apache-2.0
"""The oracle, transformers' CLIPSeg with redrawn weights, and small exported bundles."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import transformers

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.load_clipseg import load_clipseg
from blabberseg_ros.models.random_clipseg import random_clipseg

SMALL = {
    'vision': {'hidden_size': 128, 'intermediate_size': 256, 'num_attention_heads': 2},
    'text': {'hidden_size': 64, 'intermediate_size': 128, 'num_attention_heads': 1,
             'num_hidden_layers': 3},
    'projection_dim': 48,
}
FULL = {'vision': {}, 'text': {}, 'projection_dim': 512}


@dataclass(frozen=True)
class Oracle:
    """A model of transformers and the folder that it was saved to."""

    model: transformers.CLIPSegForImageSegmentation
    folder: Path


def redraw(model, logits_std):
    """Draw each matrix from N(0, 1 / fan-in) and scale the last layer for the logits."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim < 2:
                is_scale = 'norm' in name and name.endswith('.weight')
                weight.copy_(0.1 * noise + (1.0 if is_scale else 0.0))
            else:
                transposed = 'transposed_convolution' in name and weight.shape[-1] != 3
                fan_in = weight.shape[0] if transposed else weight[0].numel()
                weight.copy_(noise / fan_in ** 0.5)
        pixels = torch.randn(1, 3, 64, 64, generator=generator)
        logits = model(input_ids=torch.tensor([[49406, 320, 49407]]), pixel_values=pixels).logits
        last = model.decoder.transposed_convolution
        last = last[-1] if isinstance(last, torch.nn.Sequential) else last
        last.weight.mul_(logits_std / logits.std())
        last.bias.fill_(0.25)


@pytest.fixture(scope='session')
def make_oracle(tmp_path_factory) -> Callable[..., Oracle]:
    """Return a maker of oracles: decoder width, head, and whether of the published size."""
    def make(reduce_dim=64, head='complex', full_size=False):
        sizes = FULL if full_size else SMALL
        config = transformers.CLIPSegConfig(
            vision_config={'patch_size': 16, **sizes['vision']},
            # As in the published files.
            text_config={'eos_token_id': 2, 'bos_token_id': 0, **sizes['text']},
            projection_dim=sizes['projection_dim'], reduce_dim=reduce_dim,
            use_complex_transposed_convolution=head == 'complex')
        model = transformers.CLIPSegForImageSegmentation(config).eval()
        redraw(model, logits_std=2.0)
        folder = tmp_path_factory.mktemp('hugging_face')
        model.save_pretrained(folder)
        return Oracle(model, folder)
    return make


@pytest.fixture(scope='session')
def export_config():
    """Return sizes of a network whose export takes seconds."""
    return ClipSegConfig(
        input_size_px=176, vision_width=48, vision_heads=3, vision_layers=4, vision_mlp=96,
        extract=(1, 2, 3), text_width=32, text_heads=2, text_layers=2, text_mlp=64, embed_dim=24,
        reduce_dim=16, decoder_ffn=32)


@pytest.fixture(scope='session', params=['fp32-complex', 'fp16-simple'])
def exported(request, export_config, random_bundle, tmp_path_factory):
    """Return an exported bundle and the network that it holds, in both storages and heads."""
    storage, head = request.param.split('-')
    folder = tmp_path_factory.mktemp('exported') / request.param
    export_bundle(random_clipseg(replace(export_config, head=head)), folder, name=request.param,
                  source='random weights', licence='none needed', storage=storage,
                  tokenizer_json=random_bundle / 'tokenizer.json')
    bundle = load_bundle(folder)
    return bundle, load_clipseg(bundle)
