# SPDX-License-Identifier: Apache-2.0
"""Kinds of places: what blocks hold, how roads run, which roofs, trees and ground colours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from blabberseg_ros.sim import classes, land_green, land_town
from blabberseg_ros.sim.canvas import Points, Wave
from blabberseg_ros.sim.layout import Site
from blabberseg_ros.sim.palette import Recipe

Use = Callable[[Site, Points], None]

USES: Mapping[str, Use] = MappingProxyType({
    use.__name__: use for use in (
        land_town.houses, land_town.terraces, land_town.flats, land_town.perimeter,
        land_town.works, land_town.car_park, land_town.plaza, land_town.school,
        land_green.field, land_green.meadow, land_green.forest, land_green.orchard,
        land_green.park, land_green.promenade, land_green.allotments, land_green.waste,
        land_green.sports, land_green.lake, land_green.farmyard)
})
"""Land uses by name; each fills one block."""


@dataclass(frozen=True)
class Family:
    """A kind of place.

    Attributes:
        uses: Weights of land uses.
        ranks: Corridor kinds by depth of the cut, see `roads.cut_blocks`.
        block_m: Least and greatest side of a block.
        skew_rad: Spread of the angle between cuts.
        bend_m: Least and greatest amplitude of the bend of the whole layout.
        roofs: Weights of roof coverings.
        species: Weights of trees.
        recipes: Materials that differ from the common ones.
        sea: Whether one side is a harbour.
    """

    uses: Mapping[str, float]
    ranks: tuple[tuple[str, ...], ...]
    block_m: tuple[float, float]
    skew_rad: float
    bend_m: tuple[float, float]
    roofs: Mapping[str, float]
    species: Mapping[str, float] = field(default_factory=lambda: {
        'broadleaf': .86, 'conifer': .14})
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    sea: bool = False


_COMMON_ROOFS = {'tiles': 1.0, 'brown_tiles': 1.0, 'slate': .9, 'zinc': .35, 'bitumen': .25,
                 'sheet': .2}

_TRAINING: dict[str, Family] = {
    'suburb': Family(
        {'houses': 5, 'terraces': 1.6, 'flats': 1.0, 'park': .9, 'allotments': .9, 'school': .5,
         'car_park': .5, 'meadow': .6, 'sports': .4, 'waste': .4, 'forest': .4, 'lake': .25,
         'field': .5},
        (('main', 'main', 'river', 'rail', 'highway'), ('main', 'street'),
         ('street', 'street', 'path'), ('street', 'alley', 'path')),
        (48, 95), .16, (2, 14), _COMMON_ROOFS),
    'village': Family(
        {'houses': 4, 'farmyard': 1.2, 'meadow': 1.6, 'field': 1.8, 'orchard': .7, 'perimeter': .6,
         'allotments': .6, 'plaza': .4, 'lake': .4, 'forest': .8, 'waste': .3, 'car_park': .25,
         'school': .25, 'sports': .3},
        (('country', 'country', 'stream', 'river'), ('lane', 'country', 'street'),
         ('lane', 'track', 'path', 'cobbled'), ('track', 'hedgerow', 'lane', 'path')),
        (45, 100), .3, (5, 20), {'tiles': 1.2, 'brown_tiles': 1.2, 'slate': .8, 'sheet': .3}),
    'town': Family(
        {'perimeter': 5, 'plaza': 1.0, 'park': .8, 'promenade': 1.1, 'flats': 1.0, 'school': .6,
         'car_park': .7, 'waste': .4, 'houses': .4, 'terraces': .5, 'sports': .3, 'field': .15,
         'allotments': .3, 'lake': .15},
        (('avenue', 'avenue', 'canal', 'river', 'rail'), ('avenue', 'main'),
         ('main', 'street', 'cobbled'), ('street', 'alley', 'cobbled')),
        (42, 92), .2, (0, 8), {'zinc': 1.6, 'slate': 1.0, 'tiles': .8, 'bitumen': .5,
                               'brown_tiles': .4}),
    'farmland': Family(
        {'field': 6, 'meadow': 2.2, 'forest': 1.0, 'farmyard': .8, 'orchard': .8, 'lake': .35,
         'houses': .35, 'waste': .25, 'allotments': .2, 'works': .12},
        (('country', 'stream', 'rail', 'highway'), ('country', 'lane', 'track', 'gravel_track'),
         ('track', 'hedgerow', 'gravel_track', 'lane'), ('hedgerow', 'boundary', 'track')),
        (65, 150), .22, (3, 22), {'tiles': 1, 'brown_tiles': 1, 'sheet': 1, 'slate': .6}),
    'industrial': Family(
        {'works': 5, 'car_park': 1.6, 'waste': 1.3, 'meadow': .9, 'flats': .5, 'allotments': .4,
         'houses': .4, 'lake': .25, 'park': .3, 'field': .5, 'forest': .35, 'sports': .2},
        (('highway', 'main', 'rail', 'canal', 'river'), ('main', 'rail', 'street'),
         ('street', 'main'), ('street', 'alley')),
        (65, 140), .14, (0, 10), {'sheet': 1.5, 'bitumen': 1, 'tiles': .5, 'white_roof': .8}),
    'park': Family(
        {'park': 4, 'promenade': 1.6, 'forest': 1.5, 'meadow': 1.2, 'lake': 1.0, 'sports': 1.0,
         'plaza': .8, 'houses': .5, 'allotments': .5, 'car_park': .6, 'perimeter': .6,
         'orchard': .3, 'waste': .25, 'school': .3, 'field': .3},
        (('river', 'river', 'canal', 'stream', 'avenue'), ('main', 'street', 'path'),
         ('path', 'street', 'path'), ('path', 'gravel_track', 'path')),
        (55, 120), .32, (5, 20), _COMMON_ROOFS),
}

_COAST = Family(
    {'perimeter': 3, 'houses': 2.6, 'plaza': 1.3, 'orchard': 1.0, 'promenade': .6, 'waste': .8,
     'car_park': .8, 'meadow': .8, 'field': .6, 'park': .5, 'terraces': .6, 'sports': .3,
     'works': .3, 'allotments': .4},
    (('main', 'avenue'), ('main', 'street', 'cobbled'), ('cobbled', 'street', 'lane'),
     ('cobbled', 'alley', 'path')),
    (38, 80), .42, (14, 30),
    {'tiles': 4.0, 'white_roof': .8, 'gravel_roof': .6, 'bitumen': .2},
    {'broadleaf': .35, 'conifer': .25, 'palm': .25, 'shrub': .15},
    {
        'tiles': Recipe(classes.BUILDING, (10, 27), (.34, .58), (.50, .74), (5, -.1, -.12), .15,
                        .5, .1, .09, ((.4, .62), (.08, .2), Wave.SINE)),
        'earth': Recipe(classes.SOIL, (14, 36), (.24, .46), (.46, .68), (4, -.08, .1), .35, .5,
                        .09, .1),
        'sand': Recipe(classes.SOIL, (32, 46), (.14, .32), (.66, .84), (0, .04, -.12), .35, .4,
                       .04, .06),
        'meadow': Recipe(classes.GRASS, (46, 80), (.18, .38), (.36, .54), (-12, .02, .1), .4, .55,
                         .14, .12),
        'water': Recipe(classes.WATER, (182, 214), (.35, .62), (.26, .48), (-10, -.05, .06), .4,
                        .06, .04, .03),
    },
    sea=True,
)

FAMILIES: tuple[str, ...] = tuple(_TRAINING)
"""Families that training may use."""

HELD_OUT_FAMILIES: tuple[str, ...] = ('coast',)
"""Families with a layout and textures of their own, for tests only."""

ALL_FAMILIES: Mapping[str, Family] = MappingProxyType({**_TRAINING, 'coast': _COAST})
