# SPDX-License-Identifier: Apache-2.0
"""`compare --layers` with TensorRT: what plans of traces give, and how they are run.

TensorRT-RTX builds them. What runs them, and pycuda, are stood in for.
"""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import onnxruntime
import pytest
import tensorrt_rtx_bindings as trt
import torch

from blabberseg_ros.cli.main import main
from blabberseg_ros.engines import tensorrt, tensorrt_builder, tensorrt_runner, tensorrt_trace
from blabberseg_ros.engines.base import Availability
from blabberseg_ros.engines.cuda_probe import CudaProbe
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.engines.onnxruntime_gpu import OnnxRuntimeTensorRt
from blabberseg_ros.engines.tensorrt import TensorRt
from blabberseg_ros.engines.tensorrt_options import BuildOptions
from blabberseg_ros.engines.traced_graph import every_value, floating_values
from blabberseg_ros.errors import EngineError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.parity import layers
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.prompts import PromptSet

STAGES = ('text_encoder', 'film', 'image_encoder', 'decoder', 'fusion')
GRAPHS = [(stage, 'fp32') for stage in STAGES] + [('image_encoder', 'fp16'), ('decoder', 'fp16')]

NUMPY = {'tensor(float)': np.float32, 'tensor(float16)': np.float16, 'tensor(uint8)': np.uint8,
         'tensor(int32)': np.int32, 'tensor(int64)': np.int64}
RTX = {'tensor(float)': trt.float32, 'tensor(float16)': trt.float16, 'tensor(uint8)': trt.uint8,
       'tensor(int32)': trt.int32, 'tensor(int64)': trt.int64}


def question(seed=0):
    prompts = (PromptSet(('grass', 'a lawn'), ('roof',)), PromptSet(('sand', 'dirt'), ('pond',)))
    return layers.Question(moving_frames(2, (96, 64))[seed], prompts[seed], FusionOptions())


@pytest.fixture(scope='module')
def feeds(bundle):
    """Return what each stage is fed by two questions of the same shapes."""
    return [layers._feeds_of(bundle, question(seed)) for seed in (0, 1)]


def values_of(bundle, stage, precision, feeds):
    """Return all floating values of a graph, as ONNX Runtime computes them."""
    kind = SimpleNamespace(name='onnxruntime-cpu', precision=precision)
    return layers.trace(bundle, kind, stage, feeds[stage])


class OnnxContext:
    """An execution context that asks ONNX Runtime, on the arrays that stand in for the device."""

    def __init__(self, cuda, session):
        self._cuda = cuda
        self._session = session
        self._shapes, self._addresses = {}, {}
        self._types = {port.name: NUMPY[port.type]
                       for port in (*session.get_inputs(), *session.get_outputs())}
        self.set_optimization_profile_async = self.set_device_memory = lambda *_: None
        self.set_input_shape = self._shapes.__setitem__
        self.update_device_memory_size_for_shapes = lambda: 8
        self.set_tensor_address = self._addresses.__setitem__

    def get_tensor_shape(self, name):
        outputs = [port.name for port in self._session.get_outputs()]
        if outputs[0] not in self._shapes:
            zeros = {port.name: np.zeros(self._shapes[port.name], self._types[port.name])
                     for port in self._session.get_inputs()}
            self._shapes |= {name: value.shape for name, value in zip(
                outputs, self._session.run(outputs, zeros), strict=True)}
        return self._shapes[name]

    def execute_async_v3(self, stream):
        memory, feeds = self._cuda.memory, {}
        for port in self._session.get_inputs():
            array = memory[self._addresses[port.name]].view(self._types[port.name])
            feeds[port.name] = array.reshape(self._shapes[port.name])
        outputs = [port.name for port in self._session.get_outputs()]
        for name, value in zip(outputs, self._session.run(outputs, feeds), strict=True):
            memory[self._addresses[name]][...] = np.ascontiguousarray(
                value).view(np.uint8).ravel()
        return True


