# SPDX-License-Identifier: Apache-2.0
"""Arrays that several processes share."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from blabberseg_ros.training.config import WorldsConfig
from blabberseg_ros.training.world_cache import WorldCache, fingerprint
from blabberseg_ros.training.worlds import WorldJob, WorldPool, make_map, make_views

_SMALL = WorldsConfig(size_m=60.0, resolution_m=0.2, views=2)
# Takes the lock of a name, says so, and dies without letting go.
_DYING_MAKER = """
import os, sys
from pathlib import Path
from blabberseg_ros.training.world_cache import WorldCache
def make():
    print('making', flush=True)
    sys.stdin.readline()
    os._exit(1)
WorldCache(Path(sys.argv[1])).read_or_make('a', make)
"""


class Maker:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {'values': np.arange(5) + self.calls}


@pytest.fixture
def cache(tmp_path):
    return WorldCache(tmp_path / 'worlds')


def test_what_is_there_is_not_made_again(cache) -> None:
    make = Maker()
    assert not cache.has('a')
    for _ in range(3):
        np.testing.assert_array_equal(cache.read_or_make('a', make)['values'], np.arange(1, 6))
    cache.make_unless_begun('a', make)
    assert make.calls == 1
    assert cache.has('a')


def test_of_many_who_want_the_same_one_makes_it(cache) -> None:
    make, start = Maker(), Barrier(8)

    def ask(_: int) -> list[int]:
        start.wait()
        return cache.read_or_make('a', make)['values'].tolist()

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, range(8)))
    assert make.calls == 1
    assert found == [[1, 2, 3, 4, 5]] * 8


def test_nobody_waits_for_what_another_process_is_making_unless_it_must(cache, tmp_path) -> None:
    with subprocess.Popen([sys.executable, '-c', _DYING_MAKER, str(tmp_path / 'worlds')],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == 'making\n'
        make = Maker()
        cache.make_unless_begun('a', make)
        assert make.calls == 0
        other.stdin.write('\n')
        other.stdin.flush()
        # The system frees a dead process's lock.
        assert cache.read_or_make('a', make)['values'][0] == 1


def test_a_damaged_file_is_made_again(cache, tmp_path) -> None:
    make = Maker()
    cache.read_or_make('a', make)
    path = tmp_path / 'worlds' / 'a.npz'
    path.write_bytes(path.read_bytes()[:-30])
    assert cache.read_or_make('a', make)['values'][0] == 2


def test_the_fingerprint_follows_the_sources_and_the_values(tmp_path: Path) -> None:
    (tmp_path / 'a.py').write_text('x = 1')
    first = fingerprint(tmp_path, 240.0)
    assert first == fingerprint(tmp_path, 240.0)
    assert first != fingerprint(tmp_path, 120.0)
    (tmp_path / 'a.py').write_text('x = 2')
    assert first != fingerprint(tmp_path, 240.0)


def test_a_pool_with_a_cache_gives_the_same_worlds(tmp_path) -> None:
    for _ in range(2):
        with WorldPool(_SMALL, 1, tmp_path) as pool:
            views, = pool.views('test', 1)
            feed = pool.maps('train', 2)
            found = [feed.next(), feed.next()]
            with pytest.raises(StopIteration):
                feed.next()
            expected = make_map(WorldJob('train', 1), _SMALL)
            for name in ('rgb', 'labels', 'counts', 'points'):
                np.testing.assert_array_equal(getattr(found[1], name), getattr(expected, name))
            for view, other in zip(views.result(), make_views(WorldJob('test', 0), _SMALL),
                                   strict=True):
                np.testing.assert_array_equal(view.rgb, other.rgb)
                np.testing.assert_array_equal(view.labels, other.labels)
                assert (view.group, view.altitude_m) == (other.group, other.altitude_m)
    assert len(list(tmp_path.glob('*/map-train-*.npz'))) == 2
