# SPDX-License-Identifier: Apache-2.0
"""A live node that has to survive each test in this folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'node'))

from harness import Peer, mask_of, scene
from live_nodes import live, ros, segmenter, start_node

__all__ = ['live', 'ros', 'segmenter', 'start_node']

GOOD = scene(seed=77)


@pytest.fixture(scope='module')
def good_mask(live: Peer) -> np.ndarray:
    """Return the mask of a good request before anything has gone wrong."""
    response = live.heatmap(GOOD)
    assert response.success
    mask = mask_of(response)
    assert 0 < np.count_nonzero(mask) < mask.size
    return mask


@pytest.fixture
def survivor(live: Peer, good_mask: np.ndarray) -> Iterator[Peer]:
    """Return the peer of a node that must be the same process with the same answer afterwards."""
    pid = live.process.pid
    yield live
    assert live.process.alive, live.process.output
    assert live.process.pid == pid
    response = live.heatmap(GOOD)
    assert response.success
    np.testing.assert_array_equal(mask_of(response), good_mask)
    assert 'Traceback' not in live.process.output
