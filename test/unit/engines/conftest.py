# SPDX-License-Identifier: Apache-2.0
"""Engines without a GPU: TensorRT-RTX's builder, Triton's interpreter, a stand-in for pycuda."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tensorrt_rtx_bindings as trt

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines import tensorrt_runner
from blabberseg_ros.engines.tensorrt_builder import (
    TENSORRT_RTX,
    load_library,
    make_logger,
    network_flags,
    parse_graph,
)


class Cuda:
    """pycuda.driver: device memory is a dictionary of arrays by address."""

    def __init__(self):
        self.memory = {}
        self.sent = 0
        self.contexts = []
        self.pagelocked_empty = np.empty
        self.Event = lambda: SimpleNamespace(record=lambda stream: None, synchronize=lambda: None)
        self.Error = RuntimeError
        self.Device = lambda index: SimpleNamespace(retain_primary_context=self.retain)
        self.init_error = None

    def init(self):
        pass

    def Stream(self):
        if self.init_error is not None:
            raise self.init_error
        return SimpleNamespace(handle=7, synchronize=lambda: None)

    def retain(self):
        context = SimpleNamespace(calls=[])
        for name in ('push', 'pop', 'detach'):
            setattr(context, name, lambda name=name: context.calls.append(name))
        self.contexts.append(context)
        return context

    def allocate(self, size):
        address = 1000 + len(self.memory)
        self.memory[address] = np.zeros(size, np.uint8)
        return address

    def memcpy_htod_async(self, pointer, array, stream):
        self.sent += 1
        self.memory[pointer][...] = array.view(np.uint8).ravel()

    def memcpy_dtod_async(self, target, source, size, stream):
        self.memory[target][:size] = self.memory[source][:size]

    def memcpy_dtoh_async(self, array, pointer, stream):
        array.view(np.uint8).ravel()[...] = self.memory[pointer][:array.nbytes]


@pytest.fixture
def interpret():
    """Return a function that runs code whose Triton kernels are interpreted, on the CPU.

    The interpreter has to be chosen before the kernels are imported: each run is a process.
    """
    def run(code):
        result = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, 'TRITON_INTERPRET': '1'})
        assert result.returncode == 0, result.stderr[-2000:]

    return run


@pytest.fixture(scope='session')
def rtx():
    """Return the library."""
    return load_library(TENSORRT_RTX)


@pytest.fixture(scope='module')
def bundle(random_bundle):
    """Return the small bundle, loaded."""
    return load_bundle(random_bundle)


@pytest.fixture
def builder():
    """Return the library's builder, a configuration of it, and its logger."""
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    return SimpleNamespace(logger=logger, builder=builder, config=builder.create_builder_config())


@pytest.fixture
def parsed(rtx, builder):
    """Return a function that parses a graph into a network."""
    def parse(graph, model=None):
        network = builder.builder.create_network(network_flags(rtx))
        parse_graph(rtx, network, builder.logger, graph, model)
        return network

    return parse


@pytest.fixture
def one_node(tmp_path):
    """Return a function that writes a graph of one node, named the_culprit."""
    def write(operator, dtype=onnx.TensorProto.FLOAT):
        value = [onnx.helper.make_tensor_value_info(name, dtype, ['prompts', 4]) for name in 'xy']
        node = onnx.helper.make_node(operator, ['x'], ['y'], name='the_culprit')
        graph = onnx.helper.make_graph([node], 'graph', value[:1], value[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 18)])
        path = tmp_path / f'{operator}-{dtype}.onnx'
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def cuda(monkeypatch):
    """Return what stands in for pycuda.driver."""
    cuda = Cuda()
    monkeypatch.setitem(sys.modules, 'pycuda', SimpleNamespace(driver=cuda))
    monkeypatch.setitem(sys.modules, 'pycuda.driver', cuda)
    monkeypatch.setitem(sys.modules, 'pycuda.tools', SimpleNamespace(
        DeviceMemoryPool=lambda: SimpleNamespace(allocate=cuda.allocate,
                                                 stop_holding=lambda: None)))
    return cuda


@pytest.fixture
def device(cuda):
    """Return the runner's device, open."""
    device = tensorrt_runner.Device()
    device.open()
    yield device
    device.close()
