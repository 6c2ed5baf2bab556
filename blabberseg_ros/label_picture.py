# SPDX-License-Identifier: Apache-2.0
"""Label maps as pictures: the image beside its coloured copy, and a legend."""

from collections.abc import Sequence

import cv2
import numpy as np

_TINT = 0.5
_ROW_PX, _SWATCH_PX, _LEGEND_PX = 26, 16, 230
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
_GREY = (70, 70, 70)


def voc_colours(count: int) -> np.ndarray:
    """Return colours that differ well from each other, those of PASCAL VOC.

    The bits of a number go to red, green and blue in turn, the lowest ones to the highest bits of
    a colour. The first colour is black.

    Returns:
        uint8 [count, 3], RGB.
    """
    colours = np.zeros((count, 3), np.uint8)
    numbers = np.arange(count)
    for shift in range(8):
        for channel in range(3):
            colours[:, channel] |= (
                ((numbers >> (3 * shift + channel)) & 1) << (7 - shift)).astype(np.uint8)
    return colours


def shares(labels: np.ndarray) -> list[tuple[int, float]]:
    """Return the labels that occur and their share of the pixels, the largest first."""
    # Labels are small numbers: counting them is twenty times faster than sorting the pixels.
    counts = np.bincount(labels.reshape(-1))
    found = np.flatnonzero(counts)
    order = found[np.argsort(-counts[found], kind='stable')]
    return [(int(index), float(counts[index] / labels.size)) for index in order]


def side_by_side(image: np.ndarray, labels: np.ndarray, names: Sequence[str],
                 most: int = 20, fixed: bool = False) -> np.ndarray:
    """Return the image, its copy in the labels' colours and a legend, side by side.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: int [h, w] of any size, indices into `names`.
        names: of the labels.
        most: labels in the legend, those of the largest areas; all others are grey.
        fixed: each label has the same colour in every picture, which takes a short list.

    Returns:
        uint8 [H, W + W + legend, 3], RGB; higher if the legend is.
    """
    height, width = image.shape[:2]
    listed = shares(labels)[:most]
    colours = np.full((len(names), 3), _GREY, np.uint8)
    # Black, the first colour, would hide what lies below it.
    palette = voc_colours(1 + (len(names) if fixed else len(listed)))[1:]
    for rank, (index, _) in enumerate(listed):
        colours[index] = palette[index if fixed else rank]
    full = labels if labels.shape == (height, width) else cv2.resize(
        labels.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST)
    tinted = cv2.addWeighted(image, 1 - _TINT, colours[full], _TINT, 0.0)
    legend = _legend([(colours[index], names[index], share) for index, share in listed])
    tallest = max(height, len(legend))
    return np.concatenate([_padded(part, tallest) for part in (image, tinted, legend)], axis=1)


def _legend(rows: Sequence[tuple[np.ndarray, str, float]]) -> np.ndarray:
    picture = np.full(((len(rows) + 1) * _ROW_PX, _LEGEND_PX, 3), 255, np.uint8)
    for number, (colour, name, share) in enumerate(rows):
        top = _ROW_PX // 2 + number * _ROW_PX
        cv2.rectangle(picture, (10, top), (10 + _SWATCH_PX, top + _SWATCH_PX),
                      tuple(int(value) for value in colour), cv2.FILLED)
        # OpenCV's fonts have ASCII only.
        text = name.encode('ascii', 'replace').decode()
        cv2.putText(picture, f'{text[:18]} {share:.1%}', (18 + _SWATCH_PX, top + 13), _FONT,
                    _FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def _padded(picture: np.ndarray, height: int) -> np.ndarray:
    return np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0)), constant_values=255)
