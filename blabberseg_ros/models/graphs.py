# SPDX-License-Identifier: Apache-2.0
"""Torch modules to ONNX graphs whose weights stay in one safetensors file.

A bundle stores each weight once. Its graphs name a byte range of `weights.safetensors` as ONNX
external data, which ONNX Runtime and TensorRT both read.
"""

import builtins
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import FLOAT, opset18
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from blabberseg_ros.atomic import write_atomically
from blabberseg_ros.models.half_graphs import convert_to_half
from blabberseg_ros.models.int8_graphs import convert_to_int8

OPSET = 18
# Its operators are generic over tensor types, which says nothing about symbolic values.
op: Any = opset18
# Width of safetensors' header length, which precedes the header (format specification).
_HEADER_LENGTH_BYTES = 8
# How names of the network's weights begin in a graph.
_NETWORK = 'model.'
_DTYPES = {'F32': ir.DataType.FLOAT, 'F16': ir.DataType.FLOAT16}


@dataclass(frozen=True)
class Port:
    """A named input or output of a graph.

    Attributes:
        name: of the tensor.
        dynamic: axis to name, for each axis whose length is free.
    """

    name: str
    dynamic: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class StoredTensor:
    """Where a weight lies in a safetensors file: byte range, type and shape."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    offset: int
    length: int


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file: name to byte range."""
    with open(path, 'rb') as stream:
        header_length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), 'little')
        header = json.loads(stream.read(header_length))
    header.pop('__metadata__', None)
    start = _HEADER_LENGTH_BYTES + header_length
    return {
        name: StoredTensor(_DTYPES[entry['dtype']], tuple(entry['shape']),
                           start + entry['data_offsets'][0],
                           entry['data_offsets'][1] - entry['data_offsets'][0])
        for name, entry in header.items()}


def export_graph(module: nn.Module, example: tuple[Tensor, ...], path: Path, *,
                 inputs: tuple[Port, ...], outputs: tuple[str, ...], weights: Path,
                 half: Path | None = None, int8: Path | None = None) -> None:
    """Export a module to an ONNX file next to the bundle's weights.

    Args:
        module: in evaluation mode; parameters that it takes from the bundle's network lie under
            its attribute `model`, everything else is stored in the graph.
        example: one tensor for each input; dynamic axes longer than 1.
        path: of the graph, in the folder of `weights`.
        inputs: names and dynamic axes of the inputs, in order.
        outputs: names of the outputs, in order.
        weights: the bundle's safetensors file, already written.
        half: of the same graph in half precision, if that is wanted.
        int8: of the same graph on 8-bit integers, if that is wanted.

    Raises:
        BundleError: no part of the graph can run on integers.
    """
    dynamic = tuple({axis: torch.export.Dim.DYNAMIC for axis, _ in port.dynamic}
                    for port in inputs)
    with torch.no_grad(), warnings.catch_warnings():
        # Notes of the exporter on its own internals, nothing that a user could act on.
        warnings.simplefilter('ignore')
        program = torch.onnx.export(
            module, example, dynamo=True, optimize=False, verbose=False, opset_version=OPSET,
            input_names=[port.name for port in inputs], output_names=list(outputs),
            dynamic_shapes=dynamic, custom_translation_table=_TRANSLATIONS)
    if program is None or program.exported_program is None:
        raise TypeError('torch.onnx.export returned no program')
    model = program.model
    _name_values(model.graph, steady_names(program.exported_program.graph))
    optimize_ir(model, should_fold=_should_fold)
    learned = _use_stored_weights(model.graph, stored_tensors(weights), weights)
    _share_constants(model.graph)
    _name_axes(model.graph, inputs)
    # First, since it may be refused.
    if int8 is not None:
        copy = model.clone()
        convert_to_int8(copy, learned)
        _save(copy, int8)
    if half is not None:
        copy = model.clone()
        convert_to_half(copy, learned)
        _save(copy, half)
    _save(model, path)


def steady_names(graph: torch.fx.Graph) -> dict[str, str]:
    """Return a name for each step of an exported program, by its own name.

    Steps that give tensors are numbered by kind: `add`, `add_1`. torch numbers arithmetic of
    shapes along with them, and how much of that there is depends on its version and on whether a
    program was made for ONNX; with these names the nodes of both can be compared.
    """
    # Names that are taken, as for torch: those of inputs (one is called `add`) and of Python.
    taken = [node.name for node in graph.nodes if node.op == 'placeholder']
    counts = Counter([*taken, *dir(builtins)])
    names = {}
    for node in graph.nodes:
        if node.op == 'call_function':
            is_tensor = isinstance(node.meta.get('val'), torch.Tensor)
            kind = re.sub(r'_\d+$', '', node.name) if is_tensor else 'shape'
            names[node.name] = f'{kind}_{counts[kind]}' if counts[kind] else kind
            counts[kind] += 1
    return names


def _name_values(graph: ir.Graph, names: Mapping[str, str]) -> None:
    for node in graph:
        for value in node.outputs:
            if value.name and not value.is_graph_output():
                value.name = names.get(value.name, value.name)


