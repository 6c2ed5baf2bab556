# SPDX-License-Identifier: Apache-2.0
"""Features compared: figures, pictures, pairs."""

import numpy as np
import pytest

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.parity.features import compare_features, picture_of


class Fake:
    """A back-end whose features are given."""

    def __init__(self, features):
        self.given = features

    def encode_image_at(self, image, height, width):
        return height // 2, width // 2

    def features(self, code):
        height, width = code
        return self.given[:, :height, :width].copy()


def unit(depth, seed):
    values = np.random.default_rng(seed).standard_normal((depth, 64, 64)).astype(np.float32)
    return values / np.linalg.norm(values, axis=0)


IMAGES = [('one.png', np.zeros((8, 8, 3), np.uint8)), ('two.png', np.zeros((8, 8, 3), np.uint8))]


def test_every_pair_image_and_size_is_compared():
    first = unit(12, 1)
    turned = first.copy()
    turned[:, 0, 0] = -turned[:, 0, 0]
    variants = {'a': Fake(first), 'b': Fake(first), 'c': Fake(turned)}
    compared = [entry.figures for entry in compare_features(variants, IMAGES, (64, 96))]
    assert len(compared) == 3 * 2 * 2
    same = [row for row in compared if (row.first, row.second) == ('a', 'b')]
    assert {row.side_px for row in same} == {64, 96}
    assert all(row.l2 == 0 and row.cosine == pytest.approx(1, abs=1e-12)
               and row.min_cosine == pytest.approx(1, abs=1e-12) for row in same)
    other = next(row for row in compared if row.second == 'c' and row.side_px == 64)
    assert other.min_cosine == pytest.approx(-1)
    assert other.mean_cosine == pytest.approx(1 - 2 / 32 ** 2)
    assert other.cosine == pytest.approx(1 - 2 / 32 ** 2)
    assert other.l2 == pytest.approx(2)
    assert other.relative_l2 == pytest.approx(2 / 32)


def test_a_cosine_is_never_above_one():
    features = np.repeat(unit(512, 3)[:, :1, :1], 64, axis=1).repeat(64, axis=2)
    row = next(iter(compare_features({'a': Fake(features), 'b': Fake(features)}, IMAGES, (128,))))
    assert row.figures.cosine <= 1 + 1e-12


def test_vectors_of_different_length_are_refused():
    with pytest.raises(ParameterError, match='12 numbers and those of b 5'):
        list(compare_features({'a': Fake(unit(12, 1)), 'b': Fake(unit(5, 1))}, IMAGES, (64,)))


def test_one_variant_is_refused():
    with pytest.raises(ParameterError, match='two different'):
        list(compare_features({'a': Fake(unit(3, 1))}, IMAGES, (64,)))


def test_the_picture_shows_where_they_differ():
    first = unit(6, 2)[:, :16, :20]
    second = first.copy()
    second[:, 5, 7] *= -1
    picture = picture_of(first, second)
    assert picture.shape == (16, 3 * 20 + 16, 3)
    assert picture.dtype == np.uint8
    apart = picture[:, 56:].astype(int).sum(axis=2)
    assert np.unravel_index(apart.argmax(), apart.shape) == (5, 7)
    assert np.array_equal(np.delete(picture[:, :20].reshape(-1, 3), 107, 0),
                          np.delete(picture[:, 28:48].reshape(-1, 3), 107, 0))
