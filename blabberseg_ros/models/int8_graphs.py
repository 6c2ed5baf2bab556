# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph whose products with weights run on 8-bit integers, for CPUs that are fast at them.

Activations are quantised as they come, each tensor by its own range; weights by the largest value
of each output channel. (A range for each token was tried: it costs more and is no nearer.) The
weights stay where they are: the graph quantises them from the stored ones, which an engine does
once, when it loads the graph. Everything else stays float32.

How far the answers of a model survive that depends on its weights; the parity gate decides.

A quantisation leaves NaN out, and a broken network would look sound. So each product is also
multiplied by a scale that is NaN where its input has one, or infinity.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from blabberseg_ros.errors import BundleError

_LARGEST = 127


def convert_to_int8(model: ir.Model, weights: frozenset[str]) -> None:
    """Convert a graph in place; inputs and outputs stay float32.

    Convolutions are left as they are.

    Args:
        model: whose linear layers are products with a transposed weight (see `graphs`).
        weights: names of the initialisers that were learned.

    Raises:
        BundleError: it has no product with a weight, so nothing would run on integers.
    """
    graph = model.graph
    if all(_matrix_of(node, weights) is None for node in graph):
        raise BundleError(
            'the image encoder has no linear layers, so nothing of it would run on 8-bit '
            'integers (convolutions are not converted, and this one has nothing else); export '
            'without int8 and use the engine onnxruntime-cpu')
    quantised: dict[ir.Value, tuple[ir.Value, ...]] = {}
    for node in list(graph):
        matrix = _matrix_of(node, weights)
        x, weight = node.inputs[:2] if matrix is not None else (None, None)
        if matrix is None or x is None or weight is None:
            continue
        if x not in quantised:
            quantised[x] = _quantise(graph, node, x)
        if weight not in quantised:
            scale, zero = _scale_of(graph, matrix)
            (stored,) = _insert(
                graph, node, 'weight', 'QuantizeLinear', [weight, scale, zero], 1, axis=1)
            quantised[weight] = (stored, scale, zero)
        values, x_scale, x_zero = quantised[x]
        stored, scale, zero = quantised[weight]
        (total,) = _insert(
            graph, node, 'total', 'MatMulInteger', [values, stored, x_zero, zero], 1)
        (single,) = _insert(graph, node, 'single', 'Cast', [total], 1, to=int(ir.DataType.FLOAT))
        (unit,) = _insert(graph, node, 'unit', 'Mul', [x_scale, scale], 1)
        (result,) = _insert(graph, node, 'result', 'Mul', [single, unit], 1)
        old = node.outputs[0]
        for index, output in enumerate(graph.outputs):
            if output is old:
                name, result.type, result.shape = old.name, old.type, old.shape
                old.name, result.name = f'{name}.float', name
                graph.outputs[index] = result
        ir.convenience.replace_all_uses_with(old, result)
        graph.remove(node, safe=True)


def _quantise(graph: ir.Graph, node: ir.Node, x: ir.Value) -> tuple[ir.Value, ...]:
    """Return a tensor as 8-bit integers, their scale, NaN if it is not finite, and their zero."""
    values, scale, zero = _insert(graph, node, 'x', 'DynamicQuantizeLinear', [x], 3)
    (total,) = _insert(graph, node, 'sum', 'ReduceSum', [x], 1, keepdims=0)
    (nothing,) = _insert(
        graph, node, 'nothing', 'Mul', [total, _constant(graph, 'int8.zero', np.float32(0))], 1)
    (checked,) = _insert(graph, node, 'checked', 'Add', [scale, nothing], 1)
    return values, checked, zero


def _matrix_of(node: ir.Node, weights: frozenset[str]) -> ir.Value | None:
    """Return the stored weight of a linear layer's product; None for other nodes."""
    if node.op_type != 'MatMul' or node.inputs[1] is None:
        return None
    value: ir.Value | None = node.inputs[1]
    while value is not None and (producer := value.producer()) is not None:
        if producer.op_type not in ('Cast', 'Transpose'):
            return None
        value = producer.inputs[0]
    return value if value is not None and value.name in weights else None


def _scale_of(graph: ir.Graph, matrix: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the scale and zero point of each output channel of a weight [out, in]."""
    if matrix.const_value is None:
        raise ValueError(f'the weight {matrix.name} has no values')
    largest = np.abs(matrix.const_value.numpy().astype(np.float32)).max(axis=1)
    scale = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    return (_constant(graph, f'{matrix.name}.scale', scale),
            _constant(graph, f'{matrix.name}.zero', np.zeros(len(scale), np.int8)))


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    return graph.initializers.setdefault(name, ir.val(name, const_value=ir.tensor(array)))


def _insert(graph: ir.Graph, before: ir.Node, name: str, operator: str,
            inputs: Sequence[ir.Value], outputs: int, **attributes: int) -> tuple[ir.Value, ...]:
    node = ir.node(operator, inputs, attributes, num_outputs=outputs)
    graph.insert_before(before, node)
    for index, value in enumerate(node.outputs):
        value.name = f'{before.name}.{name}.{index}'
    return tuple(node.outputs)
