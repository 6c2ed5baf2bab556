# SPDX-License-Identifier: Apache-2.0
"""TensorRT's builder, options and shapes, on TensorRT-RTX, which needs no GPU to build."""

import argparse
import dataclasses
import io
import logging
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import tensorrt_rtx_bindings as trt
from hypothesis import given
from hypothesis import strategies as st

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli import build as build_command
from blabberseg_ros.cli import engines as engines_command
from blabberseg_ros.engines import build_progress, tensorrt, tensorrt_builder, tensorrt_runner
from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.engines.build_progress import Progress, run_with_progress
from blabberseg_ros.engines.choose import engine_kinds
from blabberseg_ros.engines.cuda_probe import CudaDevice, CudaProbe
from blabberseg_ros.engines.graph_inputs import graph_inputs
from blabberseg_ros.engines.store import PlanStore
from blabberseg_ros.engines.tensorrt_builder import (
    TENSORRT,
    TENSORRT_RTX,
    Library,
    add_profiles,
    apply_options,
    build_plan,
    load_library,
    make_logger,
    network_flags,
    parse_graph,
)
from blabberseg_ros.engines.tensorrt_options import (
    BuildOptions,
    ImageRange,
    InputRange,
    Profile,
    Range,
    profiles_for,
)
from blabberseg_ros.errors import EngineError, ParameterError

STAGES = ('image_encoder', 'text_encoder', 'film', 'decoder', 'fusion')
NO_DRIVER = CudaProbe(False, 'no CUDA driver')
ONE_GPU = CudaProbe(True, 'NVIDIA X (compute capability 8.7)', '13.0', (CudaDevice('X', '8.7'),))


@pytest.fixture(scope='module')
def rtx():
    return load_library(TENSORRT_RTX)


@pytest.fixture(scope='module')
def bundle(random_bundle):
    return load_bundle(random_bundle)


@pytest.fixture
def builder(rtx):
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    return SimpleNamespace(logger=logger, builder=builder, config=builder.create_builder_config())


def parsed(rtx, builder, graph):
    network = builder.builder.create_network(network_flags(rtx))
    parse_graph(rtx, network, builder.logger, graph)
    return network


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


def test_the_timing_cache_is_used_and_written(rtx, builder, bundle, tmp_path):
    options = BuildOptions(timing_cache=tmp_path / 'timing.cache')
    assert builder.config.get_timing_cache() is None
    apply_options(rtx, builder.builder, builder.config, options)
    assert builder.config.get_timing_cache() is not None
    graph = bundle.graph('film')
    build_plan(rtx, graph, profiles_for(graph_inputs(graph), options), options)
    assert options.timing_cache.is_file()


def test_a_damaged_timing_cache_is_started_anew(rtx, builder, tmp_path):
    path = tmp_path / 'timing.cache'
    path.write_bytes(b'not a cache' * 100)
    apply_options(rtx, builder.builder, builder.config, BuildOptions(timing_cache=path))
    assert builder.config.get_timing_cache() is not None


def test_networks_are_strongly_typed(rtx, builder, bundle):
    network = parsed(rtx, builder, bundle.graph('film'))
    assert not rtx.weakly_typed
    assert network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_the_precision_is_that_of_the_graph(rtx, builder, tmp_path):
    types = {}
    for name, number in (('fp32', onnx.TensorProto.FLOAT), ('fp16', onnx.TensorProto.FLOAT16)):
        path = tmp_path / f'{name}.onnx'
        onnx.save(_one_node('Exp', number), path)
        types[name] = parsed(rtx, builder, path).get_output(0).dtype
    assert types == {'fp32': trt.float32, 'fp16': trt.float16}


# Options that this library does not have are refused, not dropped.

def test_an_option_that_the_library_ignores_is_refused(rtx, builder):
    with pytest.raises(EngineError, match=r'does not take.*AMPERE_PLUS.*stays'):
        apply_options(rtx, builder.builder, builder.config,
                      BuildOptions(hardware_compatibility='ampere_plus'))


