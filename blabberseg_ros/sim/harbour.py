# SPDX-License-Identifier: Apache-2.0
"""The waterfront of a coastal town: sea, quay or beach, piers with boats."""

import numpy as np

from blabberseg_ros.sim import vehicles
from blabberseg_ros.sim.canvas import Points
from blabberseg_ros.sim.classes import PAVED
from blabberseg_ros.sim.gardens import bench, lamp
from blabberseg_ros.sim.layout import Site, clip, rectangle
from blabberseg_ros.sim.planting import add_tree


def draw_sea(site: Site, domain: Points) -> Points:
    """Paint the sea on the +x side of the layout and its shore; give the land that is left."""
    rng, half = site.rng, site.canvas.half_m
    shore = float(rng.uniform(-.1, .55)) * half
    width = float(rng.uniform(8, 22))
    low, high = float(domain[:, 1].min()), float(domain[:, 1].max())
    long, middle = high - low, (high + low) / 2
    sea = site.material('water')
    site.paint(rectangle(4 * half, long, shore + width + 2 * half, middle), sea)
    beach = site.chance(.4)
    # People walk on a quay, whatever it is paved with.
    ground = site.material('sand') if beach else site.material(
        site.pick(slabs=3, concrete=1, cobble=.5), PAVED)
    site.paint(rectangle(width, long, shore + width / 2, middle), ground, heading_rad=np.pi / 2,
               ragged_m=1.2 if beach else 0.0)
    if not beach:
        site.line([(shore + width, low), (shore + width, high)], .7, 'wall', .5)
    for y in np.arange(low, high, 9.0):
        if site.chance(.5):
            add_tree(site, shore + 3, float(y), rng.uniform(1.4, 3), 'palm')
        if site.chance(.3):
            lamp(site, shore + width * .7, float(y))
        if site.chance(.25):
            bench(site, shore + width * .5, float(y) + 3, np.pi / 2)
        if site.chance(.35):
            site.crowds.append((shore + width * .5, float(y), int(rng.integers(1, 7)), 3.0))
    if not beach:
        _piers(site, shore + width, low, high)
    return clip(domain, (1.0, 0.0), shore)


def _piers(site: Site, edge: float, low: float, high: float) -> None:
    rng = site.rng
    for y in np.arange(low, high, rng.uniform(30, 55)):
        if site.chance(.35):
            continue
        reach = float(rng.uniform(20, 60))
        site.paint(rectangle(reach, 2.6, edge + reach / 2, float(y)), site.pick(
            concrete=1, footpath=1), heading_rad=np.pi / 2)
        for x in np.arange(edge + 4, edge + reach - 2, 4.2):
            for side in (-1, 1):
                if site.chance(.7):
                    _moor(site, float(x), float(y) + side * 6.0)


def _moor(site: Site, x: float, y: float) -> None:
    length = float(site.rng.uniform(5.5, 9.5))
    pose = site.frame.pose(x, y, np.pi / 2 * site.rng.choice((-1, 1)))
    site.later.append(lambda: vehicles.boat(site, pose, length))