@pytest.fixture
def tensorrt_here(monkeypatch, cuda, rtx, bundle, tmp_path):
    """Stand in for a machine with TensorRT: a plan is the graph that it was built from."""
    def deserialise(library, data, logger):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(
            'session.model_external_initializers_file_folder_path', str(bundle.folder))
        session = onnxruntime.InferenceSession(data, options)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        types = {port.name: RTX[port.type] for port in (*inputs, *outputs)}
        # In an order of its own, as the library's.
        names = sorted(types)
        modes = {port.name: trt.TensorIOMode.OUTPUT for port in outputs}
        return None, SimpleNamespace(
            num_io_tensors=len(names), get_tensor_name=names.__getitem__,
            get_tensor_dtype=types.__getitem__, get_tensor_shape=lambda name: (),
            get_tensor_mode=lambda name: modes.get(name, trt.TensorIOMode.INPUT),
            create_execution_context=lambda strategy: OnnxContext(cuda, session))

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(TensorRt, 'probe', lambda self: Availability(True, 'stood in for'))
    monkeypatch.setattr(tensorrt_trace, 'load_library', lambda name: rtx)
    monkeypatch.setattr(tensorrt_trace, 'build_plan',
                        lambda library, graph, profiles, options, model: model)
    monkeypatch.setattr(tensorrt_runner, 'deserialise', deserialise)


@pytest.fixture
def folder(tmp_path):
    """Return a folder with one image."""
    path = tmp_path / 'images'
    path.mkdir()
    cv2.imwrite(str(path / 'one.png'), question().image)
    return path


def traced_engine(bundle, stage, precision, feeds):
    return tensorrt_trace.TracedEngine(bundle, stage, BuildOptions(precision), feeds[stage])


@pytest.mark.parametrize(('stage', 'precision'), GRAPHS)
def test_the_network_gives_every_value_that_follows_from_the_inputs(bundle, parsed, feeds, stage,
                                                                    precision, rtx):
    graph = tensorrt.stage_graph(bundle, stage, precision, rtx)
    traced = floating_values(graph)
    network = parsed(graph, traced.model)
    for index in range(network.num_inputs):
        port = network.get_input(index)
        port.shape = feeds[0][stage][port.name].shape
    outputs = {output.name: output for output in map(network.get_output,
                                                     range(network.num_outputs))}
    assert sorted(outputs) == sorted(traced.names)
    first, second = (values_of(bundle, stage, precision, each) for each in feeds)
    differ = {name for name in first if not np.array_equal(first[name], second[name])}
    assert differ <= set(outputs)
    assert len(differ) > 0.8 * len(outputs)
    order = list(first)
    assert [order.index(name) for name in traced.names] == sorted(map(order.index, traced.names))
    for name, output in outputs.items():
        assert not output.is_shape_tensor
        assert tuple(output.shape) == first[name].shape
        assert np.dtype(trt.nptype(output.dtype)) == first[name].dtype
    halves = {name for name, value in first.items() if value.dtype == np.float16} & set(outputs)
    assert precision == 'fp32' or len(halves) > 0.3 * len(outputs)


@pytest.mark.parametrize(('stage', 'precision'), GRAPHS)
def test_the_plan_of_a_trace_names_them(rtx, bundle, feeds, stage, precision):
    """No engine can be inspected without a GPU, but a plan holds the names of its outputs."""
    engine = traced_engine(bundle, stage, precision, feeds[0])
    plan = engine.build(rtx)
    plain = tensorrt_builder.build_plan(rtx, tensorrt.stage_graph(bundle, stage, precision, rtx),
                                        engine._profiles, BuildOptions())
    assert [name for name in engine.names if name.encode() not in plan] == []
    fused = [name for name in engine.names if name.encode() not in plain]
    assert fused, 'a plan that fuses has names fewer'


def test_the_plan_is_for_the_shapes_of_the_question(bundle, feeds):
    engine = traced_engine(bundle, 'decoder', 'fp16', feeds[0])
    profile, = engine._profiles
    for entry in profile.inputs:
        assert entry.minimum == entry.optimum == entry.maximum
        assert entry.minimum == feeds[0]['decoder'][entry.name].shape
    assert 'mul' in {entry.name for entry in profile.inputs}


def test_integers_are_left_out_for_tensorrt(bundle):
    graph = bundle.graph('text_encoder')
    left_out = set(every_value(graph).names) - set(floating_values(graph).names)
    assert any('argmax' in name for name in left_out)


