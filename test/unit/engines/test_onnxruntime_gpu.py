# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on a GPU, as far as it goes without one: probes, bound buffers, no fall-back."""

import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from blabberseg_ros.engines import choose, onnxruntime_gpu
from blabberseg_ros.engines.base import Availability
from blabberseg_ros.engines.cuda_probe import CudaProbe
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpuEngine
from blabberseg_ros.engines.onnxruntime_gpu import (
    CPU,
    ON_CPU,
    DeviceValue,
    OnnxRuntimeCuda,
    OnnxRuntimeGpuEngine,
    OnnxRuntimeTensorRt,
    Provider,
    refuse_fallback,
)
from blabberseg_ros.errors import EngineError
from blabberseg_ros.resampling import read_only

GPU = CudaProbe(True, 'NVIDIA X', '13.0')


@pytest.fixture
def bound(bundle):
    """Return a function that makes an active engine with buffers bound on the CPU."""
    engines = []

    def make(stage, precision='fp32', provider=ON_CPU):
        engines.append(OnnxRuntimeGpuEngine(bundle, stage, provider, precision))
        engines[-1].activate()
        return engines[-1]

    yield make
    for engine in engines:
        engine.deactivate()


def film_feeds(bundle, prompts, seed=0):
    width = bundle.manifest.architecture['embed_dim']
    return {'conditional': np.random.default_rng(seed).normal(size=(prompts, width)).astype('f')}


def test_bound_buffers_give_the_answers_of_a_plain_run_for_every_shape(bundle, bound):
    plain = OnnxRuntimeCpuEngine(bundle, 'film')
    plain.activate()
    engine = bound('film')
    for number, prompts in enumerate((3, 3, 1, 5, 3, 2, 4, 6, 7, 8, 9, 3)):
        feeds = film_feeds(bundle, prompts, number)
        wanted, got = plain.infer(feeds), engine.infer(feeds)
        for name, value in wanted.items():
            assert isinstance(got[name], DeviceValue)
            np.testing.assert_array_equal(engine.to_host(got[name])[0], value)


def test_values_outlive_the_next_run_and_feed_the_next_stage(bundle, bound):
    film, decoder = bound('film'), bound('decoder')
    first = film.infer(film_feeds(bundle, 2, 1))
    kept = film.to_host(first['mul'])[0].copy()
    film.infer(film_feeds(bundle, 2, 2))
    np.testing.assert_array_equal(film.to_host(first['mul'])[0], kept)
    code = np.random.default_rng(3).normal(size=decoder.inputs[0].shape).astype('f')
    chained = decoder.infer({'code': code, **first})['logits']
    plain = OnnxRuntimeCpuEngine(bundle, 'decoder')
    plain.activate()
    feeds = {name: film.to_host(value)[0] for name, value in first.items()}
    np.testing.assert_array_equal(decoder.to_host(chained)[0],
                                  plain.infer({'code': code, **feeds})['logits'])


def test_only_what_cannot_change_is_not_sent_again(bundle, bound):
    engine = bound('film')
    feeds = film_feeds(bundle, 2)
    constant = {'conditional': read_only(feeds['conditional'].copy())}
    before = engine.to_host(engine.infer(constant)['mul'])[0]
    view = feeds['conditional'][:]
    view.setflags(write=False)
    for array, scale in ((constant, 1), ({'conditional': view}, 1), ({'conditional': view}, 2),
                         (constant, 1)):
        feeds['conditional'] *= scale
        got = engine.to_host(engine.infer(array)['mul'])[0]
        assert np.array_equal(got, before) == (scale == 1)


def test_a_frame_stage_runs_in_half_precision_if_it_has_a_graph(bundle, bound):
    assert bound('decoder', 'fp16').precision == 'fp16'
    assert bound('film', 'fp16').precision == 'fp32'


def test_a_session_that_fell_back_to_the_cpu_is_refused(bound):
    missing = Provider('CUDAExecutionProvider', 'cuda', {}, graph_option='enable_cuda_graph')
    with pytest.warns(UserWarning, match='not in available provider names'), pytest.raises(
            EngineError, match=r'cannot use CUDAExecutionProvider and fell back to CPU.* film'):
        bound('film', provider=missing)


def session(**nodes):
    parts = [SimpleNamespace(ep_name=name, get_nodes=lambda kinds=kinds: [
        SimpleNamespace(op_type=kind) for kind in kinds]) for name, kinds in nodes.items()]
    return SimpleNamespace(get_providers=lambda: ['CUDAExecutionProvider', CPU],
                           get_provider_graph_assignment_info=lambda: parts)


