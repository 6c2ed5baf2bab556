# SPDX-License-Identifier: Apache-2.0
"""Parameters of a node as one frozen dataclass: values, bounds, descriptions, README table."""

import math
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from blabberseg_ros.errors import ParameterError

# When a parameter may change: never after the start, only while a lifecycle node is unconfigured,
# or any time.
AT_START, UNCONFIGURED, ALWAYS = 'at start', 'unconfigured', 'always'

T = TypeVar('T')


@dataclass(frozen=True)
class Bounds:
    """What one parameter may be.

    Attributes:
        description: one or two sentences, shown by `ros2 param describe` and in the README.
        minimum: smallest number, or None.
        maximum: largest number, or None.
        choices: the only texts taken; empty for any.
        changeable: `AT_START`, `UNCONFIGURED` or `ALWAYS`.
    """

    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    changeable: str = AT_START

    def __str__(self) -> str:
        """Return the bounds as a reader wants them."""
        if self.choices:
            return ', '.join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            return f'{self.minimum:g} to {self.maximum:g}'
        return ''


def parameter(default: Any, description: str, **bounds: Any) -> Any:
    """Describe one parameter: the field of a dataclass that a `ParameterTable` reads.

    Args:
        default: a bool, int, float, str or tuple of str.
        description: see `Bounds`.
        **bounds: other fields of `Bounds`.
    """
    return field(default=default, metadata={'bounds': Bounds(description, **bounds)})


class ParameterTable(Generic[T]):
    """Declare, check and document the parameters that a frozen dataclass describes.

    Args:
        values: the dataclass; each field is made with `parameter`.
    """

    def __init__(self, values: type[T]) -> None:
        """Read the table from the fields."""
        self._type = values
        self.bounds: dict[str, Bounds] = {
            item.name: item.metadata['bounds'] for item in fields(values)}  # type: ignore
        self.defaults: dict[str, Any] = {
            item.name: item.default for item in fields(values)}  # type: ignore

    def declare(self, node: Node, **own: Any) -> T:
        """Declare all parameters on a node and return their values at the start.

        Args:
            node: that gets them.
            **own: defaults of this node, where they differ from the table's.

        Raises:
            ParameterError: a value from the command line or a file is refused.
        """
        for name, default in {**self.defaults, **own}.items():
            try:
                node.declare_parameter(
                    name, list(default) if isinstance(default, tuple) else default,
                    self._descriptor(name))
            except InvalidParameterValueException as error:
                raise ParameterError(str(error)) from error
        values = {name: node.get_parameter(name).value for name in self.defaults}
        return self.changed(self._type(), values)

    def apply(self, current: T, requested: Iterable[Parameter],
              unconfigured: bool = True) -> tuple[T, SetParametersResult]:
        """Check a request to set parameters, all together.

        Args:
            current: the values so far.
            requested: what shall change; foreign parameters are left to others.
            unconfigured: whether the node is in its unconfigured state.

        Returns:
            The new values, or the current ones with the reason why the request is refused.
        """
        changes = {item.name: item.value for item in requested if item.name in self.bounds}
        try:
            for name in changes:
                if self.bounds[name].changeable == UNCONFIGURED and not unconfigured:
                    raise ParameterError(
                        f'{name} takes effect when the node is configured; clean it up first '
                        '(`ros2 lifecycle set NODE cleanup`), then set it')
            return self.changed(current, changes), SetParametersResult(successful=True)
        except ParameterError as error:
            return current, SetParametersResult(successful=False, reason=str(error))

    def changed(self, current: T, changes: Mapping[str, Any]) -> T:
        """Return a copy with some values replaced.

        Args:
            current: the values so far.
            changes: name to value as rclpy gives it; an integer is taken for a float.

        Raises:
            ParameterError: a value has the wrong type or is out of its bounds; it names the
                parameter, the value and the bounds.
        """
        return replace(  # type: ignore[type-var]
            current, **{name: self._checked(name, value) for name, value in changes.items()})

    def markdown(self) -> str:
        """Return the README's table."""
        rows = ['| parameter | type | default | bounds | changeable | meaning |',
                '|---|---|---|---|---|---|']
        for name, bounds in self.bounds.items():
            default = self.defaults[name]
            shown = (f'{len(default)} prompts' if isinstance(default, tuple)
                     else f'`{_yaml(default)}`')
            description = bounds.description.replace('|', r'\|')
            rows.append(f'| `{name}` | {_type_name(default)} | {shown} | {bounds} | '
                        f'{bounds.changeable} | {description} |')
        return '\n'.join(rows) + '\n'

    def yaml(self, node_name: str, **own: Any) -> str:
        """Return a parameter file with every parameter at its default, explained.

        Args:
            node_name: of the node.
            **own: values that differ from the defaults.
        """
        lines = ['# SPDX-License-Identifier: Apache-2.0', f'{node_name}:', '  ros__parameters:']
        for name, bounds in self.bounds.items():
            default = own.get(name, self.defaults[name])
            explanation = f'{bounds.description} {bounds}.' if str(bounds) else bounds.description
            lines += [f'    # {line}' for line in textwrap.wrap(explanation, 93)]
            if isinstance(default, tuple):
                lines += [f'    {name}:', *(f'      - {_yaml(text)}' for text in default)]
            else:
                lines.append(f'    {name}: {_yaml(default)}')
        return '\n'.join(lines) + '\n'

    def _descriptor(self, name: str) -> ParameterDescriptor:
        bounds, default = self.bounds[name], self.defaults[name]
        # Types are checked here and not by rclpy, which would refuse `5` for a float, and whose
        # refusals at the start are tracebacks.
        descriptor = ParameterDescriptor(
            name=name, description=bounds.description, dynamic_typing=True,
            read_only=bounds.changeable == AT_START,
            additional_constraints=str(bounds) if bounds.choices else '')
        if bounds.minimum is None or bounds.maximum is None:
            return descriptor
        if isinstance(default, int):
            descriptor.integer_range = [IntegerRange(
                from_value=int(bounds.minimum), to_value=int(bounds.maximum), step=0)]
        else:
            descriptor.floating_point_range = [FloatingPointRange(
                from_value=bounds.minimum, to_value=bounds.maximum, step=0.0)]
        return descriptor

    def _checked(self, name: str, value: Any) -> Any:
        """Return a value in the type of its parameter, or refuse it."""
        bounds, default = self.bounds[name], self.defaults[name]
        if type(default) is float and type(value) is int:
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, (list, tuple)) and all(
                isinstance(text, str) for text in value):
            value = tuple(value)
        if type(value) is not type(default):
            raise ParameterError(
                f'{name} must be a {_type_name(default)}; {value!r} was given')
        if bounds.choices and value not in bounds.choices:
            raise ParameterError(f'{name} is {value!r}; it must be one of {bounds}')
        if bounds.minimum is not None and bounds.maximum is not None and not (
                math.isfinite(value) and bounds.minimum <= value <= bounds.maximum):
            raise ParameterError(f'{name} is {value}; it must be {bounds}')
        return value


def _type_name(default: Any) -> str:
    return {bool: 'bool', int: 'int', float: 'float', str: 'string',
            tuple: 'string[]'}[type(default)]


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)
