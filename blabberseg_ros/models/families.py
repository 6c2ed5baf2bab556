# SPDX-License-Identifier: Apache-2.0
"""From a family's name to the parts of its network, by the names of their modules.

The family F has `models.F_config`, `models.F` (the network), `models.F_stages`, `models.load_F`,
`models.import_F` and `models.random_F`; its back-end is `backends.F`.
"""

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from blabberseg_ros.bundle import Bundle

if TYPE_CHECKING:
    from torch import nn

    from blabberseg_ros.models.stages import Stage


class NetworkConfig(Protocol):
    """What the configurations of all families have in common; they are frozen dataclasses.

    Attributes:
        family: name of the family.
        title: how the family is called in a sentence.
        input_size_px: side of the square that images are resized to.
        variant: name of the published variant that the sizes belong to.
    """

    @property
    def family(self) -> str: ...  # noqa: D102

    @property
    def title(self) -> str: ...  # noqa: D102

    @property
    def input_size_px(self) -> int: ...  # noqa: D102

    @property
    def variant(self) -> str: ...  # noqa: D102

    def to_dict(self) -> dict[str, Any]: ...  # noqa: D102


def network_config(model: 'nn.Module') -> NetworkConfig:
    """Return the configuration of a network."""
    return model.config  # type: ignore[return-value]


def load_network(bundle: Bundle) -> 'nn.Module':
    """Return the network of a bundle in evaluation mode, float32, on the CPU.

    Raises:
        BundleError: the weights are not those of the architecture in the manifest.
    """
    family = bundle.manifest.family
    return getattr(_module(f'load_{family}'), f'load_{family}')(bundle)


def stages_of(model: 'nn.Module') -> Mapping[str, 'Stage']:
    """Return the stages of a network by name, in the order of their use."""
    return _module(f'{network_config(model).family}_stages').stages(model)


def importer(family: str) -> ModuleType:
    """Return the module that reads a family's published checkpoints (see `models.importing`)."""
    return _module(f'import_{family}')


def random_network(family: str, seed: int = 0) -> 'nn.Module':
    """Return the family's small network with random weights, for tests."""
    module = _module(f'random_{family}')
    return getattr(module, f'random_{family}')(module.SMALL, seed)


def _module(name: str) -> ModuleType:
    return import_module(f'blabberseg_ros.models.{name}')