def test_single_nodes_on_the_cpu_are_refused_unless_they_are_shapes():
    provider = OnnxRuntimeCuda().settings()
    refuse_fallback(session(CUDAExecutionProvider=['MatMul'],
                            CPUExecutionProvider=['Shape', 'Concat']), provider, 'x')
    with pytest.raises(EngineError, match='parts of x on the CPU: MatMul, Softmax'):
        refuse_fallback(session(CUDAExecutionProvider=['Conv'], CPUExecutionProvider=[
            'Softmax', 'MatMul', 'Shape']), provider, 'x')
    for operator in ('Gather', 'Where', 'Expand', 'Cast'):
        with pytest.raises(EngineError, match=operator):
            refuse_fallback(session(CPUExecutionProvider=[operator]), provider, 'x')


def test_a_session_for_the_cpu_needs_no_report_of_where_nodes_run():
    """Which ONNX Runtime before 1.24 does not have."""
    refuse_fallback(SimpleNamespace(get_providers=lambda: [CPU]), ON_CPU, 'x')


def test_the_shape_operators_are_those_that_our_graphs_have_on_integers(bundle):
    """A type is told by ONNX's inference alone, which a robot does not have."""
    whole = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    for stage in ('image_encoder', 'text_encoder', 'film', 'decoder', 'fusion'):
        graph = onnx.shape_inference.infer_shapes(onnx.load(bundle.graph(stage))).graph
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        found = {node.op_type for node in graph.node if types.get(node.output[0]) in whole}
        # The provider has a kernel for the last, on floats; the towers have had that since.
        assert found <= {*onnxruntime_gpu._SHAPE_OPERATORS, 'ArgMax'}
        if stage == 'text_encoder':
            assert 'Shape' in found


def test_the_probe_says_what_is_missing_in_turn(monkeypatch, tmp_path):
    assert OnnxRuntimeCuda().probe().reason.startswith('no CUDA driver')
    monkeypatch.setattr(onnxruntime_gpu, 'probe_cuda', lambda: GPU)
    assert 'has no CUDAExecutionProvider; pip uninstall onnxruntime' in (
        OnnxRuntimeCuda().probe().reason)
    assert 'no TensorrtExecutionProvider' in OnnxRuntimeTensorRt().probe().reason
    preloaded = []
    runtime = SimpleNamespace(
        __file__=str(tmp_path / '__init__.py'), preload_dlls=lambda: preloaded.append(True),
        get_available_providers=lambda: ['CUDAExecutionProvider', CPU],
        InferenceSession=SimpleNamespace(get_provider_graph_assignment_info=None))
    monkeypatch.setitem(sys.modules, 'onnxruntime', runtime)
    refused = OnnxRuntimeCuda().probe()
    assert 'cannot be loaded' in refused.reason
    assert str(tmp_path) in refused.reason
    assert preloaded
    runtime.InferenceSession = SimpleNamespace()
    assert 'onnxruntime-gpu>=1.24' in OnnxRuntimeCuda().probe().reason
    runtime.InferenceSession.get_provider_graph_assignment_info = None
    monkeypatch.setattr(onnxruntime_gpu, '_cannot_load', lambda folder, name: '')
    assert OnnxRuntimeCuda().probe() == Availability(True, OnnxRuntimeCuda().probe().reason)
    assert 'fp16, on NVIDIA X' in OnnxRuntimeCuda().probe().reason
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert 'blabberseg_ros[gpu]' in OnnxRuntimeCuda().probe().reason


def test_the_order_and_that_the_untested_provider_waits_to_be_asked(monkeypatch):
    for kind in choose.engine_kinds():
        monkeypatch.setattr(type(kind), 'probe', lambda self: Availability(True, 'here'))
    assert [kind.name for kind in choose.usable_engines()] == [
        'tensorrt', 'torch-cuda', 'onnxruntime-cuda', 'onnxruntime-cpu']
    assert [kind.name for kind in choose.usable_engines('onnxruntime-tensorrt')] == [
        'onnxruntime-tensorrt']


def test_the_cache_of_the_tensorrt_provider_is_ours(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    options = OnnxRuntimeTensorRt().settings().options
    assert options['trt_engine_cache_enable'] == '1'
    assert options['trt_engine_cache_path'].startswith(str(tmp_path))
