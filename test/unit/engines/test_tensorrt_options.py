# SPDX-License-Identifier: Apache-2.0
"""Builder options, read back from TensorRT-RTX, which needs no GPU to build."""

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import tensorrt_rtx_bindings as trt
from hypothesis import given
from hypothesis import strategies as st

from blabberseg_ros.engines import tensorrt_builder
from blabberseg_ros.engines.graph_inputs import graph_inputs
from blabberseg_ros.engines.tensorrt_builder import Library, apply_options, build_plan
from blabberseg_ros.engines.tensorrt_options import BuildOptions, ImageRange, Range, profiles_for
from blabberseg_ros.errors import EngineError, ParameterError


def flag(builder, name):
    return builder.config.get_flag(getattr(trt.BuilderFlag, name))


# Options: what the library's own configuration says after they were applied.

def test_the_workspace_is_taken(rtx, builder):
    apply_options(rtx, builder.builder, builder.config, BuildOptions(workspace_mib=300))
    assert builder.config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 300 << 20


@pytest.mark.parametrize('level', [0, 3, 5])
def test_the_optimisation_level_is_taken(rtx, builder, level):
    apply_options(rtx, builder.builder, builder.config, BuildOptions(optimisation_level=level))
    assert builder.config.builder_optimization_level == level


@pytest.mark.parametrize(('precision', 'wanted'), [('fp32', False), ('tf32', True)])
def test_tf32_is_used_only_when_it_is_asked_for(rtx, builder, precision, wanted):
    assert flag(builder, 'TF32'), 'the library has it on by default'
    apply_options(rtx, builder.builder, builder.config, BuildOptions(precision))
    assert flag(builder, 'TF32') == wanted


@pytest.mark.parametrize('sparse', [False, True])
def test_sparsity_is_off_unless_it_is_asked_for(rtx, builder, sparse):
    apply_options(rtx, builder.builder, builder.config, BuildOptions(sparse=sparse))
    assert flag(builder, 'SPARSE_WEIGHTS') == sparse


@pytest.mark.parametrize('compatible', [False, True])
def test_a_version_compatible_plan_carries_no_host_code(rtx, builder, compatible):
    options = BuildOptions(version_compatible=compatible)
    apply_options(rtx, builder.builder, builder.config, options)
    assert flag(builder, 'VERSION_COMPATIBLE') == compatible
    assert flag(builder, 'EXCLUDE_LEAN_RUNTIME') == compatible


def test_the_timing_cache_is_used_and_written(rtx, builder, bundle, tmp_path, monkeypatch):
    use = tensorrt_builder._use_timing_cache
    options = BuildOptions(timing_cache=tmp_path / 'timing.cache')
    assert builder.config.get_timing_cache() is None
    apply_options(rtx, builder.builder, builder.config, options)
    assert builder.config.get_timing_cache() is not None
    graph = bundle.graph('film')
    build_plan(rtx, graph, profiles_for(graph_inputs(graph), options), options)
    written = options.timing_cache.read_bytes()
    assert written
    given = []
    monkeypatch.setattr(tensorrt_builder, '_use_timing_cache', lambda config, path: (
        given.append(path.read_bytes()), use(config, path)))
    build_plan(rtx, graph, profiles_for(graph_inputs(graph), options), options)
    assert given == [written], 'the second build starts from what the first has measured'
    assert options.timing_cache.read_bytes()


def test_a_damaged_timing_cache_is_started_anew(rtx, builder, tmp_path):
    path = tmp_path / 'timing.cache'
    path.write_bytes(b'not a cache' * 100)
    apply_options(rtx, builder.builder, builder.config, BuildOptions(timing_cache=path))
    assert builder.config.get_timing_cache() is not None


def test_networks_are_strongly_typed(rtx, bundle, parsed):
    network = parsed(bundle.graph('film'))
    assert not rtx.weakly_typed
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_the_precision_is_that_of_the_graph(parsed, one_node):
    types = {}
    for name, number in (('fp32', onnx.TensorProto.FLOAT), ('fp16', onnx.TensorProto.FLOAT16)):
        types[name] = parsed(one_node('Exp', number)).get_output(0).dtype
    assert types == {'fp32': trt.float32, 'fp16': trt.float16}


