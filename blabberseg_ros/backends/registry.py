# SPDX-License-Identifier: Apache-2.0
"""From a family's name to its back-end, imported when it is used."""

from importlib import import_module

from blabberseg_ros.backends.base import Backend
from blabberseg_ros.errors import BundleError

# A new family is its name here and its modules: the back-end in this folder, the network and the
# importer in `models`, called after it (see `models.families`).
FAMILIES = ('clipseg', 'lseg', 'fpseg', 'segformer')


def backend_class(family: str) -> type[Backend]:
    """Return the back-end of a family.

    Raises:
        BundleError: there is none of that name.
    """
    if family not in FAMILIES:
        raise BundleError(
            f'there is no back-end for the family {family!r}; this version has '
            f'{", ".join(FAMILIES)}')
    return import_module(f'blabberseg_ros.backends.{family}').BACKEND
