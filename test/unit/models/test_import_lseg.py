# SPDX-License-Identifier: Apache-2.0
"""Lightning checkpoints of LSeg, small ones in the published names."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.checkpoints import read_state
from blabberseg_ros.models.import_lseg import import_model, network_of, recognises
from blabberseg_ros.models.importing import ImportOptions, Source

from . import lseg_files

VIT = {'width': 64, 'layers': 4, 'mlp': 96, 'grid': 5, 'channels': (16, 24, 32, 40),
       'features': 20, 'embed_dim': 24, 'text_width': 64, 'text_layers': 2, 'text_mlp': 96}
RESNET = {'backbone': 'resnet', 'stem': 8, 'blocks': (1, 2, 1, 1), 'features': 20,
          'embed_dim': 24, 'text_width': 64, 'text_layers': 2, 'text_mlp': 96}


@pytest.fixture(scope='module', params=[VIT, RESNET], ids=['vit', 'resnet'])
def state(request):
    """Return a published state of each backbone."""
    return lseg_files.filled(lseg_files.published_shapes(**request.param))


@pytest.fixture(scope='module')
def checkpoint(state, tmp_path_factory):
    """Return a Lightning checkpoint with objects of classes that are not installed."""
    path = tmp_path_factory.mktemp('lseg') / 'demo.ckpt'
    lseg_files.save_lightning(state | lseg_files.filled(lseg_files.unused_shapes()), path)
    return path


def test_a_lightning_checkpoint_is_read(checkpoint, state):
    assert recognises(Source.look(checkpoint))
    imported = import_model(checkpoint, ImportOptions(input_size_px=96))
    model = imported.model
    is_vit = 'pretrained.model.cls_token' in state
    assert model.config.backbone == ('vit' if is_vit else 'resnet')
    assert model.config.input_size_px == 96
    assert model.config.mean == ((0.5,) * 3 if is_vit else (0.485, 0.456, 0.406))
    assert torch.equal(model.head.weight, state['scratch.head1.weight'])
    assert torch.equal(model.text.text_projection, state['clip_pretrained.text_projection'])
    assert checkpoint.name in imported.source
    assert 'CLIP' in imported.licence
    assert not any(part.training for part in model.modules())


@torch.no_grad()
def test_layers_lie_where_they_were_published(state):
    """Against the published order of layers, written here on the published names."""
    model = network_of(state, 'test')
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    levels = model.vision(pixels)
    functional = torch.nn.functional

    def norm(x, name):
        return functional.batch_norm(
            x, state[f'{name}.running_mean'], state[f'{name}.running_var'],
            state[f'{name}.weight'], state[f'{name}.bias'])

    def unit(x, name):
        y = functional.conv2d(x.relu(), state[f'{name}.conv1.weight'], padding=1)
        y = functional.conv2d(norm(y, f'{name}.bn1').relu(), state[f'{name}.conv2.weight'],
                              padding=1)
        return x + norm(y, f'{name}.bn2')

    x = None
    for level in (4, 3, 2, 1):
        step = f'scratch.refinenet{level}'
        own = functional.conv2d(levels[level - 1], state[f'scratch.layer{level}_rn.weight'],
                                padding=1)
        x = own if x is None else x + unit(own, f'{step}.resConfUnit1')
        x = unit(x, f'{step}.resConfUnit2')
        x = functional.interpolate(x, scale_factor=2, mode='bilinear', align_corners=True)
        x = functional.conv2d(x, state[f'{step}.out_conv.weight'], state[f'{step}.out_conv.bias'])
    head = functional.conv2d(x, state['scratch.head1.weight'], state['scratch.head1.bias'])
    wanted = head / head.norm(dim=1, keepdim=True)
    assert (model.features(model.encode_images(pixels)) - wanted).abs().max() < 1e-5


def test_classes_of_a_checkpoint_are_not_made(tmp_path):
    class Spy:
        def __reduce__(self):
            return shutil.copyfile, (str(Path(__file__)), str(tmp_path / 'touched'))

    torch.save({'state_dict': {'a': torch.ones(2)}, 'callbacks': [Spy()]}, tmp_path / 'spy.ckpt')
    state = read_state(tmp_path / 'spy.ckpt', ignore_objects=True)
    assert torch.equal(state['a'], torch.ones(2))
    assert not (tmp_path / 'touched').exists()
    with pytest.raises(BundleError, match='Python objects'):
        read_state(tmp_path / 'spy.ckpt')
    assert not (tmp_path / 'touched').exists()


def test_calls_into_the_system_are_refused(tmp_path):
    class Spy:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'),)

    torch.save({'state_dict': {'a': torch.ones(2)}, 'callbacks': [Spy()]}, tmp_path / 'spy.ckpt')
    with pytest.raises(BundleError, match='Python objects'):
        read_state(tmp_path / 'spy.ckpt', ignore_objects=True)
    assert not (tmp_path / 'made').exists()


def test_a_missing_tensor_is_named(state):
    lacking = {key: value for key, value in state.items() if key != 'scratch.head1.bias'}
    with pytest.raises(BundleError, match=r'Missing: head\.bias'):
        network_of(lacking, 'test')


def test_an_unknown_tensor_is_named(state):
    more = state | {'scratch.head_block.depthwise.depthwise.weight': torch.ones(1, 1, 3, 3)}
    with pytest.raises(BundleError, match=r'Not expected: scratch\.head_block'):
        network_of(more, 'test')


def test_a_tensor_of_another_shape_is_named(state):
    other = state | {'scratch.layer2_rn.weight': torch.ones(20, 3, 3, 3)}
    with pytest.raises(BundleError, match=r'fusion\.1\.adapt\.weight has the shape'):
        network_of(other, 'test')


def test_another_model_is_refused():
    with pytest.raises(BundleError, match='not a whole LSeg'):
        network_of({'conv.weight': torch.ones(1)}, 'test')


def test_only_the_prefix_of_lightning_is_taken_off(state):
    """`net.` is a prefix, not a set of letters: a name of these letters alone has to survive."""
    with pytest.raises(BundleError, match=r'Not expected: ten\.tent'):
        network_of({f'net.{key}': value for key, value in state.items()}
                   | {'net.ten.tent': torch.ones(1)}, 'test')


@pytest.mark.parametrize('options', [
    ImportOptions(input_size_px=100), ImportOptions(clip='openai'),
    ImportOptions(classes=Path('names.txt'))])
def test_options_that_do_not_fit_are_refused(checkpoint, options):
    with pytest.raises(BundleError):
        import_model(checkpoint, options)


def test_half_precision_text_towers_become_single(state):
    half = {key: value.half() if key.startswith('clip_pretrained.transformer') else value
            for key, value in state.items()}
    model = network_of(half, 'test')
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
