# SPDX-License-Identifier: Apache-2.0
"""Copies of ONNX graphs, in memory, that give the values inside of them as outputs."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blabberseg_ros.errors import EngineError

# They ask for the shape of a tensor, not for what it holds.
_SHAPE_OPERATORS = ('Shape', 'Size')


@dataclass(frozen=True)
class TracedGraph:
    """A copy of a graph with more outputs.

    Attributes:
        model: serialised; its weights lie next to the graph that it was made of.
        names: of the values that are traced, in the order of computation.
    """

    model: bytes
    names: tuple[str, ...]


def every_value(path: Path) -> TracedGraph:
    """Return a copy of a graph that gives every value.

    Raises:
        EngineError: onnx is not installed.
    """
    onnx = imported('onnx')
    model = onnx.load(path, load_external_data=False)
    return _giving(model, [onnx.ValueInfoProto(name=name) for name in _names(model)])


def floating_values(path: Path) -> TracedGraph:
    """Return a copy of a graph that gives the floating values that follow from its inputs.

    That is what TensorRT can give. Integers and booleans may be shapes, which it keeps on the
    host; what follows from weights or shapes alone it computes when it builds.

    Raises:
        EngineError: onnx is not installed.
    """
    onnx = imported('onnx')
    model = onnx.load(path, load_external_data=False)
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {value.name: value for value in (*graph.value_info, *graph.output)
             if value.type.tensor_type.elem_type in floating}
    follows = {port.name for port in model.graph.input}
    for node in model.graph.node:
        if node.op_type not in _SHAPE_OPERATORS and not follows.isdisjoint(node.input):
            follows.update(node.output)
    return _giving(model, [known[name] for name in _names(model)
                           if name in known and name in follows])


def imported(module: str) -> Any:
    """Import a library that traces need and engines do not.

    Raises:
        EngineError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EngineError(f'{error.name} is not installed, which --layers needs; pip install '
                          '"blabberseg_ros[cpu,torch]"') from error


def _names(model: Any) -> Iterable[str]:
    return dict.fromkeys(name for node in model.graph.node for name in node.output if name)


def _giving(model: Any, values: list[Any]) -> TracedGraph:
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(value for value in values if value.name not in present)
    return TracedGraph(model.SerializeToString(), tuple(value.name for value in values))
