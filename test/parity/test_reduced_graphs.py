# SPDX-License-Identifier: Apache-2.0
"""Graphs in half precision and on integers: what they keep, and that they pass the gate."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from blabberseg_ros.backends.registry import FAMILIES, backend_class
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCpuInt8
from blabberseg_ros.engines.onnxruntime_gpu import CPU, OnnxRuntimeGpuEngine, Provider
from blabberseg_ros.errors import BundleError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.models import random_lseg
from blabberseg_ros.models.export import as_stored, export_bundle
from blabberseg_ros.models.families import random_network, stages_of
from blabberseg_ros.models.graphs import Port, export_graph
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.parity.gate import check_parity
from blabberseg_ros.parity.layers import TOLERANCE, Question, compare_nodes
from blabberseg_ros.parity.report import Outcome
from blabberseg_ros.prompts import PromptSet


class HalfOnCpu(OnnxRuntimeCpu):
    """The engine of the CUDA provider, on the CPU's."""

    name = 'half-on-cpu'

    def create(self, bundle, stage):
        return OnnxRuntimeGpuEngine(bundle, stage, Provider(CPU, 'cpu', {}), 'fp16')


@pytest.mark.parametrize('which', ['random', 'demo'])
def test_half_graphs_pass_the_gate(which, random_bundle, root_dir):
    bundle = load_bundle(random_bundle if which == 'random' else root_dir / 'engines/clipseg_demo')
    make = backend_class(bundle.manifest.family)
    reference, tested = make(bundle, OnnxRuntimeCpu()), make(bundle, HalfOnCpu())
    for backend in (reference, tested):
        backend.activate()
    report = check_parity(reference, tested)
    assert tested.precision == 'fp16'
    assert report.outcome is Outcome.PASS, report.summary()
    assert report.figures['max_dp'] > 1e-5, 'it is not the fp32 graph again'


@pytest.fixture(scope='module')
def integers(tokenizer_json, tmp_path_factory):
    """Return a bundle with a graph on integers."""
    folder = tmp_path_factory.mktemp('int8')
    export_bundle(random_network('clipseg'), folder, name='int8', source='random weights',
                  licence='Apache-2.0', tokenizer_json=tokenizer_json, storage='fp16', int8=True)
    return load_bundle(folder)


def test_the_integer_graph_is_near_and_weighs_next_to_nothing(integers):
    make = backend_class('clipseg')
    reference, tested = make(integers, OnnxRuntimeCpu()), make(integers, OnnxRuntimeCpuInt8())
    for backend in (reference, tested):
        backend.activate()
    assert tested.precision == 'int8'
    report = check_parity(reference, tested)
    assert 0.99 < min(frame.cosine for frame in report.frames) < 0.99999, report.summary()
    graph = onnx.load(integers.graph('image_encoder_int8'), load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    blocks = len({name.split('.resblocks.')[1].split('.')[0] for name in (
        tensor.name for tensor in graph.initializer) if '.resblocks.' in name})
    # Four layers a block, and a projection for each activation that is taken.
    assert kinds.count('MatMulInteger') == 4 * blocks + 3
    files = integers.manifest.files
    assert files['image_encoder_int8.onnx'].bytes < 2 * files['image_encoder.onnx'].bytes


def image_encoder_graphs(model, folder):
    """Export the image encoder alone: in single precision, in half, and on integers."""
    model = as_stored(model, 'fp32')
    weights = folder / 'weights.safetensors'
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    stage = stages_of(model)['image_encoder']
    paths = [folder / f'{name}.onnx' for name in ('single', 'half', 'int8')]
    export_graph(
        stage.module.eval(), stage.example(), paths[0], weights=weights, half=paths[1],
        int8=paths[2], outputs=tuple(spec.name for spec in stage.outputs), inputs=tuple(
            Port(spec.name, tuple((axis, length) for axis, length in enumerate(spec.shape)
                                  if isinstance(length, str))) for spec in stage.inputs))
    return paths


def products_of(path):
    """Return how many products a graph has in half precision, and how many on integers."""
    graph = onnx.shape_inference.infer_shapes(
        onnx.load(path, load_external_data=False)).graph
    types = {value.name: value.type.tensor_type.elem_type
             for value in (*graph.value_info, *graph.output)}
    half = [node for node in graph.node if node.op_type in ('MatMul', 'Conv')
            and types[node.output[0]] == onnx.TensorProto.FLOAT16]
    return len(half), sum(node.op_type == 'MatMulInteger' for node in graph.node)


@pytest.mark.parametrize('family', [name for name in FAMILIES if name != 'clipseg'])
def test_graphs_of_every_family_are_really_converted(family, tmp_path):
    single, half, integers = image_encoder_graphs(random_network(family), tmp_path)
    assert products_of(single) == (0, 0)
    assert products_of(half)[0] > 10
    assert products_of(integers)[1] >= 8
    stage = stages_of(random_network(family))['image_encoder']
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(
        stage.inputs, stage.example(), strict=True)}
    exact, near = (onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(
        None, feeds)[0].ravel() for path in (single, integers))
    assert np.dot(exact, near) > 0.95 * np.linalg.norm(exact) * np.linalg.norm(near)
    assert np.abs(exact - near).max() > 1e-4


