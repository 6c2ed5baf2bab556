# SPDX-License-Identifier: Apache-2.0
"""A tool's YAML file as a checked, frozen dataclass."""

import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from blabberseg_ros.errors import ParameterError

Settings = TypeVar('Settings')


def read_settings(kind: type[Settings], path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read a YAML file into a dataclass; what the file leaves out keeps its default.

    Args:
        kind: frozen dataclass; its field types decide what is accepted, its `__post_init__`
            refuses values out of bounds.
        path: of the file. Relative paths inside count from the working directory.
        overrides: texts `key=value` that replace what the file says; values are YAML.

    Raises:
        ParameterError: the file cannot be read, a key is unknown or missing, a value is wrong.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
        changes = {key: yaml.safe_load(value) for key, value in map(_split, overrides)}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f'the configuration {path} cannot be read: {error}') from error
    if not isinstance(content, dict):
        raise ParameterError(f'{path} holds no mapping of keys to values')
    return from_mapping(kind, {**content, **changes}, str(path))


def from_mapping(kind: type[Settings], content: dict[str, Any], where: str) -> Settings:
    """Build the dataclass from a mapping.

    Args:
        kind: see `read_settings`.
        content: keys to values.
        where: what to call the mapping in a message.

    Raises:
        ParameterError: a key is unknown or missing, or a value is wrong.
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(map(str, content)) - set(known))
    if unknown:
        raise ParameterError(f'{where}: {", ".join(unknown)} is not understood; the keys are '
                             f'{", ".join(known)}')
    missing = [name for name, item in known.items() if name not in content
               and item.default is MISSING and item.default_factory is MISSING]
    if missing:
        raise ParameterError(f'{where}: {", ".join(missing)} is missing; give it in the file or '
                             f'as --set {missing[0]}=VALUE')
    hints = typing.get_type_hints(kind)
    return kind(**{name: _converted(value, hints[name], f'{where}, {name}')
                   for name, value in content.items()})


def as_mapping(settings: Any) -> dict[str, Any]:
    """Return a dataclass as plain values that YAML and JSON can hold."""
    return {name: _plain(value) for name, value in asdict(settings).items()}


def require(condition: bool, message: str) -> None:
    """Refuse a value.

    Raises:
        ParameterError: the condition does not hold.
    """
    if not condition:
        raise ParameterError(message)


def require_folder(path: Path, what: str) -> None:
    """Refuse a folder that is not there.

    Raises:
        ParameterError: it is absent or no folder.
    """
    require(path.is_dir(), f'{what} {path} is not a folder; correct the path in the configuration')


def require_writable(folder: Path) -> None:
    """Make the folder and refuse it if nothing can be written there.

    Raises:
        ParameterError: it cannot be made or written to.
    """
    probe = folder / '.writable'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ParameterError(f'nothing can be written to {folder}: {error}') from error


def _split(text: str) -> tuple[str, str]:
    key, sign, value = text.partition('=')
    require(bool(sign and key), f'{text!r} is no setting; write --set KEY=VALUE')
    return key.strip(), value


def _converted(value: Any, wanted: Any, where: str) -> Any:
    """Return the value as the wanted type, or refuse it."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        wanted, = (item for item in arguments if item is not type(None))
        return _converted(value, wanted, where)
    if origin is Literal:
        require(value in arguments,
                f'{where} is {value!r}; it must be one of {", ".join(map(str, arguments))}')
        return value
    if origin is tuple:
        require(isinstance(value, list | tuple), f'{where} is {value!r}; it must be a list')
        kinds = ((arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments)
        require(len(kinds) == len(value), f'{where} needs {len(kinds)} values and has '
                                          f'{len(value)}')
        return tuple(_converted(item, kind, where)
                     for item, kind in zip(value, kinds, strict=True))
    return _scalar(value, wanted, where)


def _scalar(value: Any, wanted: type, where: str) -> Any:
    if wanted is Path and isinstance(value, str):
        return Path(value).expanduser()
    if wanted is float and isinstance(value, str | int) and not isinstance(value, bool):
        # YAML 1.1 takes 1e-3, without a point, for a text.
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise ParameterError(f'{where} is {value!r}; it must be of the type {wanted.__name__}')


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
