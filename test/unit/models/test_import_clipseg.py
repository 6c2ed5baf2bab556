# SPDX-License-Identifier: Apache-2.0
"""Importing the authors' files: every key counted, every refusal explained."""

import argparse
import hashlib
from dataclasses import replace

import pytest
import torch

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli import export, import_bundle
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.import_clipseg import import_original
from blabberseg_ros.models.load_clipseg import load_clipseg
from blabberseg_ros.models.random_clipseg import random_clipseg


class Holder(torch.nn.Module):
    """A container with a forward that TorchScript can compile."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def command(*arguments):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    import_bundle.add_parser(subparsers)
    export.add_parser(subparsers)
    parsed = parser.parse_args(list(map(str, arguments)))
    return parsed.run(parsed)


def edit(path, **changes):
    """Change tensors of a saved state; None removes one. Dots are written as __."""
    state = torch.load(path, weights_only=True)
    for key, value in changes.items():
        key = key.replace('__', '.')
        if value is None:
            del state[key]
        else:
            state[key] = value
    torch.save(state, path)


def assert_same_weights(model, expected):
    state = model.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(state[key], value), key


def test_decoder_and_clip_make_the_network(model, small_config, original_files):
    imported = import_original(*original_files, input_size_px=96)
    assert imported.model.config == small_config
    assert_same_weights(imported.model, model)
    for path in original_files:
        assert f'{path.name} (SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}' in \
            imported.source
    assert imported.licence.startswith('unknown')


@pytest.mark.parametrize(('width', 'head', 'variant'), [
    (16, 'simple', 'rd16'), (64, 'simple', 'rd64'), (64, 'complex', 'rd64-refined')])
def test_the_variant_is_found_from_the_keys(small_config, tmp_path, width, head, variant):
    config = replace(small_config, reduce_dim=width, head=head)
    state = random_clipseg(config).state_dict()
    full = {('clip_model.' + key if key.startswith(
        ('visual.', 'transformer.', 'token_', 'positional_', 'ln_final', 'text_')) else key): value
        for key, value in state.items()}
    # The authors' whole model has its image tower twice.
    full |= {key.replace('clip_model.visual.', 'model.'): value for key, value in full.items()
             if key.startswith('clip_model.visual.')}
    torch.save(full, tmp_path / 'whole.pth')
    imported = import_original(tmp_path / 'whole.pth', None)
    assert imported.model.config.variant == variant
    assert imported.model.config == replace(config, input_size_px=352)


def test_openais_archive_is_read(model, small_config, original_files, tmp_path):
    """OpenAI published CLIP as TorchScript with half-precision weights."""
    decoder, clip = original_files
    root = torch.nn.Module()
    for key, value in torch.load(clip, weights_only=True).items():
        *path, leaf = key.split('.')
        module = root
        for name in path:
            if not hasattr(module, name):
                module.add_module(name, torch.nn.Module())
            module = getattr(module, name)
        module.register_buffer(leaf, value.half() if value.is_floating_point() else value)
    # Blocks are numbered, and TorchScript takes numbers as names in a list only.
    for transformer in (root.visual.transformer, root.transformer):
        transformer.resblocks = torch.nn.ModuleList(transformer.resblocks.children())
    for module in root.modules():
        if type(module) is torch.nn.Module:
            module.__class__ = Holder
    torch.jit.script(root).save(str(tmp_path / 'openai.pt'))
    imported = import_original(decoder, tmp_path / 'openai.pt', input_size_px=96)
    halved = random_clipseg(small_config, seed=3)
    for key, value in halved.named_parameters():
        if key in torch.load(clip, weights_only=True):
            value.data = value.data.half().float()
    assert_same_weights(imported.model, halved)


def test_the_word_openai_asks_open_clip(model, original_files, monkeypatch):
    import open_clip
    towers = torch.nn.Module()
    state = torch.load(original_files[1], weights_only=True)
    towers.state_dict = lambda: state
    asked = []
    monkeypatch.setattr(open_clip, 'create_model',
                        lambda name, pretrained: asked.append((name, pretrained)) or towers)
    imported = import_original(original_files[0], 'openai', input_size_px=96)
    # The plain ViT-B-16 of open_clip has another GELU.
    assert asked == [('ViT-B-16-quickgelu', 'openai')]
    assert_same_weights(imported.model, model)
    assert 'OpenAI by open_clip' in imported.source


def test_open_clip_without_a_network_is_explained(original_files, monkeypatch):
    import open_clip

    def fail(*_, **__):
        raise OSError('no route to host')
    monkeypatch.setattr(open_clip, 'create_model', fail)
    with pytest.raises(BundleError, match=r'no route to host.*--clip'):
        import_original(original_files[0], 'openai')


def test_a_decoder_alone_asks_for_clip(original_files):
    with pytest.raises(BundleError, match='--clip'):
        import_original(original_files[0], None)


def test_a_clip_given_as_decoder_is_refused(original_files):
    with pytest.raises(BundleError, match='not a CLIPSeg decoder'):
        import_original(original_files[1], original_files[1])


@pytest.mark.parametrize(('keys', 'kind'), [
    (('visual.layer1.0.conv1.weight',), 'ResNet'),
    (('vision_model.embeddings.class_embedding',), "Hugging Face's format"),
    (('patch_embed.proj.weight',), r'patch_embed\.proj\.weight')])
def test_another_clip_is_refused(original_files, tmp_path, keys, kind):
    torch.save({key: torch.ones(1) for key in keys}, tmp_path / 'other.pt')
    with pytest.raises(BundleError, match=kind):
        import_original(original_files[0], tmp_path / 'other.pt')


def test_a_missing_key_is_named(original_files):
    edit(original_files[0], blocks__1__norm2__bias=None)
    with pytest.raises(BundleError, match=r'Missing: blocks\.1\.norm2\.bias\..*expected: nothing'):
        import_original(*original_files)


def test_a_missing_key_that_tells_a_size_is_named(original_files):
    edit(original_files[1], ln_final__weight=None)
    with pytest.raises(BundleError, match=r'no usable ln_final\.weight'):
        import_original(*original_files)


def test_an_unexpected_key_is_named(original_files):
    edit(original_files[0], blocks__3__norm1__weight=torch.ones(16))
    with pytest.raises(BundleError, match=r'Missing: nothing.*expected: blocks\.3\.norm1\.weight'):
        import_original(*original_files)


def test_a_refined_head_is_not_loaded_into_a_simple_one(original_files):
    """The mistake of timojl/clipseg issue 40: nothing may be loaded in part."""
    edit(original_files[0], trans_conv__0__weight=None)
    with pytest.raises(BundleError, match=r'trans_conv\.0\.bias'):
        import_original(*original_files)


def test_a_clip_of_another_width_is_refused(original_files):
    edit(original_files[0], reduces__1__weight=torch.ones(16, 192))
    with pytest.raises(BundleError, match=r'reduces\.1\.weight .* \(16, 192\).*ViT-B/16'):
        import_original(*original_files)


def test_another_number_of_extracted_layers_is_refused(original_files):
    edit(original_files[0], reduces__2__weight=None)
    with pytest.raises(BundleError, match='projects 2 layers'):
        import_original(*original_files)


def test_an_input_size_that_does_not_fit_is_refused(original_files):
    with pytest.raises(BundleError, match='336 and 352'):
        import_original(*original_files, input_size_px=350)


def test_the_published_rd16_imports(shared_dir, tmp_path):
    """The real decoder, with random weights where CLIP's would be."""
    clip = random_clipseg(ClipSegConfig(head='simple', reduce_dim=16)).state_dict()
    path = shared_dir / 'data' / 'weights' / 'rd16-uni.pth'
    decoder = torch.load(path, weights_only=True, map_location='cpu')
    torch.save({key: value for key, value in clip.items() if key not in decoder},
               tmp_path / 'clip.pt')
    imported = import_original(path, tmp_path / 'clip.pt')
    assert imported.model.config == ClipSegConfig(head='simple', reduce_dim=16)
    state = imported.model.state_dict()
    for key, value in decoder.items():
        if not key.startswith('reduce.'):
            assert torch.equal(state[key], value), key
    assert 'the rd16-uni.pth of timojl/clipseg' in imported.source
    assert 'research purposes' in imported.licence


