# SPDX-License-Identifier: Apache-2.0
"""A small random CLIPSeg, and its weights in the authors' two-file format."""

import pytest
import torch

from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.random_clipseg import random_clipseg


@pytest.fixture(scope='session')
def small_config():
    # 64 channels a head in both towers: OpenAI's rule, which the importer relies on.
    return ClipSegConfig(
        input_size_px=96, vision_width=128, vision_heads=2, vision_mlp=192, text_width=64,
        text_heads=1, text_layers=2, text_mlp=128, embed_dim=48, vocab_size=300, reduce_dim=16,
        decoder_ffn=32)


@pytest.fixture(scope='session')
def model(small_config):
    return random_clipseg(small_config, seed=3)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens():
    return torch.randint(1, 300, (5, 77), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def original_files(model, tmp_path):
    """Write the authors' decoder file and an open_clip checkpoint; return their paths."""
    state = model.state_dict()
    is_clip = {key: key.startswith(('visual.', 'transformer.', 'token_embedding', 'positional',
                                    'ln_final', 'text_projection')) for key in state}
    decoder = {key: value for key, value in state.items() if not is_clip[key]}
    decoder |= {'reduce.weight': torch.ones(16, 128), 'reduce.bias': torch.ones(16)}
    clip = {key: value for key, value in state.items() if is_clip[key]}
    clip |= {'visual.proj': torch.ones(128, 48), 'visual.ln_post.weight': torch.ones(128),
             'visual.ln_post.bias': torch.ones(128), 'logit_scale': torch.ones(()),
             'input_resolution': torch.tensor(224), 'context_length': torch.tensor(77),
             'vocab_size': torch.tensor(300)}
    last = 'visual.transformer.resblocks.9.'
    for block in (10, 11):
        clip |= {key.replace('.9.', f'.{block}.'): value
                 for key, value in clip.items() if key.startswith(last)}
    torch.save(decoder, tmp_path / 'rd16-uni-refined.pth')
    torch.save(clip, tmp_path / 'ViT-B-16.pt')
    return tmp_path / 'rd16-uni-refined.pth', tmp_path / 'ViT-B-16.pt'
