# SPDX-License-Identifier: Apache-2.0
"""The last few frames and their image codes, recognised by comparing bytes."""

import ctypes
from dataclasses import dataclass

import numpy as np

from blabberseg_ros.backends.values import ImageCode

# Of the C library, which this process has loaded already.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
MAX_FRAMES = 4
# Of all copies together: one frame of 8 megapixels, four of 2.
MAX_BYTES = 32_000_000


@dataclass(frozen=True)
class KnownFrame:
    """A frame and its code.

    Attributes:
        pixels: uint8 [H, W, 3], contiguous.
        middle_row: bytes of the row half-way down, in which other frames differ.
        code: of the image.
    """

    pixels: np.ndarray
    middle_row: bytes
    code: ImageCode


class FrameCache:
    """Codes of the frames that were used last. A frame too large to be copied is not kept."""

    def __init__(self) -> None:
        """Start empty."""
        self._frames: list[KnownFrame] = []

    @property
    def nbytes(self) -> int:
        """Return the memory that the copies of the frames take."""
        return sum(known.pixels.nbytes for known in self._frames)

    def likely(self, image: np.ndarray) -> KnownFrame | None:
        """Return the known frame that `find` would, by the look of one row of it."""
        row = _middle_row(image)
        for known in self._frames:
            if known.middle_row == row and known.pixels.shape == image.shape:
                return known
        return None

    def find(self, image: np.ndarray) -> KnownFrame | None:
        """Return the known frame with these pixels, now the newest; None if there is none."""
        row = _middle_row(image)
        for index, known in enumerate(self._frames):
            if known.middle_row == row and _same_pixels(known.pixels, image):
                self._frames.insert(0, self._frames.pop(index))
                return known
        return None

    def keep(self, image: np.ndarray, code: ImageCode) -> None:
        """Remember a frame, by a copy: the caller's buffer may be reused for the next one."""
        if image.nbytes <= MAX_BYTES:
            self._frames.insert(0, KnownFrame(self._copied(image), _middle_row(image), code))

    def clear(self) -> None:
        """Forget all frames."""
        self._frames.clear()

    def _copied(self, image: np.ndarray) -> np.ndarray:
        """Make room for a frame and copy it.

        The memory of a frame that goes is taken when it fits: fresh pages cost more than the copy.
        """
        oldest = None
        while len(self._frames) >= MAX_FRAMES or self.nbytes + image.nbytes > MAX_BYTES:
            oldest = self._frames.pop().pixels
        if oldest is None or oldest.shape != image.shape:
            return image.copy()
        np.copyto(oldest, image)
        return oldest


def _middle_row(image: np.ndarray) -> bytes:
    return image[image.shape[0] // 2].tobytes()


def _same_pixels(known: np.ndarray, image: np.ndarray) -> bool:
    """Return whether two images are equal, byte for byte.

    Of 640x480 pixels, a hash would take 0.6 ms, NumPy's comparison 0.07 ms, and C's takes 0.02 ms.
    """
    if known.shape != image.shape:
        return False
    if image.flags.c_contiguous and known.flags.c_contiguous:
        return _memcmp(known.ctypes.data, image.ctypes.data, image.nbytes) == 0
    return np.array_equal(known, image)