def test_the_command_makes_a_bundle_and_another_from_it(model, original_files, tmp_path, capsys):
    # The small vocabulary is not CLIP's, but the tokenizer is only copied.
    decoder, clip = original_files
    folder = tmp_path / 'bundle'
    assert command('import', decoder, '--clip', clip, '--out', folder, '--input-size', 96,
                   '--licence', 'mine') == 0
    assert str(folder) in capsys.readouterr().out
    bundle = load_bundle(folder)
    assert (bundle.manifest.name, bundle.manifest.licence) == ('clipseg-rd16-refined', 'mine')
    assert_same_weights(load_clipseg(bundle), model)

    assert command('export', folder, '--out', tmp_path / 'smaller', '--input-size', 64,
                   '--storage', 'fp16') == 0
    smaller = load_bundle(tmp_path / 'smaller')
    assert (smaller.manifest.name, smaller.manifest.input_size_px) == ('smaller', 64)
    halved = model.state_dict()
    for key, value in load_clipseg(smaller).state_dict().items():
        assert torch.equal(value, halved[key].half().float() if value.ndim > 1 else halved[key])


def test_the_command_refuses_what_is_no_source(tmp_path, original_files):
    with pytest.raises(BundleError, match='no file or folder'):
        command('import', tmp_path / 'absent.pth')
    with pytest.raises(BundleError, match='336 and 352'):
        command('import', original_files[0], '--input-size', 350)
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'a.jpg').touch()
    with pytest.raises(BundleError, match='is not a bundle'):
        command('import', original_files[0], '--clip', original_files[1], '--out',
                tmp_path / 'photos')


@pytest.mark.parametrize(('source', 'is_id'), [
    ('CIDAS/clipseg-rd64-refined', True), ('a/b', True), ('./a', False), ('~/a', False),
    ('../a', False), ('/a/b', False), ('a', False), ('a/b/c', False), ('weights/rd16.pth', False)])
def test_hub_ids_are_told_from_paths(source, is_id):
    assert import_bundle.is_hub_id(source) is is_id


def test_the_sources_say_where_to_get_the_weights(capsys):
    with pytest.raises(SystemExit):
        command('import', '--sources')
    text = capsys.readouterr().out
    for part in ('huggingface.co/CIDAS/clipseg-rd64-refined', 'timojl/clipseg', '61545cdb3a28',
                 'd00ca85d6b85', '13845f6cee4d', '5806e77cd80f', 'apache-2.0',
                 'research purposes'):
        assert part in text
