# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of SAM, MobileSAM and FPSeg: every key is known, no other is needed."""

import hashlib
import math
import pickle
from dataclasses import replace

import pytest
import torch

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import CITYSCAPES_CLASSES, SamVitConfig
from blabberseg_ros.models.import_fpseg import (
    git_blob_id,
    import_checkpoint,
    import_model,
    recognises,
)
from blabberseg_ros.models.importing import ImportOptions, Source
from blabberseg_ros.models.random_fpseg import SMALL, random_fpseg

PROMPTS = 'prompt_encoder.prompt_embeddings'
CONFIG = replace(SMALL, decoder_heads=8, width=64, class_names=CITYSCAPES_CLASSES)
# Strides are not in a checkpoint: TinyViT's rule reads them from the published widths.
ENCODER = replace(SMALL.encoder, embed_dims=(16, 32, 48, 320), heads=(2, 2, 3, 4),
                  windows=(7, 7, 3, 7))
MOBILE = replace(CONFIG, encoder=ENCODER)
VIT = replace(CONFIG, encoder=SamVitConfig(32, 3, 2, (1,), window=14, grid=64),
              input_size_px=1024)


def fpseg_state(config):
    return dict(random_fpseg(config).state_dict())


def sam_state(config):
    """Return what SAM's file has: more tokens and heads, prompts for points, no classes."""
    state = fpseg_state(config)
    width = config.width
    del state[PROMPTS]
    tokens = state['mask_decoder.mask_tokens.weight']
    state['mask_decoder.mask_tokens.weight'] = torch.cat((tokens, torch.randn(3, width)))
    state['mask_decoder.iou_token.weight'] = torch.randn(1, width)
    for index in (1, 2, 3):
        for layer in range(3):
            own = f'mask_decoder.output_hypernetworks_mlps.0.layers.{layer}'
            for kind in ('weight', 'bias'):
                state[f'mask_decoder.output_hypernetworks_mlps.{index}.layers.{layer}.{kind}'] = \
                    state[f'{own}.{kind}'] + 1
                state[f'mask_decoder.iou_prediction_head.layers.{layer}.{kind}'] = torch.randn(4)
    for index in range(4):
        state[f'prompt_encoder.point_embeddings.{index}.weight'] = torch.randn(1, width)
    state['prompt_encoder.not_a_point_embed.weight'] = torch.randn(1, width)
    for index in (0, 1, 3, 4, 6):
        for kind in ('weight', 'bias'):
            state[f'prompt_encoder.mask_downscaling.{index}.{kind}'] = torch.randn(4)
    return state


def mobile_sam_state(config):
    head = {f'image_encoder.{name}.{kind}': torch.randn(3)
            for name in ('norm_head', 'head') for kind in ('weight', 'bias')}
    return {**sam_state(config), **head}


@pytest.fixture
def saved(tmp_path):
    def save(state, name='checkpoint.pth'):
        torch.save(state, tmp_path / name)
        return tmp_path / name
    return save


def assert_same_weights(model, state):
    for key, weight in model.state_dict().items():
        if key in state and key != 'mask_decoder.mask_tokens.weight':
            assert torch.equal(weight, state[key]), key


def test_an_fpseg_file_is_read_whole(saved):
    state = fpseg_state(MOBILE)
    path = saved(state)
    imported = import_checkpoint(path, input_size_px=256)
    assert imported.model.config == replace(MOBILE, attention_bias='zero')
    assert_same_weights(imported.model, state)
    assert path.name in imported.source
    assert 'untuned' not in imported.source
    assert 'ask' in imported.licence
    assert not imported.reads_text


def test_a_mobile_sam_file_gets_random_classes(saved):
    state = mobile_sam_state(MOBILE)
    path = saved(state)
    imported = import_checkpoint(path, classes=('road', 'sky'), prompt_size=5, input_size_px=256)
    config = imported.model.config
    assert (config.class_names, config.prompt_size) == (('road', 'sky'), 5)
    assert config.attention_bias == 'live'
    assert 'untuned' in imported.source
    assert_same_weights(imported.model, state)
    assert torch.equal(imported.model.mask_decoder.mask_tokens.weight,
                       state['mask_decoder.mask_tokens.weight'][:1])
    again = import_checkpoint(path, classes=('road', 'sky'), prompt_size=5, input_size_px=256)
    assert torch.equal(again.model.state_dict()[PROMPTS], imported.model.state_dict()[PROMPTS])


def test_a_sam_file_is_read_at_its_own_size(saved):
    state = sam_state(VIT)
    imported = import_checkpoint(saved(state), classes=('road',))
    assert imported.model.config.encoder == VIT.encoder
    assert imported.model.config.attention_bias == 'live'
    assert_same_weights(imported.model, state)


