# SPDX-License-Identifier: Apache-2.0
"""Our network against transformers' CLIPSegForImageSegmentation, both importers between them."""

import json
import shutil

import numpy as np
import pytest
import torch

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.import_clipseg import (
    import_hugging_face,
    import_original,
)
from blabberseg_ros.models.importing import download
from blabberseg_ros.prompts import default_prompts
from blabberseg_ros.text import END_ID, Tokenizer


@pytest.fixture(scope='module')
def prompt_ids(random_bundle):
    """Return the ids of the thirteen default prompts, int32 [13, 77]."""
    tokenizer = Tokenizer.from_file(random_bundle / 'tokenizer.json')
    return torch.from_numpy(np.stack([tokenizer.encode(text).ids
                                      for text in default_prompts().texts]))


@pytest.fixture(scope='module')
def pixels():
    """Return a smooth random image, normalised, float [1, 3, 352, 352]."""
    noise = torch.randn(1, 3, 44, 44, generator=torch.Generator().manual_seed(7))
    return torch.nn.functional.interpolate(noise, (352, 352), mode='bilinear')


def theirs(oracle, ids, pixels):
    """Run transformers as its users do: padded to the longest, one image a prompt."""
    lengths = ids.argmax(dim=-1) + 1
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    padded = torch.where(mask, ids[:, :mask.shape[1]].long(), END_ID)
    images = pixels.expand(len(ids), -1, -1, -1)
    model = oracle.model
    conditional = model.get_conditional_embeddings(
        batch_size=len(ids), input_ids=padded, attention_mask=mask.long())
    states = model.clip.vision_model(pixels, output_hidden_states=True).hidden_states
    logits = model(input_ids=padded, attention_mask=mask.long(), pixel_values=images).logits
    return conditional, [states[layer + 1] for layer in (3, 6, 9)], \
        logits.reshape(len(ids), 352, 352)


def assert_close(ours, expected):
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-4 * max(1.0, expected.std().item())


@torch.no_grad()
def assert_parity(oracle, ids, pixels):
    model = import_hugging_face(oracle.folder).model
    conditional, activations, logits = theirs(oracle, ids, pixels)
    assert_close(model.encode_text(ids), conditional)
    for ours, expected in zip(model.activations(pixels), activations, strict=True):
        assert_close(ours, expected)
    mul, add = model.film(conditional)
    assert_close(model.decode(model.encode_image(pixels), mul, add), logits)
    assert_close(model(pixels, ids)[0], logits)
    return logits


@pytest.mark.parametrize('prompts', [1, 13])
@pytest.mark.parametrize('head', ['simple', 'complex'])
@pytest.mark.parametrize('reduce_dim', [16, 64])
def test_parity(make_oracle, prompt_ids, pixels, reduce_dim, head, prompts):
    logits = assert_parity(make_oracle(reduce_dim, head), prompt_ids[:prompts], pixels)
    assert 1 <= logits.std() <= 5


def test_parity_at_full_size(make_oracle, prompt_ids, pixels):
    """rd64-refined as published: ViT-B/16, twelve text layers, thirteen prompts."""
    oracle = make_oracle(full_size=True)
    logits = assert_parity(oracle, prompt_ids, pixels)
    assert 1 <= logits.std() <= 5
    shutil.rmtree(oracle.folder)  # 600 MB


@torch.no_grad()
def test_another_input_size(make_oracle, prompt_ids):
    oracle = make_oracle()
    image = torch.randn(1, 3, 224 + 64, 224 + 64, generator=torch.Generator().manual_seed(3))
    model = import_hugging_face(oracle.folder, input_size_px=288).model
    expected = oracle.model(input_ids=prompt_ids[:1].long(), pixel_values=image).logits
    assert_close(model(image, prompt_ids[:1])[0], expected.reshape(1, 288, 288))


@pytest.fixture(scope='module')
def hugging_face(make_oracle):
    """Return one oracle with an rd64-refined head, for tests of the formats."""
    return make_oracle()