# Options that this library does not have are refused, not dropped.

def test_an_option_that_the_library_ignores_is_refused(rtx, builder):
    with pytest.raises(EngineError, match=r'does not take.*AMPERE_PLUS.*stays'):
        apply_options(rtx, builder.builder, builder.config,
                      BuildOptions(hardware_compatibility='ampere_plus'))


def test_a_dla_that_is_not_there_is_refused(rtx, builder):
    with pytest.raises(EngineError, match=r'DLA core 0 was asked for.* finds 0'):
        apply_options(rtx, builder.builder, builder.config, BuildOptions('fp16', dla_core=0))


def test_an_option_that_the_library_has_not_is_refused(builder):
    without = SimpleNamespace(__version__='0', MemoryPoolType=trt.MemoryPoolType,
                              BuilderFlag=SimpleNamespace())
    library = Library('old', without)
    apply_options(library, builder.builder, builder.config, BuildOptions())
    with pytest.raises(EngineError, match=r'old 0 has no BuilderFlag\.SPARSE_WEIGHTS'):
        apply_options(library, builder.builder, builder.config, BuildOptions(sparse=True))
    with pytest.raises(EngineError, match=r'has no HardwareCompatibilityLevel\.AMPERE_PLUS'):
        apply_options(library, builder.builder, builder.config,
                      BuildOptions(hardware_compatibility='ampere_plus'))


@pytest.mark.parametrize(('options', 'message'), [
    ({'precision': 'int8'}, r'12 times slower.*Use fp16'),
    ({'precision': 'fp8'}, 'unknown; use one of'),
    ({'hardware_compatibility': 'all'}, 'unknown; use one of'),
    ({'optimisation_level': 6}, r'not in 0\.\.5'),
    ({'workspace_mib': 0}, 'too small'),
    ({'image_sizes': ()}, 'no image size'),
    ({'dla_core': 0, 'precision': 'fp32'}, 'fp16 only')])
def test_options_out_of_their_bounds_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        BuildOptions(**options)


@given(st.integers(-2, 9), st.integers(-2, 9), st.integers(-2, 9))
def test_a_range_is_ordered_and_not_empty(low, middle, high):
    if 1 <= low <= middle <= high:
        Range(low, middle, high)
    else:
        with pytest.raises(ParameterError, match='minimum'):
            Range(low, middle, high)


def test_the_timing_cache_does_not_make_another_plan():
    assert BuildOptions(timing_cache=Path('a')).settings() == BuildOptions().settings()
    assert BuildOptions(sparse=True).settings() != BuildOptions().settings()


SIZES = (ImageRange.fixed(640, 480), ImageRange(Range(16, 30, 64), Range(100, 200, 300)))


@pytest.mark.parametrize('options', [
    BuildOptions(), BuildOptions('fp16', Range(1, 2, 3), SIZES, timing_cache=Path('/a/b'),
                                 workspace_mib=9, sparse=True)])
def test_options_survive_json(options):
    assert BuildOptions.from_json(options.to_json()) == options


@pytest.mark.parametrize('text', [b'', b'[]', b'{}', b'\xff', BuildOptions().to_json()[:-9],
                                  BuildOptions().to_json().replace(': 1,', ': 0,'),
                                  BuildOptions().to_json().replace('auto', 'int8')])
def test_damaged_options_are_refused(text):
    with pytest.raises(EngineError, match='cannot be read'):
        BuildOptions.from_json(text)


@pytest.mark.parametrize(('asked', 'nearest'), [
    ((640, 480, 13), (640, 480, 13)), ((2, 2, 65), (100, 16, 64)), ((200, 40, 2), (200, 40, 2)),
    ((352, 352, 1), (300, 64, 1)), ((8000, 7000, 0), (640, 480, 1))])
def test_the_nearest_shapes_that_a_plan_takes(asked, nearest):
    assert BuildOptions(image_sizes=SIZES).nearest(*asked) == nearest
