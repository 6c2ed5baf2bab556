# SPDX-License-Identifier: Apache-2.0
"""How an image is put into SAM's square and a mask taken out of it, as matrices.

`squash` stretches the image to the square. `letterbox` keeps its proportions: the longer side
fills the square, the rest on the right or at the bottom is padding.
"""

import numpy as np

from blabberseg_ros.resampling import (
    bilinear_weights,
    blur_and_resize_weights,
    kept_pair,
    read_only,
    triangle_weights,
)


def fitted_size(height: int, width: int, side: int, fit: str) -> tuple[int, int]:
    """Return (height, width) of the part of the square that an image fills, in pixels."""
    if fit == 'squash':
        return side, side
    longest = max(height, width)
    return (max(int(height * side / longest + 0.5), 1), max(int(width * side / longest + 0.5), 1))


def matrices_in(height: int, width: int, side: int, fit: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the pair that resizes an image [height, width] into the square.

    Returns:
        `rows` float32 [side, height] and `cols` float32 [width, side], for `rows @ image @ cols`;
        zero where the square is padding.
    """
    fitted_height, fitted_width = fitted_size(height, width, side, fit)
    return kept_pair(('fit in', height, width, side, fit), lambda: (
        read_only(_weights_in(height, fitted_height, side)),
        read_only(_weights_in(width, fitted_width, side).T)))


def _weights_in(length: int, fitted: int, side: int) -> np.ndarray:
    """Return the matrix of `matrices_in` along one axis: float32 [side, length]."""
    weights = np.zeros((side, length), np.float32)
    weights[:fitted] = triangle_weights(length, fitted)
    return weights


def matrices_out(height: int, width: int, sides: tuple[int, int], fit: str,
                 blur_kernel_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pair that takes a mask to the image: enlarge, crop, blur, resize.

    All four are linear, so one product does them at the mask's own low resolution.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        sides: of the mask and of the square, in pixels.
        fit: `squash` or `letterbox`.
        blur_kernel_size: side of the box blur in pixels of the square.

    Returns:
        `rows` float32 [height, s] and `cols` float32 [s, width], s the mask's side.
    """
    fitted_height, fitted_width = fitted_size(height, width, sides[1], fit)
    return kept_pair(('fit out', height, width, sides, fit, blur_kernel_size), lambda: (
        _weights_out(height, fitted_height, sides, blur_kernel_size),
        read_only(_weights_out(width, fitted_width, sides, blur_kernel_size).T)))


def _weights_out(length: int, fitted: int, sides: tuple[int, int], kernel_size: int) -> np.ndarray:
    """Return the matrix of `matrices_out` along one axis: float32 [length, mask side]."""
    enlarge = bilinear_weights(*sides).astype(np.float64)[:fitted]
    return read_only(np.float32(blur_and_resize_weights(fitted, length, kernel_size) @ enlarge))