def test_a_network_of_convolutions_gets_no_integer_graph(tmp_path):
    """It would be called int8 and run in fp32."""
    config = replace(random_lseg.SMALL, backbone='resnet', resnet_width=6,
                     resnet_blocks=(1, 1, 1, 1))
    with pytest.raises(BundleError, match=r'no linear layers.*export without int8'):
        image_encoder_graphs(random_lseg.random_lseg(config), tmp_path)
    assert not list(tmp_path.glob('*.onnx'))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('norm', ['ln_1', 'ln_2'])
def test_what_is_not_finite_in_the_integer_graph_reaches_all_of_the_code(norm, value, tmp_path):
    """A quantisation leaves NaN out, and the residual stream would go past it."""
    model = random_network('clipseg')
    with torch.no_grad():
        getattr(model.visual.transformer.resblocks[1], norm).weight[5] = value
    integers = image_encoder_graphs(model, tmp_path)[-1]
    stage = stages_of(model)['image_encoder']
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(
        stage.inputs, stage.example(), strict=True)}
    (code,) = onnxruntime.InferenceSession(integers).run(None, feeds)
    assert np.isnan(code[0]).all(), 'of the deepest block'


def test_a_bundle_without_an_integer_graph_is_not_offered_to_that_engine(random_bundle):
    verdict = OnnxRuntimeCpuInt8().takes(load_bundle(random_bundle))
    assert not verdict.ok
    assert 'blabberseg export --int8' in verdict.reason


@pytest.mark.parametrize('stage', ['image_encoder', 'decoder'])
def test_inputs_outputs_and_weights_keep_their_types(random_bundle, stage):
    bundle = load_bundle(random_bundle)
    single, half = (onnx.load(bundle.graph(stage + suffix), load_external_data=False).graph
                    for suffix in ('', '_fp16'))
    for kind in ('input', 'output'):
        assert list(getattr(single, kind)) == list(getattr(half, kind))
    stored = [{tensor.name: (tensor.data_type, [entry.value for entry in tensor.external_data])
               for tensor in graph.initializer if tensor.external_data}
              for graph in (single, half)]
    assert stored[0] == stored[1]
    assert stored[0], 'weights lie once, in weights.safetensors'


@pytest.mark.parametrize('stage', ['image_encoder', 'decoder'])
def test_norms_and_softmax_stay_single(random_bundle, stage):
    bundle = load_bundle(random_bundle)
    graph = onnx.shape_inference.infer_shapes(
        onnx.load(bundle.graph(f'{stage}_fp16'), load_external_data=False)).graph
    types = {value.name: value.type.tensor_type.elem_type
             for value in (*graph.value_info, *graph.output)}
    found = {kind: {types[node.output[0]] for node in graph.node if node.op_type == kind}
             for kind in ('Softmax', 'LayerNormalization', 'MatMul')}
    assert found['Softmax'] == found['LayerNormalization'] == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in found['MatMul']


def test_layers_show_the_nodes_of_the_integer_graph(integers):
    """The first to differ is a product on integers; what comes before is computed in fp32."""
    question = Question(moving_frames(1, (96, 64))[0], PromptSet(('a',), ('b',)), FusionOptions())
    nodes = list(compare_nodes((integers, OnnxRuntimeCpu()), (integers, OnnxRuntimeCpuInt8()),
                               question))
    over = [node for node in nodes if node.error > TOLERANCE['fp32']]
    assert {node.stage for node in over} == {'image_encoder'}
    assert len([node for node in nodes if node.stage == 'image_encoder']) > 100
    assert 'linear' in over[0].name, over[0]
    assert max(node.error for node in over) > TOLERANCE['fp16']
