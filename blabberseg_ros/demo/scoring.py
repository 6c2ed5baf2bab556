# SPDX-License-Identifier: Apache-2.0
"""What the vehicle landed on: the only use of the label map, and only after touchdown."""

from dataclasses import dataclass

from blabberseg_ros.sim.classes import CLASSES, SAFE
from blabberseg_ros.sim.world import generate_world

# What the undercarriage touches, with a margin.
FOOTPRINT_M = 0.75


@dataclass(frozen=True)
class Score:
    """The ground under a touchdown.

    Attributes:
        landed_on: name of the class that covers most of it.
        safe: whether all of it is safe.
        shares: class name to its share of the footprint.
        family: kind of world.
    """

    landed_on: str
    safe: bool
    shares: dict[str, float]
    family: str = ''


def score(seed: int, family: str, size_m: float, x_m: float, y_m: float) -> Score:
    """Make the world once more and look under the vehicle.

    Args:
        seed: of the world.
        family: of the world; empty if the seed chose it.
        size_m: of the world.
        x_m: touchdown, east.
        y_m: touchdown, north.
    """
    world = generate_world(seed, family or None, size_m)
    shares = world.footprint(x_m, y_m, FOOTPRINT_M)
    named = {CLASSES[label]: round(share, 3) for label, share in shares.items()}
    return Score(next(iter(named)), set(shares) <= SAFE, named, world.family)
