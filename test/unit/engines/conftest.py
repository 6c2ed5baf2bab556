# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX's builder, which needs no GPU, and a small bundle to build."""

from types import SimpleNamespace

import onnx
import pytest
import tensorrt_rtx_bindings as trt

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.tensorrt_builder import (
    TENSORRT_RTX,
    load_library,
    make_logger,
    network_flags,
    parse_graph,
)


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
    def parse(graph):
        network = builder.builder.create_network(network_flags(rtx))
        parse_graph(rtx, network, builder.logger, graph)
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
