# SPDX-License-Identifier: Apache-2.0
"""Image resizing and box blur as matrices.

Both are linear and separable, so each is `rows @ image @ cols`. As matrix products they run the
same on every engine and take any image size as an input, where an antialiased Resize node would
not (TensorRT's parser has none).
"""

from collections.abc import Callable, Hashable

import numpy as np

from blabberseg_ros.byte_cache import ByteCache

# Of all image sizes and blurs together; those of 640x480 pixels and a model of 352 take 3 MB.
_PAIRS: ByteCache[tuple[np.ndarray, np.ndarray]] = ByteCache(32_000_000)


def triangle_weights(n_in: int, n_out: int) -> np.ndarray:
    """Return the resizing matrix of PIL's bilinear filter: a triangle, widened when shrinking.

    Args:
        n_in: length of the input axis in pixels.
        n_out: length of the output axis in pixels.

    Returns:
        float32 [n_out, n_in], read-only; each row sums to 1.
    """
    scale = n_in / n_out
    support = max(scale, 1.0)
    centre = (np.arange(n_out, dtype=np.float64) + 0.5) * scale
    # PIL weighs the whole pixels of [centre - support, centre + support], rounded to integers.
    first = np.maximum(np.floor(centre - support + 0.5), 0)
    last = np.minimum(np.floor(centre + support + 0.5), n_in)
    pixel = np.arange(n_in, dtype=np.float64)
    weights = 1.0 - np.abs(pixel + 0.5 - centre[:, None]) / support
    inside = (pixel >= first[:, None]) & (pixel < last[:, None])
    weights = np.where(inside, np.maximum(weights, 0.0), 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return read_only(np.float32(weights))


def bilinear_weights(n_in: int, n_out: int) -> np.ndarray:
    """Return the resizing matrix of OpenCV's INTER_LINEAR: half-pixel centres, no antialiasing.

    Args:
        n_in: length of the input axis in pixels.
        n_out: length of the output axis in pixels.

    Returns:
        float32 [n_out, n_in], read-only; each row sums to 1.
    """
    position = (np.arange(n_out, dtype=np.float64) + 0.5) * (n_in / n_out) - 0.5
    position = np.clip(position, 0.0, n_in - 1)
    low = np.minimum(np.floor(position).astype(np.intp), max(n_in - 2, 0))
    fraction = position - low
    weights = np.zeros((n_out, n_in))
    rows = np.arange(n_out)
    weights[rows, low] = 1.0 - fraction
    weights[rows, np.minimum(low + 1, n_in - 1)] += fraction
    return read_only(np.float32(weights))


def box_weights(n: int, kernel_size: int) -> np.ndarray:
    """Return the matrix of a box blur along one axis, as OpenCV's `blur` does it.

    The kernel's anchor is `kernel_size // 2` and the border is reflected without repeating the
    edge pixel (OpenCV's default, reflect-101).

    Args:
        n: length of the axis in pixels.
        kernel_size: width of the box in pixels, at least 1; even widths are allowed.

    Returns:
        float32 [n, n], read-only; each row sums to 1.
    """
    offsets = np.arange(kernel_size) - kernel_size // 2
    pixel = np.arange(n)[:, None] + offsets
    if n > 1:
        period = 2 * (n - 1)
        pixel = np.abs(pixel) % period
        pixel = np.where(pixel >= n, period - pixel, pixel)
    else:
        pixel = np.zeros_like(pixel)
    weights = np.zeros((n, n))
    np.add.at(weights, (np.arange(n)[:, None], pixel), 1.0 / kernel_size)
    return read_only(np.float32(weights))


def blur_and_resize_weights(n_in: int, n_out: int, kernel_size: int) -> np.ndarray:
    """Return one matrix that blurs an axis with a box, then resizes it bilinearly.

    Args:
        n_in: length of the input axis in pixels.
        n_out: length of the output axis in pixels.
        kernel_size: width of the box in pixels; 1 means no blur.

    Returns:
        float32 [n_out, n_in], read-only; each row sums to 1.
    """
    resize = bilinear_weights(n_in, n_out).astype(np.float64)
    return read_only(np.float32(resize @ box_weights(n_in, kernel_size)))


def triangle_matrices(height: int, width: int, new_height: int,
                      new_width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the pair that resizes an image [height, width]; the width that of a square if None.

    Returns:
        `rows` float32 [new_height, height] and `cols` float32 [width, new_width], for
        `rows @ image @ cols`.
    """
    new_width = new_height if new_width is None else new_width
    return kept_pair(('triangle', height, width, new_height, new_width), lambda: (
        triangle_weights(height, new_height), read_only(triangle_weights(width, new_width).T)))


def blur_and_resize_matrices(side: int, height: int, width: int,
                             kernel_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pair that blurs a map [side, side] and resizes it to [height, width].

    Returns:
        `rows` float32 [height, side] and `cols` float32 [side, width], for `rows @ map @ cols`.
    """
    return kept_pair(('blur', side, height, width, kernel_size), lambda: (
        blur_and_resize_weights(side, height, kernel_size),
        read_only(blur_and_resize_weights(side, width, kernel_size).T)))


def kept_pair(key: Hashable, make: Callable[[], tuple[np.ndarray, np.ndarray]]
              ) -> tuple[np.ndarray, np.ndarray]:
    """Return a pair of matrices, the same arrays each time, so that engines send them once.

    The pairs used last are kept, as many as fit into 32 MB.

    Args:
        key: of the pair, unlike that of any other.
        make: makes it.
    """
    return _PAIRS.obtain(key, make, lambda pair: pair[0].nbytes + pair[1].nbytes)


def read_only(array: np.ndarray) -> np.ndarray:
    """Return the array, contiguous and protected: engines need not copy it a second time."""
    result = np.ascontiguousarray(array)
    result.setflags(write=False)
    return result
