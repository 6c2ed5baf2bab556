# SPDX-License-Identifier: Apache-2.0
"""What is kept between frames: bounded in bytes, whatever sizes of images a client sends."""

import tracemalloc

import numpy as np
import pytest

from blabberseg_ros import frame_cache, resampling
from blabberseg_ros.backends import fpseg_fit
from blabberseg_ros.byte_cache import ByteCache
from blabberseg_ros.frame_cache import FrameCache


def keep(cache, key, length):
    return cache.obtain(key, lambda: bytearray(length), len)


def test_the_items_used_last_are_kept_as_far_as_they_fit():
    cache = ByteCache(100)
    first, second = keep(cache, 'first', 40), keep(cache, 'second', 40)
    assert keep(cache, 'first', 40) is first
    keep(cache, 'third', 40)
    assert (cache.nbytes, len(cache)) == (80, 2)
    assert keep(cache, 'first', 40) is first
    assert keep(cache, 'second', 40) is not second, 'it was used longest ago'


def test_what_would_not_fit_alone_costs_nothing_else():
    cache = ByteCache(100)
    kept = keep(cache, 'small', 10)
    assert len(keep(cache, 'large', 101)) == 101
    assert keep(cache, 'small', 10) is kept
    assert (cache.nbytes, len(cache)) == (10, 1)
    cache.clear()
    assert (cache.nbytes, len(cache)) == (0, 0)


@pytest.mark.parametrize('make', [
    lambda size: resampling.triangle_matrices(size, size + 7, 64),
    lambda size: resampling.blur_and_resize_matrices(64, size, size + 7, 15),
    lambda size: fpseg_fit.matrices_in(size, size + 7, 64, 'letterbox'),
    lambda size: fpseg_fit.matrices_out(size, size + 7, (16, 64), 'letterbox', 15)])
def test_images_of_many_sizes_keep_no_more_memory_than_the_limit(monkeypatch, make):
    limit = 600_000
    monkeypatch.setattr(resampling, '_PAIRS', ByteCache(limit))
    tracemalloc.start()
    try:
        for size in range(500, 540):
            pair = make(size)
            assert make(size)[0] is pair[0], 'the newest is kept'
        del pair
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert limit / 4 < resampling._PAIRS.nbytes <= limit
    assert kept < resampling._PAIRS.nbytes + 100_000, 'neither more pairs nor what they came from'


def frame(seed, height, width=10):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_copies_of_frames_are_bounded_and_a_very_large_frame_is_not_copied(monkeypatch):
    monkeypatch.setattr(frame_cache, 'MAX_BYTES', 3_000)
    cache = FrameCache()
    large = frame(0, 101)
    cache.keep(large, 'large')
    assert cache.find(large) is None
    frames = [frame(seed, height) for seed, height in enumerate((20, 20, 50, 40))]
    for index, image in enumerate(frames):
        cache.keep(image, index)
        assert cache.nbytes <= 3_000
        assert cache.find(image).code == index
    assert [cache.find(image) is not None for image in frames] == [False, False, True, True]
    cache.keep(large, 'large')
    assert cache.find(frames[2]) is not None, 'a frame that is not kept costs no other'
