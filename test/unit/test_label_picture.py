# SPDX-License-Identifier: Apache-2.0
"""Label maps as pictures."""

import numpy as np

from blabberseg_ros.label_picture import shares, side_by_side, voc_colours


def test_colours_are_those_of_voc():
    assert voc_colours(8).tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128],
        [0, 128, 128], [128, 128, 128]]
    assert voc_colours(12)[8:].tolist() == [[64, 0, 0], [192, 0, 0], [64, 128, 0], [192, 128, 0]]
    assert len({tuple(colour) for colour in voc_colours(256)}) == 256


def test_shares_are_sorted_by_area():
    labels = np.array([[3, 3, 3], [0, 7, 7]])
    assert shares(labels) == [(3, 0.5), (7, 2 / 6), (0, 1 / 6)]


def test_the_picture_holds_image_labels_and_legend():
    image = np.full((60, 80, 3), 200, np.uint8)
    labels = np.zeros((30, 40), int)
    labels[:, 20:] = 2
    picture = side_by_side(image, labels, ('grass', 'sky', 'dach/ö'))
    assert picture.dtype == np.uint8
    assert picture.shape[0] >= 60
    assert np.array_equal(picture[:60, :80], image)
    left, right = picture[30, 100], picture[30, 150]
    assert not np.array_equal(left, right)
    assert not np.array_equal(left, image[0, 0])
    legend = picture[:, 160:]
    assert (legend != 255).any()


def test_labels_beyond_the_legend_are_grey():
    image = np.zeros((20, 20, 3), np.uint8)
    labels = np.repeat(np.arange(20), 20).reshape(20, 20)
    labels[:10] = 0
    picture = side_by_side(image, labels, [str(number) for number in range(20)], most=1)
    assert picture[2, 30].tolist() == [64, 0, 0]
    assert len(set(picture[15, 22:38].ravel().tolist())) == 1
