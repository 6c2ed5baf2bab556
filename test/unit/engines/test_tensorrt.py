# SPDX-License-Identifier: Apache-2.0
"""TensorRT as an engine: what is asked of the machine, the graphs and the library."""

import argparse
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorrt_rtx_bindings as trt

from blabberseg_ros.cli import build as build_command
from blabberseg_ros.engines import tensorrt, tensorrt_builder, tensorrt_runner
from blabberseg_ros.engines.choose import engine_kinds
from blabberseg_ros.engines.cuda_probe import CudaDevice, CudaProbe
from blabberseg_ros.engines.store import PlanStore
from blabberseg_ros.engines.tensorrt import TensorRt
from blabberseg_ros.engines.tensorrt_builder import TENSORRT, Library, load_library, make_logger
from blabberseg_ros.engines.tensorrt_options import BuildOptions
from blabberseg_ros.errors import EngineError

STAGES = ('image_encoder', 'text_encoder', 'film', 'decoder', 'fusion')
NO_DRIVER = CudaProbe(False, 'no CUDA driver')
ONE_GPU = CudaProbe(True, 'NVIDIA X (compute capability 8.7)', '13.0', (CudaDevice('X', '8.7'),))


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


def test_auto_is_fp16_where_there_is_a_graph_of_it(bundle):
    assert tensorrt.stage_precision(bundle, 'image_encoder', 'auto') == 'fp16'
    assert tensorrt.stage_precision(bundle, 'film', 'auto') == 'fp32'
    assert TensorRt(store=PlanStore(Path('/nowhere'))).create(
        bundle, 'image_encoder').precision == 'fp16'


def test_a_bundle_without_graphs_of_the_precision_rules_out_this_kind_alone(bundle, tmp_path):
    plain = dataclasses.replace(bundle, manifest=dataclasses.replace(
        bundle.manifest, graphs={stage: f'{stage}.onnx' for stage in STAGES}))
    store = PlanStore(tmp_path)
    assert TensorRt(store=store).takes(plain).ok
    assert TensorRt(store=store).create(plain, 'image_encoder').precision == 'fp32'
    refused = TensorRt(BuildOptions('fp16'), store).takes(plain)
    assert not refused.ok
    assert 'no fp16 graphs' in refused.reason


def test_a_stage_that_stays_fp32_uses_no_dla():
    options = BuildOptions(dla_core=0)
    assert options.of_stage('fp16').dla_core == 0
    assert options.of_stage('fp32').dla_core is None


BUILD = ('--prompts', '1', '2', '4', '--image-sizes', '64x48', '--optimisation-level', '1')


@pytest.mark.parametrize('precision', ['auto', 'fp32'])
def test_the_engine_finds_the_plans_that_were_built_for_it(bundle, monkeypatch, tmp_path,
                                                           precision):
    """TensorRT is stood in for: what counts is under which key each side looks."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(tensorrt, 'probe_cuda', lambda: ONE_GPU)
    library = Library(TENSORRT, SimpleNamespace(__version__='11.4', BuilderFlag=SimpleNamespace()))
    for module in (tensorrt, build_command):
        monkeypatch.setattr(module, 'load_library', lambda name: library)
    built = []
    monkeypatch.setattr(tensorrt, 'build_plan', lambda library, graph, profiles, options: (
        built.append((graph.stem, options.precision)), b'a plan')[1])
    runners = []
    monkeypatch.setattr(tensorrt_runner, 'PlanRunner', lambda *arguments: (
        runners.append(arguments), SimpleNamespace(outputs=[], close=lambda: None))[1])
    parser = argparse.ArgumentParser()
    build_command.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(['build', '--bundle', str(bundle.folder), '--precision',
                                   precision, *BUILD])
    assert arguments.run(arguments) == 0
    stages = [*STAGES]
    assert sorted(built) == sorted(
        (f'{stage}_fp16', 'fp16') if precision == 'auto' and stage in ('image_encoder', 'decoder')
        else (stage, 'fp32') for stage in stages)
    built.clear()
    kind = TensorRt()
    monkeypatch.setattr(tensorrt_runner, 'Device', lambda: SimpleNamespace(
        open=lambda: None, close=lambda: None))
    for stage in stages:
        engine = kind.create(bundle, stage)
        engine.activate()
        engine.deactivate()
    assert built == []
    assert len(runners) == len(stages)
    assert runners[0][2][0].inputs[0].maximum == (48, 64, 3)
    assert kind.nearest_shapes(bundle, 640, 480, 13) == (64, 48, 4)


def test_damaged_build_options_are_those_by_default_and_the_log_says_so(bundle, tmp_path, caplog):
    store = PlanStore(tmp_path / 'plans')
    tensorrt.remember_options(bundle, BuildOptions('fp32'), store)
    assert tensorrt.options_for(bundle, store) == BuildOptions('fp32')
    path, = store.folder.iterdir()
    path.write_bytes(path.read_bytes()[:20])
    assert tensorrt.options_for(bundle, store) == BuildOptions()
    assert 'Run `blabberseg build` again' in caplog.text
    assert store.prune() == []
    assert store.verify() == []


def test_host_code_is_never_allowed():
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