def state_of(folder):
    return import_hugging_face(folder).model.state_dict()


def assert_same_states(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_both_importers_read_the_same_network(hugging_face, tmp_path):
    """The same weights, written by hand into the authors' format."""
    source = hugging_face.model.state_dict()
    clip = {'logit_scale': source['clip.logit_scale'],
            'visual.proj': source['clip.visual_projection.weight'].T,
            'text_projection': source['clip.text_projection.weight'].T}
    towers = (('clip.vision_model', 'visual.', 12), ('clip.text_model', '', 3))
    for tower, prefix, layers in towers:
        for layer in range(layers):
            theirs_at = f'{tower}.encoder.layers.{layer}'
            ours_at = f'{prefix}transformer.resblocks.{layer}'
            for kind in ('weight', 'bias'):
                clip[f'{ours_at}.attn.in_proj_{kind}'] = torch.cat(
                    [source[f'{theirs_at}.self_attn.{part}_proj.{kind}'] for part in 'qkv'])
                for our_part, their_part in (
                        ('attn.out_proj', 'self_attn.out_proj'), ('ln_1', 'layer_norm1'),
                        ('ln_2', 'layer_norm2'), ('mlp.c_fc', 'mlp.fc1'),
                        ('mlp.c_proj', 'mlp.fc2')):
                    clip[f'{ours_at}.{our_part}.{kind}'] = \
                        source[f'{theirs_at}.{their_part}.{kind}']
    embeddings = 'clip.vision_model.embeddings'
    clip['visual.class_embedding'] = source[f'{embeddings}.class_embedding']
    clip['visual.conv1.weight'] = source[f'{embeddings}.patch_embedding.weight']
    clip['visual.positional_embedding'] = source[f'{embeddings}.position_embedding.weight']
    embeddings = 'clip.text_model.embeddings'
    clip['token_embedding.weight'] = source[f'{embeddings}.token_embedding.weight']
    clip['positional_embedding'] = source[f'{embeddings}.position_embedding.weight']
    for kind in ('weight', 'bias'):
        clip[f'visual.ln_pre.{kind}'] = source[f'clip.vision_model.pre_layrnorm.{kind}']
        clip[f'visual.ln_post.{kind}'] = source[f'clip.vision_model.post_layernorm.{kind}']
        clip[f'ln_final.{kind}'] = source[f'clip.text_model.final_layer_norm.{kind}']
    decoder = {'reduce.weight': torch.zeros(64, 128), 'reduce.bias': torch.zeros(64)}
    for key, value in source.items():
        if key.startswith(('decoder.film', 'decoder.reduces')):
            decoder[key.removeprefix('decoder.')] = value
        elif key.startswith('decoder.transposed_convolution'):
            decoder[key.replace('decoder.transposed_convolution', 'trans_conv')] = value
    for layer in range(3):
        theirs_at, ours_at = f'decoder.layers.{layer}', f'blocks.{layer}'
        for kind in ('weight', 'bias'):
            decoder[f'{ours_at}.self_attn.in_proj_{kind}'] = torch.cat(
                [source[f'{theirs_at}.self_attn.{part}_proj.{kind}'] for part in 'qkv'])
            for our_part, their_part in (
                    ('self_attn.out_proj', 'self_attn.out_proj'), ('linear1', 'mlp.fc1'),
                    ('linear2', 'mlp.fc2'), ('norm1', 'layer_norm1'), ('norm2', 'layer_norm2')):
                decoder[f'{ours_at}.{our_part}.{kind}'] = \
                    source[f'{theirs_at}.{their_part}.{kind}']
    torch.save(decoder, tmp_path / 'rd64-uni-refined.pth')
    torch.save(clip, tmp_path / 'clip.pt')
    imported = import_original(tmp_path / 'rd64-uni-refined.pth', tmp_path / 'clip.pt')
    assert_same_states(imported.model.state_dict(), state_of(hugging_face.folder))


def test_a_bin_file_and_older_names_are_read(hugging_face, tmp_path):
    state = hugging_face.model.state_dict()
    older = {key.replace('clip.', 'clipseg.', 1) if key.startswith('clip.') else key: value
             for key, value in state.items()}
    older['clipseg.text_model.embeddings.position_ids'] = torch.arange(77)[None]
    older['clipseg.vision_model.embeddings.position_ids'] = torch.arange(197)[None]
    torch.save(older, tmp_path / 'pytorch_model.bin')
    shutil.copy(hugging_face.folder / 'config.json', tmp_path)
    assert_same_states(state_of(tmp_path), state_of(hugging_face.folder))


def test_a_local_folder_never_touches_the_network(hugging_face, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError('a connection was opened')
    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    assert import_hugging_face(hugging_face.folder).model is not None


def test_a_hub_id_is_downloaded_and_named(hugging_face, monkeypatch):
    import huggingface_hub
    asked = []

    def snapshot(hub_id, revision, allow_patterns):
        asked.append((hub_id, revision, tuple(allow_patterns)))
        return str(hugging_face.folder)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    folder = download('CIDAS/clipseg-rd64-refined')
    # The repository holds the weights several times; one is enough.
    assert asked == [('CIDAS/clipseg-rd64-refined', None, (
        'config.json', 'preprocessor_config.json', 'model.safetensors'))]
    assert folder == hugging_face.folder


def test_a_hub_without_a_network_is_explained(monkeypatch):
    import huggingface_hub

    def fail(*_, **__):
        raise OSError('no route to host')
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
    with pytest.raises(BundleError, match=r'no route to host.*give their folder'):
        download('CIDAS/clipseg-rd64-refined')


@pytest.mark.parametrize(('change', 'message'), [
    ({'model_type': 'segformer'}, "family 'segformer', not clipseg"),
    ({'conditional_layer': 1}, 'conditional_layer = 1'),
    ({'vision_config': {'hidden_act': 'gelu'}}, "hidden_act = 'gelu'"),
    ({'extract_layers': [3, 6]}, 'projects 3 layers'),
    ({'extract_layers': [3, 6, 12]}, 'Missing: visual.transformer.resblocks.12'),
    ({'decoder_num_attention_heads': 7}, 'decoder width 64'),
])
def test_another_configuration_is_refused(hugging_face, tmp_path, change, message):
    config = json.loads((hugging_face.folder / 'config.json').read_text(encoding='utf-8'))
    (tmp_path / 'config.json').write_text(json.dumps({**config, **change}), encoding='utf-8')
    (tmp_path / 'model.safetensors').symlink_to(hugging_face.folder / 'model.safetensors')
    with pytest.raises(BundleError, match=message):
        import_hugging_face(tmp_path)


def test_missing_and_unexpected_keys_are_named(hugging_face, tmp_path):
    state = dict(hugging_face.model.state_dict())
    del state['decoder.layers.1.self_attn.k_proj.weight']
    state['decoder.extra.weight'] = torch.ones(1)
    torch.save(state, tmp_path / 'pytorch_model.bin')
    shutil.copy(hugging_face.folder / 'config.json', tmp_path)
    with pytest.raises(BundleError, match=r'Missing: blocks\.1\.self_attn\.in_proj_weight.*'
                                          r'expected: .*decoder\.extra\.weight'):
        import_hugging_face(tmp_path)


def test_a_folder_without_its_files_is_refused(hugging_face, tmp_path):
    with pytest.raises(BundleError, match=r'config\.json cannot be read'):
        import_hugging_face(tmp_path)
    shutil.copy(hugging_face.folder / 'config.json', tmp_path)
    with pytest.raises(BundleError, match='no weights'):
        import_hugging_face(tmp_path)
    whole = (hugging_face.folder / 'model.safetensors').read_bytes()
    (tmp_path / 'model.safetensors').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(BundleError, match='damaged'):
        import_hugging_face(tmp_path)
