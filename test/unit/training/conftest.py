# SPDX-License-Identifier: Apache-2.0
"""Worlds for training tests."""

import numpy as np
import pytest

from blabberseg_ros.training.worlds import POINTS, Map


class SquareWorlds:
    """Worlds of large squares, each class of a colour of its own."""

    is_ready = False
    taken = 0

    def next(self) -> Map:
        rng = np.random.default_rng(self.taken)
        self.taken += 1
        labels = np.kron(rng.integers(1, 12, (8, 8)), np.ones((16, 16))).astype(np.uint8)
        colours = np.random.default_rng(9).integers(0, 256, (12, 3), dtype=np.uint8)
        points = rng.uniform(0, 128, (12, POINTS, 2)).astype(np.float32)
        return Map(colours[labels], labels, np.bincount(labels.ravel(), minlength=12), points)


@pytest.fixture(scope='session')
def square_worlds() -> type[SquareWorlds]:
    """Return a feed of worlds of 128 pixels a side, to be made anew for each run."""
    return SquareWorlds
