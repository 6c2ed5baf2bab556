# SPDX-License-Identifier: Apache-2.0
"""Inputs of graphs, optimisation profiles, and the choice between them."""

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blabberseg_ros.engines import tensorrt_runner
from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.engines.graph_inputs import graph_inputs
from blabberseg_ros.engines.tensorrt_builder import add_profiles
from blabberseg_ros.engines.tensorrt_options import (
    BuildOptions,
    ImageRange,
    InputRange,
    Profile,
    Range,
    profiles_for,
)
from blabberseg_ros.errors import EngineError

STAGES = ('image_encoder', 'text_encoder', 'film', 'decoder', 'fusion')


@pytest.mark.parametrize('stage', STAGES)
def test_inputs_are_read_as_onnx_reads_them(bundle, stage):
    wanted = []
    for value in onnx.load(bundle.graph(stage), load_external_data=False).graph.input:
        tensor = value.type.tensor_type
        wanted.append(TensorSpec(
            value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name,
            tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)))
    assert graph_inputs(bundle.graph(stage)) == tuple(wanted)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_graph_are_refused(data):
    class File:
        def read_bytes(self):
            return data

    with pytest.raises(EngineError, match='not an ONNX graph'):
        graph_inputs(File())


def test_every_cut_of_a_graph_is_refused_or_read(bundle, tmp_path):
    data = bundle.graph('film').read_bytes()
    whole = graph_inputs(bundle.graph('film'))
    path = tmp_path / 'cut.onnx'
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        try:
            assert graph_inputs(path) == whole
        except EngineError:
            continue


def test_a_range_of_sizes_is_one_profile_read_back_from_the_library(builder, bundle, parsed):
    options = BuildOptions(prompts=Range(2, 5, 9), image_sizes=(
        ImageRange(heights=Range(20, 30, 40), widths=Range(50, 60, 70)),))
    graph = bundle.graph('fusion')
    network = parsed(graph)
    profiles = profiles_for(graph_inputs(graph), options)
    added = add_profiles(builder.builder, builder.config, network, profiles)
    assert builder.config.num_optimization_profiles == 1
    assert [tuple(shape) for shape in added[0].get_shape('logits')] == [
        (2, 352, 352), (5, 352, 352), (9, 352, 352)]
    assert [tuple(shape) for shape in added[0].get_shape('positive')] == [(2,), (5,), (9,)]
    assert [tuple(shape) for shape in added[0].get_shape('rows')] == [
        (20, 352), (30, 352), (40, 352)]
    assert [tuple(shape) for shape in added[0].get_shape('cols')] == [
        (352, 50), (352, 60), (352, 70)]


def test_fixed_sizes_are_a_profile_each(builder, bundle, parsed):
    options = BuildOptions(image_sizes=(ImageRange.fixed(640, 480), ImageRange.fixed(352, 352)))
    graph = bundle.graph('image_encoder')
    profiles = profiles_for(graph_inputs(graph), options)
    added = add_profiles(builder.builder, builder.config, parsed(graph), profiles)
    assert builder.config.num_optimization_profiles == 2
    for profile, shape in zip(added, [(480, 640, 3), (352, 352, 3)], strict=True):
        assert [tuple(entry) for entry in profile.get_shape('image')] == [shape] * 3


def test_fixed_sizes_do_not_multiply_the_profiles_of_the_text_tower(bundle):
    options = BuildOptions(image_sizes=(ImageRange.fixed(640, 480), ImageRange.fixed(352, 352)))
    assert len(profiles_for(graph_inputs(bundle.graph('text_encoder')), options)) == 1


def test_an_axis_without_a_range_is_refused():
    with pytest.raises(EngineError, match='without a known range: batch'):
        profiles_for([TensorSpec('x', 'float32', ('batch', 3))], BuildOptions())


def test_a_profile_of_another_graph_is_refused(builder, bundle, parsed):
    network = parsed(bundle.graph('film'))
    with pytest.raises(EngineError, match=r'takes conditional, and the profile has tokens'):
        add_profiles(builder.builder, builder.config, network,
                     profiles_for(graph_inputs(bundle.graph('text_encoder')), BuildOptions()))


def test_the_first_profile_that_fits_is_chosen():
    profiles = [Profile((InputRange('x', (low, 2), (low, 2), (high, 2)),))
                for low, high in ((1, 4), (3, 9))]
    assert tensorrt_runner.choose_profile(profiles, {'x': (4, 2)}) == 0
    assert tensorrt_runner.choose_profile(profiles, {'x': (5, 2)}) == 1
    with pytest.raises(EngineError, match=r'\[3, 2\] to \[9, 2\].*blabberseg build'):
        tensorrt_runner.choose_profile(profiles, {'x': (10, 2)})
