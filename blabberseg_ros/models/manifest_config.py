# SPDX-License-Identifier: Apache-2.0
"""Sizes of a network as plain values in a manifest, and back."""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from blabberseg_ros.errors import BundleError

Config = TypeVar('Config', bound='ManifestConfig')


@dataclass(frozen=True)
class ManifestConfig:
    """What the sizes of every family can do; a family adds its fields.

    Attributes:
        network: name of the family in messages.
    """

    network: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        return {key: plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
        """Read the values of a manifest.

        Raises:
            BundleError: a value is missing, unknown or of no use.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise BundleError(
                f'the architecture in the manifest is not that of {cls.network}: missing '
                f'{sorted(names - set(values)) or "nothing"}, unknown '
                f'{sorted(set(values) - names) or "nothing"}. Import the bundle again')
        try:
            return cls(**cls.typed(values))
        except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
            raise BundleError(f'the architecture in the manifest is damaged ({error}); '
                              'import the bundle again') from error

    @classmethod
    def typed(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the fields' values from plain ones; families with nested sizes add to it."""
        return tuples(values)


def plain(value: Any) -> Any:
    """Return lists for tuples, in nested mappings too."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Return tuples for the lists of a mapping."""
    return {key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()}
