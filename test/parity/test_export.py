# SPDX-License-Identifier: Apache-2.0
"""Exported graphs against the network in torch, through ONNX Runtime on the CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from blabberseg_ros.bundle import WEIGHTS, load_bundle
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.export import HALF_STAGES, export_bundle
from blabberseg_ros.models.load_clipseg import load_clipseg
from blabberseg_ros.models.random_clipseg import random_clipseg
from blabberseg_ros.models.stages import resize
from blabberseg_ros.resampling import blur_and_resize_weights, triangle_weights

STAGES = ('image_encoder', 'text_encoder', 'film', 'decoder', 'fusion')
PROMPTS = (1, 2, 13, 40)


def run(bundle, stage, **inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        bundle.graph(stage), options, providers=['CPUExecutionProvider'])
    outputs = session.run(None, {name: np.asarray(value) for name, value in inputs.items()})
    return [torch.from_numpy(output) for output in outputs]


def assert_close(ours, expected):
    assert ours.dtype == expected.dtype == torch.float32
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-4 * max(1.0, expected.std().item())


def resize_matrices(height_px, width_px, size_px):
    return (triangle_weights(height_px, size_px),
            np.ascontiguousarray(triangle_weights(width_px, size_px).T))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def normalised(config, levels):
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return ((levels / 255 - mean[:, None, None]) / std[:, None, None])[None]


@pytest.mark.parametrize(('height_px', 'width_px'), [
    (176, 176), (480, 640), (121, 77), (16, 300), (1, 1)])
@torch.no_grad()
def test_image_encoder(exported, height_px, width_px):
    bundle, model = exported
    image = np.random.default_rng(height_px).integers(0, 256, (height_px, width_px, 3), np.uint8)
    rows, cols = resize_matrices(height_px, width_px, model.config.input_size_px)
    code, = run(bundle, 'image_encoder', image=image, rows=rows, cols=cols)
    levels = resize(torch.from_numpy(image).permute(2, 0, 1).float(), torch.tensor(rows),
                    torch.tensor(cols))
    assert_close(code, model.encode_image(normalised(model.config, levels)))


@pytest.mark.parametrize('prompts', PROMPTS)
@torch.no_grad()
def test_text_encoder_and_film(exported, prompts):
    bundle, model = exported
    tokens = torch.randint(1, 49406, (prompts, 77), dtype=torch.int32,
                           generator=torch.Generator().manual_seed(prompts))
    tokens[:, 5] = 49407
    tokens[0, 6:] = 0
    conditional, = run(bundle, 'text_encoder', tokens=tokens)
    assert_close(conditional, model.encode_text(tokens))
    for ours, expected in zip(run(bundle, 'film', conditional=conditional),
                              model.film(conditional), strict=True):
        assert_close(ours, expected)


@pytest.mark.parametrize('prompts', PROMPTS)
@torch.no_grad()
def test_decoder(exported, prompts):
    bundle, model = exported
    code = noise(3, model.config.tokens, 16)
    mul, add = noise(2, prompts, 16)
    logits, = run(bundle, 'decoder', code=code, mul=mul, add=add)
    assert_close(logits, model.decode(code, mul, add))


@pytest.mark.parametrize(('height_px', 'width_px'), [(176, 176), (480, 640), (50, 60)])
@pytest.mark.parametrize('prompts', PROMPTS)
def test_fusion(exported, prompts, height_px, width_px):
    bundle, model = exported
    size_px = model.config.input_size_px
    # Far outside of what a softmax without care for overflow could take.
    logits = 60 * noise(prompts, size_px, size_px)
    positive = (torch.arange(prompts) % 3 == 0).float()
    rows = blur_and_resize_weights(size_px, height_px, 15)
    cols = np.ascontiguousarray(blur_and_resize_weights(size_px, width_px, 15).T)
    probability, = run(bundle, 'fusion', logits=logits, positive=positive, rows=rows, cols=cols)
    safe = logits.double().softmax(0)[positive.bool()].sum(0)
    expected = torch.tensor(rows).double() @ safe @ torch.tensor(cols).double()
    assert (probability - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_nan_is_not_hidden(exported):
    bundle, model = exported
    size_px = model.config.input_size_px
    logits = torch.zeros(2, size_px, size_px)
    logits[0, 3, 4] = torch.nan
    identity = np.eye(size_px, dtype=np.float32)
    probability, = run(bundle, 'fusion', logits=logits, positive=torch.tensor([0., 1.]),
                       rows=identity, cols=identity)
    assert probability.isnan().any()


def test_the_signatures_are_those_of_the_engines(exported):
    bundle, _ = exported
    size, width, dim = 176, 16, 24
    expected = {
        'image_encoder': ({'image': ['height', 'width', 3], 'rows': [size, 'height'],
                           'cols': ['width', size]}, {'code': [3, 122, width]}),
        'text_encoder': ({'tokens': ['prompts', 77]}, {'conditional': ['prompts', dim]}),
        'film': ({'conditional': ['prompts', dim]},
                 {'mul': ['prompts', width], 'add': ['prompts', width]}),
        'decoder': ({'code': [3, 122, width], 'mul': ['prompts', width],
                     'add': ['prompts', width]}, {'logits': ['prompts', size, size]}),
        'fusion': ({'logits': ['prompts', size, size], 'positive': ['prompts'],
                    'rows': ['height', size], 'cols': [size, 'width']},
                   {'probability': ['height', 'width']}),
    }
    types = {'image': 'tensor(uint8)', 'tokens': 'tensor(int32)'}
    half = {f'{stage}_fp16' for stage in HALF_STAGES}
    assert set(bundle.manifest.graphs) == {*STAGES, *half}
    for name in bundle.manifest.graphs:
        inputs, outputs = expected[name.removesuffix('_fp16')]
        session = onnxruntime.InferenceSession(bundle.graph(name))
        assert {port.name: port.shape for port in session.get_inputs()} == inputs
        assert {port.name: port.shape for port in session.get_outputs()} == outputs
        for port in (*session.get_inputs(), *session.get_outputs()):
            assert port.type == types.get(port.name, 'tensor(float)')


def test_each_weight_is_stored_once(exported):
    """Graphs hold no weight: every initialiser of the network points into the one file."""
    bundle, _ = exported
    weights = {}
    with safe_open(bundle.folder / WEIGHTS, 'np') as stored:
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    file = (bundle.folder / WEIGHTS).read_bytes()
    pointed = set()
    for stage in bundle.manifest.graphs:
        graph = onnx.load(bundle.graph(stage), load_external_data=False).graph
        for tensor in graph.initializer:
            name = tensor.name.removeprefix('model.')
            if name in weights and tensor.name != name:
                where = {entry.key: entry.value for entry in tensor.external_data}
                assert where['location'] == WEIGHTS
                start = int(where['offset'])
                data = file[start:start + int(where['length'])]
                assert data == weights[name].tobytes()
                assert list(tensor.dims) == list(weights[name].shape)
                pointed.add(name)
            elif tensor.name != 'position':
                # Constants of the graph, the causal mask [77, 77] the largest.
                assert onnx.numpy_helper.to_array(tensor).size <= 77 * 77, tensor.name
    # The class token and position embedding are prepared, at most a few kilobytes of constants;
    # a bias of zero is left out of its convolution.
    missing = set(weights) - pointed
    assert missing <= {'visual.class_embedding', 'visual.positional_embedding',
                       'trans_conv.bias', 'trans_conv.4.bias'}


def test_storage_in_half_precision_is_half_the_size(exported, export_config):
    bundle, model = exported
    numbers = sum(weight.numel() for weight in model.state_dict().values())
    size = (bundle.folder / WEIGHTS).stat().st_size
    half = 'fp16' in bundle.manifest.name
    assert size / numbers == pytest.approx(2 if half else 4, rel=0.02)
    original = random_clipseg(replace(export_config, head=model.config.head)).state_dict()
    for name, weight in model.state_dict().items():
        rounded = original[name].half().float() if half and weight.ndim > 1 else original[name]
        assert torch.equal(weight, rounded)


def test_graphs_tell_nothing_about_the_machine(exported):
    bundle, _ = exported
    for stage in STAGES:
        content = bundle.graph(stage).read_bytes()
        assert b'site-packages' not in content
        assert str(Path(__file__).parents[2]).encode() not in content


def test_layer_norms_stay_whole(exported):
    """In pieces they overflow in half precision, and no engine puts them together again."""
    bundle, _ = exported
    expected = {'image_encoder': 1 + 2 * 4, 'text_encoder': 2 * 2 + 1, 'decoder': 2 * 3}
    for stage, norms in expected.items():
        graph = onnx.load(bundle.graph(stage), load_external_data=False).graph
        kinds = [node.op_type for node in graph.node]
        assert kinds.count('LayerNormalization') == norms
        assert not {'ReduceMean', 'Pow', 'Sqrt'} & set(kinds)


def test_the_image_is_cast_before_anything_else(exported):
    bundle, _ = exported
    graph = onnx.load(bundle.graph('image_encoder'), load_external_data=False).graph
    readers = [node for node in graph.node if 'image' in node.input]
    assert [node.op_type for node in readers] == ['Cast']


def test_export_leaves_the_network_alone(export_config, random_bundle, tmp_path):
    model = random_clipseg(replace(export_config, input_size_px=32)).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    export_bundle(model, tmp_path, name='x', source='', licence='', storage='fp16',
                  tokenizer_json=random_bundle / 'tokenizer.json',
                  vocabulary=('lawn', 'grass', 'lawn'), card='# A card\n')
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    bundle = load_bundle(tmp_path)
    assert bundle.vocabulary == {'lawn', 'grass'}
    assert (tmp_path / 'README.md').read_text(encoding='utf-8') == '# A card\n'


def test_unknown_storage_is_refused(export_config, random_bundle, tmp_path):
    with pytest.raises(BundleError, match='int8'):
        export_bundle(random_clipseg(export_config), tmp_path, name='x', source='', licence='',
                      tokenizer_json=random_bundle / 'tokenizer.json', storage='int8')
    assert not any(tmp_path.iterdir())


def test_a_bundle_of_another_family_is_not_loaded(exported):
    bundle, _ = exported
    segformer = replace(bundle.manifest, family='segformer', architecture={'depths': [2, 2, 2, 2]})
    with pytest.raises(BundleError, match='not that of CLIPSeg'):
        load_clipseg(replace(bundle, manifest=segformer))
    other = replace(bundle.manifest, architecture={
        **bundle.manifest.architecture, 'embed_dim': 25})
    with pytest.raises(BundleError, match='does not hold the weights'):
        load_clipseg(replace(bundle, manifest=other))
