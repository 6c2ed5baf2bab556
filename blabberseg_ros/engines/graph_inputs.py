# SPDX-License-Identifier: Apache-2.0
"""Names, types and axes of an ONNX graph's inputs, read without the onnx package.

A robot that runs plans needs neither onnx nor ONNX Runtime, but a plan is found by the shapes
that it was built for. The few fields that matter are walked in the protobuf wire format; the
weights lie outside the graph, so the file is small.
Source: onnx.proto3, protobuf encoding specification.
"""

from collections.abc import Iterator
from pathlib import Path

from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.errors import EngineError

# Field numbers of onnx.proto3, by message.
_MODEL_GRAPH = 7
_GRAPH_INPUT, _VALUE_NAME, _VALUE_TYPE = 11, 1, 2
_TYPE_TENSOR, _TENSOR_DTYPE, _TENSOR_SHAPE = 1, 1, 2
_SHAPE_DIM, _DIM_LENGTH, _DIM_NAME = 1, 1, 2
_DTYPES = {1: 'float32', 2: 'uint8', 3: 'int8', 6: 'int32', 7: 'int64', 9: 'bool', 10: 'float16'}
# Protobuf wire types.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def graph_inputs(path: Path) -> tuple[TensorSpec, ...]:
    """Return the inputs of an ONNX file, in order.

    Raises:
        EngineError: the file cannot be read or is not an ONNX model.
    """
    try:
        graph = _only(path.read_bytes(), _MODEL_GRAPH)
        inputs = tuple(_spec(value) for value in _all(graph, _GRAPH_INPUT))
    except OSError as error:
        raise EngineError(f'the graph {path} cannot be read: {error}') from error
    except (IndexError, KeyError, ValueError, TypeError, StopIteration) as error:
        raise EngineError(f'{path} is not an ONNX graph with tensors as inputs; import the '
                          'bundle again') from error
    if not inputs:
        raise EngineError(f'{path} is not an ONNX graph with inputs; import the bundle again')
    return inputs


def _spec(value: bytes) -> TensorSpec:
    tensor = _only(_only(value, _VALUE_TYPE), _TYPE_TENSOR)
    dtype = next(int(number) for field, number in _fields(tensor) if field == _TENSOR_DTYPE)
    dims = _all(_only(tensor, _TENSOR_SHAPE), _SHAPE_DIM)
    return TensorSpec(_only(value, _VALUE_NAME).decode(), _DTYPES[dtype],
                      tuple(_length(dim) for dim in dims))


def _length(dim: bytes) -> int | str:
    for field, value in _fields(dim):
        if field == _DIM_LENGTH:
            return int(value)
        if field == _DIM_NAME:
            return bytes(value).decode()
    raise ValueError('an axis has neither a length nor a name')


def _only(message: bytes, field: int) -> bytes:
    return next(iter(_all(message, field)))


def _all(message: bytes, field: int) -> list[bytes]:
    return [value for number, value in _fields(message)
            if number == field and isinstance(value, bytes)]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field number and value: an integer, or the bytes of a text or an inner message."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            number, position = _varint(message, position)
            yield field, number
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f'wire type {wire_type}')
        if position + length > len(message):
            raise ValueError('the message ends early')
        yield field, message[position:position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = message[position]
        position += 1
        result |= (byte & 0x7f) << shift
        shift += 7
        if byte < 0x80:
            return result, position
