# SPDX-License-Identifier: Apache-2.0
"""The TensorRT runner without a GPU: pycuda, the library and device memory are stood in for."""

from types import SimpleNamespace

import numpy as np
import pytest

from blabberseg_ros.engines import tensorrt_runner
from blabberseg_ros.engines.tensorrt_builder import Library
from blabberseg_ros.engines.tensorrt_options import InputRange, Profile
from blabberseg_ros.errors import EngineError
from blabberseg_ros.resampling import read_only

SHAPE = (2, 4)
PROFILES = [Profile((InputRange('x', SHAPE, SHAPE, SHAPE),))]


class Context:
    """An execution context that copies `x` to `y`."""

    def __init__(self, cuda):
        self._cuda = cuda
        self._addresses = {}
        self.set_optimization_profile_async = self.set_input_shape = lambda *_: None
        self.set_device_memory = lambda *_: None
        self.update_device_memory_size_for_shapes = lambda: 8
        self.get_tensor_shape = lambda name: SHAPE
        self.set_tensor_address = self._addresses.__setitem__

    def execute_async_v3(self, stream):
        memory = self._cuda.memory
        memory[self._addresses['y']][...] = memory[self._addresses['x']]
        return True


def runner_of(cuda, device, monkeypatch, dtype):
    engine = SimpleNamespace(
        num_io_tensors=2, get_tensor_name=lambda index: 'xy'[index],
        get_tensor_dtype=lambda name: 'any', create_execution_context=lambda _: Context(cuda))
    module = SimpleNamespace(
        nptype=lambda kind: dtype,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=0))
    monkeypatch.setattr(tensorrt_runner, 'make_logger', lambda module: None)
    monkeypatch.setattr(tensorrt_runner, 'deserialise', lambda *_: (None, engine))

    def no_graph(*_):
        raise EngineError('no driver')

    monkeypatch.setattr(tensorrt_runner, 'CudaGraph', no_graph)
    return tensorrt_runner.PlanRunner(Library('copies', module), b'', PROFILES, device)


@pytest.mark.parametrize('dtype', [np.float32, np.uint8])
def test_a_read_only_view_of_a_buffer_that_changes_is_sent_each_time(cuda, device, monkeypatch,
                                                                     dtype):
    """A ROS image is such a view: the next frame may come in the same memory."""
    runner = runner_of(cuda, device, monkeypatch, dtype)
    buffer = np.zeros(SHAPE, dtype)
    for number in range(3):
        buffer[...] = number
        view = buffer[:]
        view.setflags(write=False)
        got, = device.to_host([runner.run({'x': view})['y']])
        np.testing.assert_array_equal(got, number)


def test_a_constant_is_sent_once(cuda, device, monkeypatch):
    runner = runner_of(cuda, device, monkeypatch, np.float32)
    constant = read_only(np.ones(SHAPE, np.float32))
    for _ in range(3):
        got, = device.to_host([runner.run({'x': constant})['y']])
        np.testing.assert_array_equal(got, 1)
    assert cuda.sent == 1


def test_a_device_that_could_not_be_opened_is_opened_at_the_next_try(cuda):
    device = tensorrt_runner.Device()
    cuda.init_error = RuntimeError('out of memory')
    with pytest.raises(RuntimeError):
        device.open()
    assert cuda.contexts[0].calls == ['push', 'pop', 'detach']
    cuda.init_error = None
    device.open()
    device.open()
    assert device.stream is not None
    device.close()
    assert device.stream is not None, 'the first user still has it'
    device.close()
    assert cuda.contexts[1].calls == ['push', 'pop', 'detach']
