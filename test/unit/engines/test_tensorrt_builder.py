# SPDX-License-Identifier: Apache-2.0
"""From a graph to a plan, with TensorRT-RTX, which needs no GPU to build."""

import pytest
import tensorrt_rtx_bindings as trt

from blabberseg_ros.engines.build_progress import Progress
from blabberseg_ros.engines.graph_inputs import graph_inputs
from blabberseg_ros.engines.tensorrt_builder import build_plan
from blabberseg_ros.engines.tensorrt_options import BuildOptions, profiles_for
from blabberseg_ros.errors import EngineError


def test_a_parser_error_names_the_node(parsed, one_node):
    with pytest.raises(EngineError, match=r'cannot parse.*NoSuchOperator the_culprit'):
        parsed(one_node('NoSuchOperator'))


def test_missing_weights_are_said(bundle, tmp_path, parsed):
    path = tmp_path / 'film.onnx'
    path.write_bytes(bundle.graph('film').read_bytes())
    with pytest.raises(EngineError, match='cannot parse'):
        parsed(path)


def test_a_build_gives_a_plan_and_tells_its_progress(rtx, bundle, monkeypatch):
    fractions = []
    step = Progress.step

    def spy(self, phase, index):
        fractions.append(self.fraction)
        return step(self, phase, index)

    monkeypatch.setattr(Progress, 'step', spy)
    graph, options = bundle.graph('film'), BuildOptions()
    plan = build_plan(rtx, graph, profiles_for(graph_inputs(graph), options), options)
    assert len(plan) > 10_000
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.5


def test_a_cancelled_build_is_an_error(rtx, bundle, monkeypatch):
    monkeypatch.setattr(Progress, 'step', lambda self, phase, index: False)
    graph, options = bundle.graph('film'), BuildOptions()
    with pytest.raises(EngineError, match=r'cannot build.*cancel'):
        build_plan(rtx, graph, profiles_for(graph_inputs(graph), options), options)


@pytest.mark.parametrize('stage', ['text_encoder', 'film', 'fusion', 'image_encoder', 'decoder',
                                   'image_encoder_fp16', 'decoder_fp16'])
def test_every_graph_builds(rtx, bundle, stage):
    options = BuildOptions()
    graph = bundle.graph(stage)
    assert len(build_plan(rtx, graph, profiles_for(graph_inputs(graph), options), options))


@pytest.mark.parametrize('stage', ['image_encoder', 'decoder'])
def test_products_of_a_half_graph_are_half(bundle, parsed, stage):
    networks = {suffix: parsed(bundle.graph(stage + suffix)) for suffix in ('', '_fp16')}
    for kind in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.NORMALIZATION,
                 trt.LayerType.SOFTMAX):
        single, half = (types_of(network, kind) for network in networks.values())
        assert set(single) == {trt.float32}
        assert len(half) == len(single)
        if kind == trt.LayerType.MATRIX_MULTIPLY:
            # Resizing is a pair of products in front of the first weight.
            resizing = 2 if stage == 'image_encoder' else 0
            assert half.count(trt.float32) == resizing
            assert half.count(trt.float16) == len(half) - resizing > 2
        else:
            assert set(half) == {trt.float32}
    assert [spec.dtype for spec in graph_inputs(bundle.graph(f'{stage}_fp16'))] == [
        spec.dtype for spec in graph_inputs(bundle.graph(stage))]
    assert networks['_fp16'].get_output(0).dtype == trt.float32


def types_of(network, kind):
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return [layer.get_input(0).dtype for layer in layers if layer.type == kind]