def _save(model: ir.Model, path: Path) -> None:
    _strip(model)
    write_atomically(path, lambda temporary: ir.save(model, temporary))


def _should_fold(node: ir.Node) -> bool | None:
    """Keep what is computed of a weight alone as nodes: folded, it would be a second copy of it.

    Every engine folds it when it loads the graph.
    """
    for source in node.inputs:
        if source is not None and source.is_initializer() and (
                node.op_type == 'Transpose' or (source.name or '').startswith(_NETWORK)):
            return False
    return None


def _linear(x: FLOAT, weight: FLOAT, bias: FLOAT | None = None) -> FLOAT:
    """Write a linear layer as MatMul with the weight as torch stores it."""
    product = op.MatMul(x, op.Transpose(weight, perm=[1, 0]))
    return product if bias is None else op.Add(product, bias)


def _attention(query: FLOAT, key: FLOAT, value: FLOAT, attn_mask: FLOAT | None = None,
               dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
               enable_gqa: bool = False) -> FLOAT:
    """Write attention in the plain form that every engine's fusion recognises.

    The exporter's own form reshapes the keys by computed shapes when the batch is dynamic.
    """
    if is_causal or dropout_p or enable_gqa:
        raise NotImplementedError('only plain attention with an additive mask is exported')
    factor = query.shape[-1] ** -0.5 if scale is None else scale  # type: ignore[index]
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=float(factor))),
                       op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _gelu(x: FLOAT, approximate: str = 'none') -> FLOAT:
    """Write the exact GELU in the order of products that engines fuse into one operator.

    ONNX Runtime leaves the exporter's own order as five passes over the tensor.
    """
    if approximate != 'none':
        raise NotImplementedError('only the exact GELU is exported')
    error = op.Erf(op.Div(x, op.Constant(value_float=math.sqrt(2))))
    return op.Mul(op.Mul(x, op.Add(error, op.Constant(value_float=1.0))),
                  op.Constant(value_float=0.5))


_TRANSLATIONS: dict[Callable, Callable] = {
    torch.ops.aten.gelu.default: _gelu,
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}


def _use_stored_weights(graph: ir.Graph, stored: dict[str, StoredTensor],
                        weights: Path) -> frozenset[str]:
    """Point the initialisers that are weights of the network into the safetensors file.

    Returns:
        Their names.
    """
    used = set()
    for name, value in list(graph.initializers.items()):
        weight = stored.get(name.removeprefix(_NETWORK))
        if weight is None or not name.startswith(_NETWORK):
            continue
        used.add(name)
        value.const_value = ir.ExternalTensor(
            weights.name, weight.offset, weight.length, weight.dtype,
            shape=ir.Shape(weight.shape), name=name, base_dir=weights.parent)
        if value.dtype is not None and value.dtype != weight.dtype:
            _cast_after_load(graph, value, stored=weight.dtype, computed=value.dtype)
    return frozenset(used)


def _share_constants(graph: ir.Graph) -> None:
    """Keep once what several layers have alike and no weights file holds, tables of places say."""
    first: dict[tuple, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, ir.ExternalTensor):
            continue
        known = first.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if known is not value:
            for node, index in list(value.uses()):
                node.replace_input_with(index, known)
            del graph.initializers[name]


def _cast_after_load(graph: ir.Graph, value: ir.Value, *, stored: ir.DataType,
                     computed: ir.DataType) -> None:
    """Let the graph compute in its own type from a weight that is stored in another.

    A table that is only looked up is cast after the lookup: fewer rows, and the table stays small
    in memory. Any other cast is constant and folded when an engine loads the graph.
    """
    value.dtype = stored
    uses = list(value.uses())
    lookups = [use.node for use in uses if use.node.op_type == 'Gather' and use.idx == 0]
    after = [node.outputs[0] for node in lookups] if len(lookups) == len(uses) else [value]
    for source in after:
        readers = list(source.uses())
        cast = ir.node('Cast', [source], {'to': int(computed)})
        result = cast.outputs[0]
        result.dtype, result.shape = computed, source.shape
        result.name = f'{source.name}.{computed.name.lower()}'
        source.dtype = stored
        for node, index in readers:
            node.replace_input_with(index, result)
        graph.insert_before(readers[0].node, cast)


def _name_axes(graph: ir.Graph, inputs: tuple[Port, ...]) -> None:
    """Replace the exporter's symbols of the dynamic axes by our names."""
    names: dict[str, str] = {}
    for value, port in zip(graph.inputs, inputs, strict=True):
        shape = ir.Shape(value.shape or ())
        for axis, name in port.dynamic:
            names[str(shape[axis])] = name
            shape[axis] = ir.SymbolicDim(name)
        value.shape = shape
    for value in graph.outputs:
        value.shape = ir.Shape(names.get(str(length), length) for length in value.shape or ())


def _strip(model: ir.Model) -> None:
    """Drop what only describes the machine that exported: source paths, inferred shapes."""
    graph = model.graph
    model.producer_name, model.producer_version = 'blabberseg_ros', None
    model.doc_string = graph.doc_string = None
    model.metadata_props.clear()
    graph.metadata_props.clear()
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in kept:
                value.shape = value.type = None
