# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph in half precision, for engines that take the precision from the graph.

The rules are those of torch's autocast, which vision transformers are known to survive: products
with weights run in half precision, and so does what merely passes their results on; norms,
softmax, reductions and sums along the residual stream stay in float32, and so does everything
before the first weight (resizing). Inputs, outputs and the stored weights keep their types: a
weight is cast where it is used, which every engine folds when it loads the graph.
"""

import onnx_ir as ir

# Products, which tensor cores run; only where a weight has had a part in an input.
_PRODUCTS = frozenset({'Conv', 'ConvTranspose', 'Einsum', 'Gemm', 'MatMul'})
# Operators that take the precision of their inputs, the wider one where these differ.
_FOLLOWERS = frozenset({
    'Add', 'AveragePool', 'Concat', 'DepthToSpace', 'Expand', 'Flatten', 'Gather', 'Gelu',
    'GlobalAveragePool', 'HardSigmoid', 'HardSwish', 'Identity', 'LeakyRelu', 'Max', 'MaxPool',
    'Min', 'Mul', 'Neg', 'Pad', 'Relu', 'Reshape', 'Sigmoid', 'Slice', 'SpaceToDepth', 'Split',
    'Squeeze', 'Sub', 'Tanh', 'Tile', 'Transpose', 'Unsqueeze', 'Where'})
# A bias of a layer: it follows the layer. Larger parameters, such as position embeddings, do not.
_MAX_BIAS_RANK = 1


class _Half:
    """The conversion of one graph, node by node in the order of execution."""

    def __init__(self, graph: ir.Graph, weights: frozenset[str]) -> None:
        self._graph = graph
        # Values that a weight had a part in.
        self._learned = {value for value in graph.initializers.values() if value.name in weights}
        # Values that depend on an input of the graph; the others are constants.
        self._flowing = set(graph.inputs)
        self._half: set[ir.Value] = set()
        self._casts: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        """Convert the graph in place."""
        for node in list(self._graph):
            floats = [value for value in node.inputs if value is not None and _is_float(value)]
            is_half = self._runs_in_half(node, floats)
            for index, value in enumerate(node.inputs):
                if value in floats and (value in self._half) != is_half:
                    node.replace_input_with(index, self._cast(value, node))
            if any(value in self._learned for value in node.inputs):
                self._learned |= set(node.outputs)
            if any(value in self._flowing for value in node.inputs):
                self._flowing |= set(node.outputs)
            if is_half:
                for value in node.outputs:
                    if _is_float(value):
                        # A type of its own: values may share one.
                        value.type = ir.TensorType(ir.DataType.FLOAT16)
                        self._half.add(value)
        self._restore_outputs()

    def _runs_in_half(self, node: ir.Node, floats: list[ir.Value]) -> bool:
        if not any(value in self._flowing for value in floats):
            return False
        if node.op_type in _PRODUCTS:
            return any(value in self._learned for value in node.inputs)
        return node.op_type in _FOLLOWERS and all(
            value in self._half or _is_bias(value) for value in floats)

    def _cast(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """Return the value in the other precision, made once."""
        producer = value.producer()
        if producer is not None and producer.op_type == 'Cast' and value not in self._half:
            (source,) = producer.inputs
            if source is not None and source.dtype == ir.DataType.FLOAT16:
                return source  # a weight that is stored in half precision
        if value not in self._casts:
            target = ir.DataType.FLOAT if value in self._half else ir.DataType.FLOAT16
            cast = ir.node('Cast', [value], {'to': int(target)})
            result = cast.outputs[0]
            result.name, result.shape = f'{value.name}.{target.name.lower()}', value.shape
            result.type = ir.TensorType(target)
            # The first node that asks comes before all others that do.
            self._graph.insert_before(node, cast)
            self._casts[value] = result
            for group in (self._learned, self._flowing):
                if value in group:
                    group.add(result)
            if target == ir.DataType.FLOAT16:
                self._half.add(result)
        return self._casts[value]

    def _restore_outputs(self) -> None:
        """Give the graph's outputs their own type back, under their own names."""
        for index, value in enumerate(self._graph.outputs):
            if value not in self._half:
                continue
            name, value.name = value.name, f'{value.name}.half'
            cast = ir.node('Cast', [value], {'to': int(ir.DataType.FLOAT)})
            result = cast.outputs[0]
            result.name, result.shape = name, value.shape
            result.type = ir.TensorType(ir.DataType.FLOAT)
            self._graph.append(cast)
            self._graph.outputs[index] = result


def convert_to_half(model: ir.Model, weights: frozenset[str]) -> None:
    """Convert a graph to half precision in place; inputs and outputs stay float32.

    Args:
        model: with the type of every value.
        weights: names of the initialisers that were learned.
    """
    _Half(model.graph, weights).run()


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _is_bias(value: ir.Value) -> bool:
    shape = value.const_value.shape if value.const_value is not None else None
    return value.is_initializer() and shape is not None and len(shape) <= _MAX_BIAS_RANK
