# SPDX-License-Identifier: Apache-2.0
"""The TensorRT runner's buffers, stream and CUDA graph on a real GPU, with a plan made of copies.

TensorRT itself is stood in for: its context copies input to output on the runner's stream.
"""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from blabberseg_ros.engines import tensorrt_runner
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.engines.tensorrt_builder import Library
from blabberseg_ros.engines.tensorrt_options import InputRange, Profile
from blabberseg_ros.errors import EngineError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not probe_cuda().ok or importlib.util.find_spec('pycuda') is None,
                       reason='gpu: no GPU, or no pycuda')]
PROFILES = [Profile((InputRange('x', (1, 4), (2, 4), (8, 4)),))]


class Context:
    """An execution context that copies `x` to `y`."""

    def __init__(self, device):
        self.device = device
        self.addresses = {}
        self.shape = ()
        self.runs = 0

    def set_optimization_profile_async(self, profile, stream):
        assert profile == 0

    def set_input_shape(self, name, shape):
        self.shape = tuple(shape)

    def update_device_memory_size_for_shapes(self):
        return 1024

    def set_device_memory(self, pointer, size):
        assert pointer

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, pointer):
        self.addresses[name] = pointer

    def execute_async_v3(self, stream):
        assert stream == self.device.stream.handle
        self.runs += 1
        self.device.cuda.memcpy_dtod_async(self.addresses['y'], self.addresses['x'],
                                           int(np.prod(self.shape)) * 4, self.device.stream)
        return True


@pytest.fixture
def device():
    device = tensorrt_runner.Device()
    device.open()
    yield device
    device.close()


@pytest.fixture
def runner(device, monkeypatch):
    contexts = []

    def create_execution_context(strategy):
        contexts.append(Context(device))
        return contexts[-1]

    engine = SimpleNamespace(
        num_io_tensors=2, get_tensor_name=lambda index: 'xy'[index],
        get_tensor_dtype=lambda name: 'float', get_tensor_shape=lambda name: (-1, 4),
        get_tensor_mode=lambda name: {'x': 'in', 'y': 'out'}[name],
        create_execution_context=create_execution_context)
    module = SimpleNamespace(
        __version__='0', nptype=lambda kind: np.float32,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=0),
        TensorIOMode=SimpleNamespace(OUTPUT='out'))
    monkeypatch.setattr(tensorrt_runner, 'make_logger', lambda module: None)
    monkeypatch.setattr(tensorrt_runner, 'deserialise', lambda *_: (None, engine))
    runner = tensorrt_runner.PlanRunner(Library('copies', module), b'', PROFILES, device)
    runner.contexts = contexts
    yield runner
    runner.close()


def test_each_run_answers_for_its_own_input(runner, device):
    for number in range(6):
        wanted = np.full((3, 4), number, np.float32)
        (got,) = device.to_host([runner.run({'x': wanted})['y']])
        np.testing.assert_array_equal(got, wanted)
    assert runner.contexts[0].runs == 2, 'once plainly, once into the graph that is replayed'


def test_a_value_stays_on_the_device_and_is_the_next_input(runner, device):
    wanted = np.arange(8, dtype=np.float32).reshape(2, 4)
    first = runner.run({'x': wanted})['y']
    for number in range(4):
        runner.run({'x': np.full((2, 4), -number, np.float32)})
    second = runner.run({'x': first})['y']
    for got in device.to_host([first, second]):
        np.testing.assert_array_equal(got, wanted)


def test_a_constant_is_sent_once_and_found_again_after_another_input(runner, device):
    constant = np.ones((2, 4), np.float32)
    constant.setflags(write=False)
    for wanted in (constant, constant, np.zeros((2, 4), np.float32), constant):
        (got,) = device.to_host([runner.run({'x': wanted})['y']])
        np.testing.assert_array_equal(got, wanted)


def test_more_shapes_than_are_kept(runner, device):
    for prompts in (1, 2, 3, 4, 5, 6, 1, 2, 1):
        wanted = np.full((prompts, 4), prompts, np.float32)
        (got,) = device.to_host([runner.run({'x': wanted})['y']])
        np.testing.assert_array_equal(got, wanted)


def test_a_shape_out_of_the_plan_is_refused(runner):
    with pytest.raises(EngineError, match='was not built for'):
        runner.run({'x': np.zeros((9, 4), np.float32)})


def test_the_context_is_shared_with_torch(runner, device):
    torch = pytest.importorskip('torch', reason='gpu: no torch')
    tensor = torch.full((2, 4), 3.0, device='cuda')
    torch.cuda.synchronize()
    (got,) = device.to_host([runner.run({'x': np.full((2, 4), 5, np.float32)})['y']])
    assert got.sum() == 40
    assert float(tensor.sum()) == 24
