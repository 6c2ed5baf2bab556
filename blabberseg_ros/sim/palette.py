# SPDX-License-Identifier: Apache-2.0
"""Colours and textures of surfaces: wide ranges, narrowed once per world, then per region."""

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from blabberseg_ros.sim import classes
from blabberseg_ros.sim.canvas import Colour, Material, Rows, Wave

Range = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """Ranges that a material is drawn from.

    Attributes:
        label: Class id.
        hue: Degrees.
        saturation: 0 to 1.
        value: 0 to 1.
        shift: How far the second colour lies: hue in degrees, saturation, value.
        low: See `canvas.Material`; so are the others.
    """

    label: int
    hue: Range
    saturation: Range
    value: Range
    shift: tuple[float, float, float] = (0.0, 0.0, -0.08)
    low: float = 0.3
    mid: float = 0.3
    clump: float = 0.05
    grain: float = 0.05
    rows: tuple[Range, Range, Wave] | None = None
    across: tuple[Range, Range, Wave] | None = None


_B, _R, _G, _S, _P, _F, _X = (
    classes.BUILDING, classes.ROAD, classes.GRASS, classes.SOIL, classes.PAVED, classes.FIELD,
    classes.STRUCTURE)

# Walked and parked-on tarmac is pale, carriageways are dark: two classes that look alike could not
# be told apart in a view that shows nothing else.
RECIPES: Mapping[str, Recipe] = {
    'lawn': Recipe(_G, (68, 118), (.26, .48), (.27, .45), (-14, -.03, .05), .3, .35, .10, .11),
    'meadow': Recipe(_G, (60, 104), (.24, .46), (.28, .46), (-13, -.05, .06), .35, .4, .13, .13),
    'rough': Recipe(_G, (62, 110), (.22, .44), (.24, .42), (-18, -.05, .08), .3, .5, .24, .17),
    'dry_grass': Recipe(_G, (40, 66), (.18, .38), (.40, .62), (18, .04, -.10), .4, .45, .11, .11),
    'mown': Recipe(_G, (70, 115), (.28, .5), (.30, .46), (-18, -.04, .05), .3, .3, .06, .08,
                   ((5, 12), (.04, .10), Wave.SINE)),
    'earth': Recipe(_S, (20, 42), (.16, .40), (.34, .60), (4, -.04, .12), .3, .55, .13, .12),
    'sand': Recipe(_S, (28, 46), (.10, .28), (.52, .76), (0, .04, -.12), .35, .4, .05, .07),
    'gravel': Recipe(_S, (20, 48), (.07, .18), (.44, .68), (0, .03, -.10), .3, .4, .07, .13),
    'mud': Recipe(_S, (18, 38), (.2, .42), (.24, .42), (6, -.05, .14), .35, .6, .12, .10),
    'bed': Recipe(_S, (18, 38), (.18, .4), (.26, .48), (10, 0, .10), .2, .4, .16, .14,
                  ((.5, 1.4), (.05, .2), Wave.CROP)),
    'asphalt': Recipe(_R, (25, 230), (.01, .08), (.24, .43), (0, 0, .07), .4, .25, .04, .07),
    'dark_asphalt': Recipe(_R, (180, 250), (.02, .12), (.17, .31), (0, 0, .06), .4, .3, .04, .08),
    'cobble': Recipe(_R, (20, 60), (.02, .12), (.26, .42), (0, 0, -.07), .3, .35, .09, .14,
                     ((.25, .45), (.05, .14), Wave.JOINT)),
    'paint': Recipe(_R, (40, 60), (.0, .06), (.62, .88), (0, 0, -.22), .2, .7, .06, .08),
    'patch': Recipe(_R, (25, 230), (.01, .08), (.18, .40), (0, 0, .05), .2, .3, .05, .08),
    'ballast': Recipe(_R, (18, 48), (.06, .2), (.32, .52), (0, 0, -.1), .3, .4, .08, .15),
    'rail': Recipe(_R, (10, 40), (.05, .3), (.35, .7), (0, 0, -.1), .1, .3, .03, .05),
    'footpath': Recipe(_P, (20, 60), (.02, .14), (.42, .68), (0, 0, -.07), .3, .35, .04, .07),
    'slabs': Recipe(_P, (15, 60), (.02, .18), (.44, .72), (0, .02, -.08), .25, .35, .04, .06,
                    ((.8, 3.0), (.05, .16), Wave.JOINT), ((.8, 3.0), (.05, .16), Wave.JOINT)),
    'tarmac': Recipe(_P, (25, 230), (.01, .09), (.46, .62), (0, 0, .07), .4, .28, .04, .07),
    'concrete': Recipe(_P, (30, 60), (.02, .12), (.50, .74), (0, 0, -.10), .35, .4, .04, .06,
                       ((4, 8), (.04, .12), Wave.JOINT), ((4, 8), (.04, .12), Wave.JOINT)),
    'bricks': Recipe(_P, (8, 28), (.15, .4), (.38, .6), (0, 0, -.08), .25, .4, .06, .08,
                     ((.4, 1.2), (.05, .15), Wave.JOINT), ((.8, 2), (.03, .1), Wave.JOINT)),
    'court': Recipe(_P, (0, 360), (.2, .5), (.34, .58), (0, -.03, .04), .25, .25, .03, .05),
    'bay_paint': Recipe(_P, (40, 60), (.0, .06), (.60, .88), (0, 0, -.2), .2, .6, .05, .08),
    'pitch_paint': Recipe(_G, (60, 90), (.04, .14), (.62, .85), (20, .1, -.25), .2, .7, .05, .08),
    'crop_green': Recipe(_F, (66, 118), (.28, .55), (.27, .46), (-16, -.05, .06), .5, .2, .06,
                         .08, ((6, 22), (.04, .16), Wave.CROP), ((18, 36), (.08, .2),
                                                                Wave.TRAMLINES)),
    'wheat': Recipe(_F, (36, 54), (.24, .48), (.50, .74), (6, .04, -.08), .5, .2, .04, .06,
                    ((8, 24), (.02, .10), Wave.CROP), ((18, 36), (.06, .2), Wave.TRAMLINES)),
    'rapeseed': Recipe(_F, (50, 62), (.5, .78), (.58, .8), (10, -.1, -.1), .5, .3, .05, .07,
                       ((8, 24), (.02, .10), Wave.CROP), ((18, 36), (.06, .2), Wave.TRAMLINES)),
    'ploughed': Recipe(_F, (16, 36), (.18, .42), (.28, .52), (4, -.04, .1), .6, .2, .08, .08,
                       ((5, 16), (.08, .24), Wave.CROP)),
    'stubble': Recipe(_F, (34, 50), (.16, .36), (.46, .68), (0, .03, -.1), .5, .2, .05, .08,
                      ((6, 16), (.05, .18), Wave.BARS)),
    'row_crop': Recipe(_F, (40, 110), (.22, .5), (.28, .48), (-24, -.08, .1), .4, .2, .06, .08,
                       ((2.5, 7), (.15, .35), Wave.CROP)),
    'tiles': Recipe(_B, (4, 24), (.26, .56), (.36, .62), (6, -.1, -.1), .15, .45, .10, .10,
                    ((.32, .5), (.03, .12), Wave.SAW), ((.25, .4), (.0, .07), Wave.SINE)),
    'brown_tiles': Recipe(_B, (10, 30), (.12, .34), (.24, .44), (4, -.05, .08), .15, .45, .11,
                          .08, ((.32, .5), (.03, .12), Wave.SAW)),
    'slate': Recipe(_B, (195, 240), (.03, .18), (.26, .46), (0, -.02, .07), .15, .4, .09, .10,
                    ((.3, .5), (.02, .10), Wave.SAW)),
    'zinc': Recipe(_B, (195, 225), (.04, .17), (.42, .66), (0, 0, -.08), .15, .45, .06, .07,
                   ((.5, .9), (.05, .14), Wave.JOINT)),
    'sheet': Recipe(_B, (0, 360), (.02, .22), (.36, .76), (0, 0, -.07), .2, .3, .03, .04,
                    ((.7, 1.6), (.04, .12), Wave.SINE), ((5, 9), (.02, .1), Wave.JOINT)),
    'bitumen': Recipe(_B, (20, 230), (.01, .08), (.22, .46), (0, 0, .08), .3, .55, .07, .09,
                      ((1.0, 2.0), (.0, .06), Wave.JOINT)),
    'gravel_roof': Recipe(_B, (25, 60), (.03, .13), (.44, .68), (0, 0, -.08), .3, .4, .05, .11),
    'white_roof': Recipe(_B, (30, 220), (.0, .07), (.64, .86), (0, .02, -.1), .3, .4, .03, .04,
                         ((1.5, 4), (.01, .06), Wave.JOINT)),
    'render': Recipe(_B, (20, 50), (.05, .25), (.5, .8), (0, 0, -.08), .1, .3, .03, .05),
    'glass_roof': Recipe(_B, (170, 215), (.08, .3), (.35, .7), (0, 0, -.16), .2, .5, .03, .04,
                         ((.8, 1.6), (.1, .25), Wave.JOINT), ((1.5, 3), (.1, .25), Wave.JOINT)),
    'solar': Recipe(_B, (212, 242), (.3, .6), (.16, .34), (0, 0, .05), .1, .2, .02, .03,
                    ((.9, 1.1), (.15, .35), Wave.JOINT), ((1.5, 1.8), (.15, .35), Wave.JOINT)),
    'roof_dark': Recipe(_B, (20, 230), (.0, .1), (.1, .26), (0, 0, .05), .1, .3, .03, .05),
    'roof_light': Recipe(_B, (30, 220), (.0, .08), (.58, .86), (0, 0, -.1), .1, .3, .03, .05),
    'water': Recipe(classes.WATER, (70, 215), (.18, .48), (.16, .38), (-8, -.03, .04), .35, .06,
                    .03, .03),
    'pool': Recipe(classes.WATER, (176, 204), (.34, .66), (.55, .84), (4, .05, -.1), .1, .5, .04,
                   .03),
    'wall': Recipe(_X, (20, 50), (.04, .2), (.45, .75), (0, 0, -.12), .1, .5, .08, .1),
    'fence': Recipe(_X, (18, 48), (.05, .3), (.25, .6), (0, 0, -.1), .1, .4, .1, .16),
    'hedge': Recipe(_X, (80, 130), (.26, .5), (.17, .32), (-15, -.04, .1), .2, .5, .3, .25),
    'steel': Recipe(_X, (190, 230), (.0, .1), (.4, .8), (0, 0, -.2), .1, .4, .05, .08),
    'dark_object': Recipe(_X, (0, 360), (.05, .3), (.1, .3), (0, 0, .08), .1, .4, .08, .1),
    'bright_object': Recipe(_X, (0, 360), (.05, .65), (.5, .88), (0, 0, -.1), .1, .4, .04, .06),
    'steps': Recipe(_X, (25, 55), (.02, .14), (.46, .72), (0, 0, -.08), .1, .3, .04, .06,
                    ((.36, .6), (.2, .45), Wave.SAW)),
}


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Convert hue in degrees, saturation and value to RGB in 0..255."""
    r, g, b = colorsys.hsv_to_rgb(
        hue / 360.0 % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.02), 1.0))
    return (255.0 * r, 255.0 * g, 255.0 * b)


class Palette:
    """Materials of one world: each recipe's ranges are narrowed when the world is made."""

    def __init__(self, rng: np.random.Generator, recipes: Mapping[str, Recipe],
                 dryness: float = 0.3) -> None:
        """Narrow every recipe at random.

        Args:
            rng: Source of randomness.
            recipes: By name; a family passes its own on top of `RECIPES`.
            dryness: 0 lush to 1 parched; moves greens towards straw.
        """
        self._recipes = {name: self._narrow(rng, recipes[name]) for name in sorted(recipes)}
        for name in ('lawn', 'meadow', 'rough', 'mown'):
            recipe = self._recipes[name]
            dry = max(0.0, dryness - 0.35) * float(rng.uniform(0.2, 1.0))
            self._recipes[name] = replace(
                recipe,
                hue=(recipe.hue[0] - 32 * dry, recipe.hue[1] - 32 * dry),
                value=(recipe.value[0] + .12 * dry, recipe.value[1] + .12 * dry),
            )

    @staticmethod
    def _narrow(rng: np.random.Generator, recipe: Recipe) -> Recipe:
        def part(span: Range, share: float) -> Range:
            width = (span[1] - span[0]) * share
            start = rng.uniform(span[0], span[1] - width)
            return (float(start), float(start + width))

        return replace(
            recipe, hue=part(recipe.hue, .45), saturation=part(recipe.saturation, .5),
            value=part(recipe.value, .5))

    def draw(self, rng: np.random.Generator, name: str, label: int | None = None) -> Material:
        """Draw one material.

        Args:
            rng: Source of randomness.
            name: Recipe.
            label: Class id instead of the recipe's own.
        """
        recipe = self._recipes[name]
        hue, saturation, value = (
            float(rng.uniform(*span)) for span in (recipe.hue, recipe.saturation, recipe.value))
        shift = recipe.shift
        vary = rng.uniform(0.5, 1.6, 4)
        return Material(
            label=recipe.label if label is None else label,
            colour=hsv(hue, saturation, value),
            second=hsv(hue + shift[0] * vary[0], saturation + shift[1] * vary[0],
                       value + shift[2] * vary[1]),
            low=recipe.low,
            mid=recipe.mid,
            clump=recipe.clump * float(0.3 + 0.6 * vary[2]),
            grain=recipe.grain * float(vary[3]),
            rows=self._rows(rng, recipe.rows),
            across=self._rows(rng, recipe.across),
        )

    @staticmethod
    def _rows(
        rng: np.random.Generator, rows: tuple[Range, Range, Wave] | None
    ) -> Rows | None:
        if rows is None:
            return None
        return Rows(float(rng.uniform(*rows[0])), float(rng.uniform(*rows[1])), rows[2])
