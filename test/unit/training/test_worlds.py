# SPDX-License-Identifier: Apache-2.0
"""Which worlds serve which use, and the processes that make them."""

import numpy as np
import pytest

from blabberseg_ros.sim.world import FAMILIES, HELD_OUT_FAMILIES
from blabberseg_ros.training.config import WorldsConfig
from blabberseg_ros.training.worlds import WorldJob, WorldPool, make_map, make_views

_USES = ('train', 'validation', 'test', 'held_out')
_SMALL = WorldsConfig(size_m=60.0, resolution_m=0.2, views=3)


def test_no_two_uses_share_a_seed() -> None:
    seeds = [WorldJob(use, index).seed for use in _USES for index in range(2000)]
    assert len(set(seeds)) == len(seeds)


def test_held_out_families_are_seen_in_no_other_use() -> None:
    families = {use: {WorldJob(use, index).family for index in range(50)} for use in _USES}
    assert families['held_out'] == set(HELD_OUT_FAMILIES)
    for use in _USES[:3]:
        assert families[use] == set(FAMILIES)
    assert not set(FAMILIES) & set(HELD_OUT_FAMILIES)


def test_points_lie_on_their_class() -> None:
    world = make_map(WorldJob('train', 0), _SMALL)
    assert world.counts.sum() == world.labels.size
    for index in np.flatnonzero(world.counts):
        cols, rows = np.floor(world.points[index].T).astype(int)
        assert (world.labels[rows, cols] == index).all()


def test_views_rise_and_are_repeatable() -> None:
    views = make_views(WorldJob('held_out', 1), _SMALL)
    altitudes = [view.altitude_m for view in views]
    assert altitudes == sorted(altitudes)
    assert altitudes[0] >= 8
    assert all(view.rgb.shape == (352, 352, 3) and view.group == 'held_out' for view in views)
    again = make_views(WorldJob('held_out', 1), _SMALL)
    np.testing.assert_array_equal(views[1].rgb, again[1].rgb)
    np.testing.assert_array_equal(views[1].labels, again[1].labels)


def test_processes_give_the_same_worlds_in_order() -> None:
    with WorldPool(_SMALL, 1) as pool:
        feed = pool.maps('train', 2)
        found = [feed.next(), feed.next()]
        with pytest.raises(StopIteration):
            feed.next()
    expected = make_map(WorldJob('train', 1), _SMALL)
    np.testing.assert_array_equal(found[1].rgb, expected.rgb)
    np.testing.assert_array_equal(found[1].points, expected.points)


def test_a_pool_that_was_not_started_says_so() -> None:
    with pytest.raises(RuntimeError, match='with statement'):
        WorldPool(_SMALL, 1).maps('train', 1)
