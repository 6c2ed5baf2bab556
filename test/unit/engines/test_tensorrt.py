# SPDX-License-Identifier: Apache-2.0
"""TensorRT as an engine: what is asked of the machine, the graphs and the library."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tensorrt_rtx_bindings as trt

from blabberseg_ros.engines import tensorrt, tensorrt_builder, tensorrt_runner
from blabberseg_ros.engines.choose import engine_kinds
from blabberseg_ros.engines.cuda_probe import CudaDevice, CudaProbe
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