@torch.no_grad()
def test_a_sam_file_is_read_at_another_size(saved):
    state = sam_state(VIT)
    ramp = torch.linspace(0, 1, 64)
    state['image_encoder.pos_embed'] = ramp[None, :, None, None].expand(1, 64, 64, 32).clone()
    key = 'image_encoder.blocks.1.attn.rel_pos_h'
    state[key] = torch.linspace(-1, 1, 127)[:, None].expand(-1, 16).clone()
    model = import_checkpoint(saved(state), classes=('road',), input_size_px=256).model
    assert model.config.encoder == replace(VIT.encoder, grid=16)
    position = model.image_encoder.pos_embed
    assert position.shape == (1, 16, 16, 32)
    torch.testing.assert_close(position[0, :, 0, 0], ramp.reshape(16, 4).mean(1), atol=0.02,
                               rtol=0)
    table = model.image_encoder.blocks[1].attn.rel_pos_h
    assert table.shape == (31, 16)
    assert abs(table[15].mean()) < 1e-5
    # Within windows nothing changes.
    other = 'image_encoder.blocks.0.attn.rel_pos_h'
    assert torch.equal(model.state_dict()[other], state[other])
    assert model(torch.randn(1, 3, 256, 256)).shape == (1, 1, 64, 64)


def test_classes_of_the_published_file_can_be_chosen(saved):
    state = fpseg_state(MOBILE)
    names = ('Sky', 'road', 'person')
    model = import_checkpoint(saved(state), classes=names, input_size_px=256).model
    assert model.config.class_names == names
    rows = [CITYSCAPES_CLASSES.index(name.lower()) for name in names]
    assert torch.equal(model.state_dict()[PROMPTS], state[PROMPTS][rows])


def test_all_classes_can_be_renamed(saved):
    names = tuple(f'class {index}' for index in range(33))
    model = import_checkpoint(saved(fpseg_state(MOBILE)), classes=names, input_size_px=256).model
    assert model.config.class_names == names


@pytest.mark.parametrize(('bias', 'expected'), [(None, 'zero'), ('live', 'live')])
def test_the_attention_bias_is_the_callers_choice(saved, bias, expected):
    path = saved(fpseg_state(MOBILE))
    config = import_checkpoint(path, attention_bias=bias, input_size_px=256).model.config
    assert config.attention_bias == expected


@pytest.mark.parametrize(('change', 'message'), [
    ({'extra.weight': torch.zeros(2)}, r'Not expected: extra\.weight'),
    ({'mask_decoder.transformer.layers.2.norm1.weight': torch.zeros(64)}, 'Missing'),
    ({'mask_decoder.transformer.norm_final_attn.weight': None}, 'Missing: mask_decoder'),
    ({'image_encoder.neck.2.weight': torch.zeros(64, 64, 1, 1)}, 'has the shape'),
    ({'image_encoder.patch_embed.seq.0.c.weight': None}, 'no image encoder'),
    ({'image_encoder.layers.1.blocks.0.attn.attention_biases': None}, 'not a whole checkpoint'),
])
def test_other_keys_and_shapes_are_refused(saved, change, message):
    state = {**fpseg_state(MOBILE), **change}
    state = {key: value for key, value in state.items() if value is not None}
    with pytest.raises(BundleError, match=message):
        import_checkpoint(saved(state), input_size_px=256)


@pytest.mark.parametrize(('options', 'message'), [
    ({}, '--classes'), ({'classes': ('a', 'A')}, 'twice'),
    ({'classes': ('a',), 'prompt_size': 0}, 'prompt size of 0'),
    ({'classes': ('a',), 'input_size_px': 250}, '240 and 256'),
    ({'classes': ('a',), 'fit': 'crop'}, 'squash or letterbox')])
def test_what_a_plain_file_needs_is_said(saved, options, message):
    with pytest.raises(BundleError, match=message):
        import_checkpoint(saved(mobile_sam_state(MOBILE)), **{'input_size_px': 256, **options})


@pytest.mark.parametrize(('options', 'message'), [
    ({'classes': ('a', 'b')}, 'has 33 classes'), ({'prompt_size': 9}, '3 tokens')])
def test_what_a_file_with_classes_cannot_do_is_said(saved, options, message):
    with pytest.raises(BundleError, match=message):
        import_checkpoint(saved(fpseg_state(MOBILE)), **{'input_size_px': 256, **options})


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / 'checkpoint.pth'
    path.write_bytes(pickle.dumps({'weight': math.hypot}))
    with pytest.raises(BundleError):
        import_checkpoint(path)


def test_the_command_lines_options_are_taken(saved, tmp_path):
    names = tmp_path / 'classes.txt'
    names.write_text('road\n\nsky \n')
    path = saved(mobile_sam_state(MOBILE))
    assert recognises(Source.look(path))
    model = import_model(path, ImportOptions(256, classes=names, prompt_size=2, fit='letterbox',
                                             attention_bias='zero')).model
    config = model.config
    assert (config.class_names, config.fit) == (('road', 'sky'), 'letterbox')
    assert (config.prompt_size, config.attention_bias) == (2, 'zero')
    with pytest.raises(BundleError, match='--clip'):
        import_model(path, ImportOptions(256, clip='openai'))
    names.write_text(' \n')
    with pytest.raises(BundleError, match='no class'):
        import_model(path, ImportOptions(256, classes=names))


def test_files_are_told_by_gits_name_of_them(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'content')
    expected = hashlib.sha1(b'blob 7\x00content', usedforsecurity=False).hexdigest()
    assert git_blob_id(path) == expected


def test_a_file_of_another_family_is_not_ours(saved):
    assert not recognises(Source.look(saved({'film_mul.weight': torch.zeros(2, 2)})))
    assert isinstance(random_fpseg(SMALL), FpSeg)
