# SPDX-License-Identifier: Apache-2.0
"""Land-cover classes of the procedural world.

Ids 1 to 9 are those of the hand-labelled aerial frames, so that one confusion matrix serves both.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

UNKNOWN: Final = 0
BUILDING: Final = 1
TREE: Final = 2
WATER: Final = 3
VEHICLE: Final = 4
ROAD: Final = 5
GRASS: Final = 6
SOIL: Final = 7
PAVED: Final = 8
STRUCTURE: Final = 9
PERSON: Final = 10
FIELD: Final = 11

CLASSES: Final[Mapping[int, str]] = MappingProxyType({
    BUILDING: 'building',
    TREE: 'tree',
    WATER: 'water',
    VEHICLE: 'vehicle',
    ROAD: 'road',
    GRASS: 'grass',
    SOIL: 'soil',
    PAVED: 'paved',
    STRUCTURE: 'structure',
    PERSON: 'person',
    FIELD: 'field',
})
"""Class id to name; 0 (unknown) never occurs in a generated world."""

SAFE: Final = frozenset({GRASS, SOIL, PAVED, FIELD})
"""Classes on which a touchdown counts as safe."""
