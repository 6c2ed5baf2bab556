# SPDX-License-Identifier: Apache-2.0
"""Graphs in half precision and on integers: what they keep, and that they pass the gate."""

import onnx
import pytest

from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCpuInt8
from blabberseg_ros.engines.onnxruntime_gpu import CPU, OnnxRuntimeGpuEngine, Provider
from blabberseg_ros.engines.tensorrt import TensorRt
from blabberseg_ros.errors import EngineError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.families import random_network
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


def test_layers_show_no_nodes_of_a_plan(integers):
    question = Question(moving_frames(1, (96, 64))[0], PromptSet(('a',), ('b',)), FusionOptions())
    with pytest.raises(EngineError, match='tensorrt fuses the nodes'):
        list(compare_nodes((integers, OnnxRuntimeCpu()), (integers, TensorRt()), question))