@pytest.mark.parametrize('precision', ['fp32', 'auto'])
def test_the_values_of_a_plan_are_compared(tensorrt_here, bundle, cuda, precision):
    kind = TensorRt(BuildOptions(precision))
    nodes = list(layers.compare_nodes((bundle, kind), (bundle, OnnxRuntimeCpu()), question()))
    stages = [node.stage for node in nodes]
    assert list(dict.fromkeys(stages)) == list(layers._feeds_of(bundle, question()))
    assert set(stages) == set(STAGES)
    assert stages.count('image_encoder') > 100
    worst = max(node.error for node in nodes)
    if precision == 'fp32':
        assert worst == 0
    else:
        assert 1e-5 < worst < 0.05
        assert {node.stage for node in nodes if node.error} == {'image_encoder', 'decoder'}
    assert [context.calls for context in cuda.contexts] == [['push', 'pop', 'detach']] * 5


def test_the_first_node_over_the_tolerance_is_named(tensorrt_here, bundle):
    def other_norm(model):
        with torch.no_grad():
            model.blocks[1].norm1.weight.mul_(1.1)

    nodes = layers.compare_nodes((bundle, TorchCpu(modify=other_norm)),
                                 (bundle, TensorRt(BuildOptions('fp32'))), question())
    over = [(node.stage, node.name) for node in nodes
            if node.error > layers.TOLERANCE['fp32']]
    assert over[0] == ('decoder', 'layer_norm_2')


def test_layers_on_the_command_line_keep_no_plans(tensorrt_here, bundle, folder, capsys,
                                                  tmp_path):
    assert main(['compare', '@onnxruntime-cpu', '@tensorrt:fp32', str(folder), '--bundle',
                 str(bundle.folder), '--layers']) == 0
    lines = capsys.readouterr().out.splitlines()
    for stage in STAGES:
        line, = [line for line in lines if line.startswith(f'{stage} ')]
        assert 'nodes, none over' in line
    assert not (tmp_path / 'cache' / 'blabberseg_ros' / 'plans').exists()


def test_what_a_plan_took_is_given_back_when_it_fails(tensorrt_here, bundle, feeds, cuda,
                                                      monkeypatch):
    def out_of_memory(*_):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(OnnxContext, 'execute_async_v3', out_of_memory)
    with pytest.raises(EngineError, match=r'film failed .*out of memory'):
        tensorrt_trace.trace_plan(bundle, TensorRt(), 'film', feeds[0]['film'])
    monkeypatch.setattr(tensorrt_runner, 'deserialise', out_of_memory)
    with pytest.raises(EngineError, match=r'film cannot be loaded .*out of memory'):
        tensorrt_trace.trace_plan(bundle, TensorRt(), 'film', feeds[0]['film'])
    assert [context.calls for context in cuda.contexts] == [['push', 'pop', 'detach']] * 2


def test_without_a_gpu_it_is_said_what_is_missing(bundle, feeds, folder, monkeypatch, capsys):
    for module in (tensorrt, tensorrt_builder):
        monkeypatch.setattr(module, 'probe_cuda', lambda: CudaProbe(False, 'no CUDA driver'))
    with pytest.raises(EngineError, match='--layers cannot use tensorrt here: no CUDA driver'):
        layers.trace(bundle, TensorRt(), 'film', feeds[0]['film'])
    assert main(['compare', '@torch-cpu', '@tensorrt', str(folder), '--bundle',
                 str(bundle.folder), '--layers']) == 2
    assert 'tensorrt cannot be used here: no CUDA driver' in capsys.readouterr().err


def test_an_engine_that_shows_no_nodes_is_refused(bundle, feeds):
    with pytest.raises(EngineError, match=r'onnxruntime-tensorrt cannot show.*torch-cuda, tensor'):
        layers.trace(bundle, OnnxRuntimeTensorRt(), 'film', feeds[0]['film'])


def test_a_missing_onnx_is_said(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(EngineError, match='onnx is not installed, which --layers needs; pip'):
        floating_values(bundle.graph('film'))