def test_a_dla_that_is_not_there_is_refused(rtx, builder):
    with pytest.raises(EngineError, match=r'DLA core 0 was asked for.* finds 0'):
        apply_options(rtx, builder.builder, builder.config, BuildOptions('fp16', dla_core=0))


def test_an_option_that_the_library_has_not_is_refused(rtx, builder):
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
    ({'dla_core': 0}, 'fp16 only')])
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


# Shapes.

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


def test_a_range_of_sizes_is_one_profile_read_back_from_the_library(rtx, builder, bundle):
    options = BuildOptions(prompts=Range(2, 5, 9), image_sizes=(
        ImageRange(heights=Range(20, 30, 40), widths=Range(50, 60, 70)),))
    graph = bundle.graph('fusion')
    network = parsed(rtx, builder, graph)
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


def test_fixed_sizes_are_a_profile_each(rtx, builder, bundle):
    options = BuildOptions(image_sizes=(ImageRange.fixed(640, 480), ImageRange.fixed(352, 352)))
    graph = bundle.graph('image_encoder')
    profiles = profiles_for(graph_inputs(graph), options)
    added = add_profiles(builder.builder, builder.config, parsed(rtx, builder, graph), profiles)
    assert builder.config.num_optimization_profiles == 2
    for profile, shape in zip(added, [(480, 640, 3), (352, 352, 3)], strict=True):
        assert [tuple(entry) for entry in profile.get_shape('image')] == [shape] * 3


def test_fixed_sizes_do_not_multiply_the_profiles_of_the_text_tower(bundle):
    options = BuildOptions(image_sizes=(ImageRange.fixed(640, 480), ImageRange.fixed(352, 352)))
    assert len(profiles_for(graph_inputs(bundle.graph('text_encoder')), options)) == 1


def test_an_axis_without_a_range_is_refused():
    with pytest.raises(EngineError, match='without a known range: batch'):
        profiles_for([TensorSpec('x', 'float32', ('batch', 3))], BuildOptions())


def test_a_profile_of_another_graph_is_refused(rtx, builder, bundle):
    network = parsed(rtx, builder, bundle.graph('film'))
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


# Parser and build.

def _one_node(operator, dtype=onnx.TensorProto.FLOAT):
    value = [onnx.helper.make_tensor_value_info(name, dtype, ['prompts', 4]) for name in 'xy']
    node = onnx.helper.make_node(operator, ['x'], ['y'], name='the_culprit')
    graph = onnx.helper.make_graph([node], 'graph', value[:1], value[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)])


def test_a_parser_error_names_the_node(rtx, builder, tmp_path):
    path = tmp_path / 'unknown.onnx'
    onnx.save(_one_node('NoSuchOperator'), path)
    with pytest.raises(EngineError, match=r'cannot parse.*NoSuchOperator the_culprit'):
        parsed(rtx, builder, path)


def test_missing_weights_are_said(rtx, builder, bundle, tmp_path):
    path = tmp_path / 'film.onnx'
    path.write_bytes(bundle.graph('film').read_bytes())
    with pytest.raises(EngineError, match='cannot parse'):
        parsed(rtx, builder, path)


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


# Progress.

def test_nested_phases_add_up():
    progress = Progress('work')
    assert progress.fraction == 0
    progress.start('all', None, 4)
    assert progress.step('all', 0)
    assert progress.fraction == 0.25
    progress.start('part', 'all', 2)
    progress.step('part', 0)
    assert progress.fraction == 0.375
    assert progress.phase == 'part'
    progress.finish('part')
    assert progress.fraction == 0.375, 'it never falls'
    progress.finish('all')
    assert progress.phase == ''


def test_a_long_build_logs_lines(monkeypatch, caplog):
    monkeypatch.setattr(build_progress, 'LOG_PERIOD_S', 0.05)
    progress = Progress('building x')
    progress.start('phase y', None, 2)
    progress.step('phase y', 0)

    def work():
        deadline = time.monotonic() + 20
        while len(caplog.records) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return 'done'

    with caplog.at_level(logging.INFO):
        assert run_with_progress(work, progress) == 'done'
    assert len(caplog.records) >= 2
    assert 'building x: 50 %' in caplog.text
    assert 'phase y' in caplog.text


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    progress = Progress('building x')
    progress.start('phase y', None, 2)
    progress.step('phase y', 0)

    def work():
        deadline = time.monotonic() + 20
        while '50%' not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)

    run_with_progress(work, progress)
    assert 'building x' in terminal.getvalue()
    assert '50%' in terminal.getvalue()


def test_an_error_of_the_work_reaches_the_caller():
    def work():
        raise EngineError('inside')

    with pytest.raises(EngineError, match='inside'):
        run_with_progress(work, Progress('x'))


def test_an_interrupt_ends_the_work_first(monkeypatch):
    ended = threading.Event()
    progress = Progress('x')

    def work():
        assert progress.cancelled.wait(20)
        ended.set()

    def interrupt(done, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_progress, '_show_lines', interrupt)
    monkeypatch.setattr(build_progress, '_show_bar', interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_with_progress(work, progress)
    assert ended.is_set()


# The library, the engine kind and the runner's use of the API.

def test_tensorrt_is_not_imported_where_there_is_no_driver(monkeypatch):
    imported = []
    monkeypatch.setattr(tensorrt_builder, 'probe_cuda', lambda: NO_DRIVER)
    monkeypatch.setattr(tensorrt, 'probe_cuda', lambda: NO_DRIVER)
    monkeypatch.setattr(tensorrt_builder.importlib, 'import_module', imported.append)
    with pytest.raises(EngineError, match='needs a GPU: no CUDA driver'):
        load_library(TENSORRT)
    assert tensorrt.TensorRt().probe() == tensorrt.Availability(False, 'no CUDA driver')
    assert imported == []


def test_the_probe_says_what_is_missing_in_turn(monkeypatch):
    for module in (tensorrt, tensorrt_builder):
        monkeypatch.setattr(module, 'probe_cuda', lambda: ONE_GPU)
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    assert 'pip install "blabberseg_ros[tensorrt]"' in tensorrt.TensorRt().probe().reason
    monkeypatch.setitem(sys.modules, 'tensorrt', SimpleNamespace(__version__='10.16.1'))
    found = {'pycuda': None}
    monkeypatch.setattr(tensorrt.importlib.util, 'find_spec', found.get)
    assert 'blabberseg_ros[pycuda]' in tensorrt.TensorRt().probe().reason
    found['pycuda'] = SimpleNamespace()
    availability = tensorrt.TensorRt().probe()
    assert availability.ok
    assert '10.16.1' in availability.reason
    assert 'NVIDIA X' in availability.reason


def test_tensorrt_is_considered_first():
    assert engine_kinds()[0].name == 'tensorrt'


def test_a_plan_of_tensorrt_is_for_one_gpu(bundle, monkeypatch):
    monkeypatch.setattr(tensorrt, 'probe_cuda', lambda: ONE_GPU)
    library = Library(TENSORRT, SimpleNamespace(__version__='10.3.0'))
    key = tensorrt.plan_key(bundle, 'film', bundle.graph('film'), 'fp32', (), library,
                            BuildOptions())
    assert (key.gpu, key.compute_capability, key.builder_version) == ('X', '8.7', '10.3.0')
    assert key.graph_sha256 == bundle.manifest.files['film.onnx'].sha256


def test_a_stage_has_the_precision_of_its_graph(bundle, rtx):
    weak = Library(TENSORRT, SimpleNamespace(BuilderFlag=SimpleNamespace(FP16=0)))
    graphs = {**bundle.manifest.graphs, 'image_encoder_bf16': 'image_encoder_bf16.onnx'}
    typed = dataclasses.replace(
        bundle, manifest=dataclasses.replace(bundle.manifest, graphs=graphs))
    assert tensorrt.stage_precision(typed, 'image_encoder', 'bf16') == 'bf16'
    assert tensorrt.stage_precision(typed, 'film', 'bf16') == 'fp32'
    assert tensorrt.stage_precision(typed, 'film', 'tf32') == 'tf32'
    without = dataclasses.replace(bundle, manifest=dataclasses.replace(
        bundle.manifest, graphs={stage: f'{stage}.onnx' for stage in STAGES}))
    with pytest.raises(EngineError, match='no bf16 graphs'):
        tensorrt.stage_precision(without, 'film', 'bf16')
    assert tensorrt.stage_graph(typed, 'image_encoder', 'bf16', rtx).name == (
        'image_encoder_bf16.onnx')
    assert tensorrt.stage_graph(typed, 'image_encoder', 'bf16', weak).name == 'image_encoder.onnx'


def test_host_code_is_never_allowed(rtx):
    runtimes = []

    class Runtime:
        engine_host_code_allowed = True

        def __init__(self, logger):
            runtimes.append(self)

        def deserialize_cuda_engine(self, data):
            assert not self.engine_host_code_allowed
            return 'engine'

    library = Library('fake', SimpleNamespace(Runtime=Runtime, __version__='1'))
    assert tensorrt_runner.deserialise(library, b'', make_logger(trt)) == (runtimes[0], 'engine')
    assert isinstance(trt.Runtime.engine_host_code_allowed, property)


@pytest.mark.parametrize(('owner', 'names'), [
    ('Runtime', ['deserialize_cuda_engine', 'engine_host_code_allowed']),
    ('ICudaEngine', ['create_execution_context', 'num_io_tensors', 'get_tensor_name',
                     'get_tensor_dtype', 'get_tensor_mode', 'get_tensor_shape']),
    ('IExecutionContext', ['set_optimization_profile_async', 'set_input_shape',
                           'update_device_memory_size_for_shapes', 'set_device_memory',
                           'get_tensor_shape', 'set_tensor_address', 'execute_async_v3']),
    ('ExecutionContextAllocationStrategy', ['USER_MANAGED']), ('TensorIOMode', ['OUTPUT'])])
def test_the_runner_calls_what_the_library_has(owner, names):
    source = Path(tensorrt_runner.__file__).read_text(encoding='utf-8')
    for name in names:
        assert name in source
        assert hasattr(getattr(trt, owner), name)


# The commands.

def command(*arguments):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    build_command.add_parser(subparsers)
    engines_command.add_parser(subparsers)
    parsed_arguments = parser.parse_args([str(argument) for argument in arguments])
    return parsed_arguments.run(parsed_arguments)


def test_plans_are_built_listed_verified_and_pruned(random_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    arguments = ('build', '--bundle', random_bundle, '--builder', TENSORRT_RTX, '--stage', 'film',
                 '--stage', 'fusion', '--prompts', 1, 2, 4)
    assert command(*arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count('built in') == 2
    assert 'not run by this package' in printed.replace('\n', ' ')
    assert command(*arguments) == 0
    assert capsys.readouterr().out.count('kept') == 2
    assert command('engines', 'list') == 0
    listed = capsys.readouterr().out
    assert 'random film fp32, tensorrt_rtx' in listed
    assert 'parity: not measured' in listed
    assert command('engines', 'verify') == 0
    plan = next(PlanStore().folder.glob('*film*.plan'))
    plan.write_bytes(plan.read_bytes()[:-1])
    assert command('engines', 'verify') == 1
    assert 'DAMAGED' in capsys.readouterr().out
    assert command('engines', 'prune') == 0
    assert 'removed' in capsys.readouterr().out
    assert [verdict.ok for verdict in PlanStore().verify()] == [True]
    assert command('engines', 'prune', '--all') == 0
    assert list(PlanStore().folder.iterdir()) == []


def test_a_plan_that_is_not_in_the_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(ParameterError, match='no plan'):
        command('engines', 'verify', '../../other')


@pytest.mark.parametrize(('arguments', 'message'), [
    (('--stage', 'no_such'), 'has no stage'), (('--image-sizes', '640'), 'write it as 640x480'),
    (('--prompts', 5, 4, 3), 'minimum'), (('--precision', 'int8'), 'int8 is not built')])
def test_wrong_arguments_of_build_are_refused(random_bundle, tmp_path, monkeypatch, arguments,
                                              message):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(ParameterError, match=message):
        command('build', '--bundle', random_bundle, '--builder', TENSORRT_RTX, *arguments)
