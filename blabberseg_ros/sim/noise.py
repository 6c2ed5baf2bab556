# SPDX-License-Identifier: Apache-2.0
"""Tileable band-limited noise, the raw material of every texture."""

import numpy as np
from numpy.typing import NDArray


def spectral_tile(
    rng: np.random.Generator, size_px: int, short_px: float, long_px: float, slope: float = 1.0
) -> NDArray[np.float32]:
    """Make a noise tile that repeats without a seam.

    White noise is shaped in the frequency domain, which makes it periodic for free.

    Args:
        rng: Source of randomness.
        size_px: Side of the tile.
        short_px: Shortest wavelength kept.
        long_px: Longest wavelength kept.
        slope: Amplitude falls as frequency to the minus this; 1 looks like ground and clouds.

    Returns:
        float32 [size_px, size_px], zero mean, unit variance, clipped to +-3.
    """
    spectrum = np.fft.rfft2(rng.standard_normal((size_px, size_px), dtype=np.float32))
    fy = np.fft.fftfreq(size_px)[:, None]
    fx = np.fft.rfftfreq(size_px)[None, :]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = 1.0
    gain = frequency ** -slope
    gain *= np.exp(-((frequency * short_px) ** 4)) * (1.0 - np.exp(-((frequency * long_px) ** 4)))
    gain[0, 0] = 0.0
    tile = np.fft.irfft2(spectrum * gain, s=(size_px, size_px)).astype(np.float32)
    tile /= max(float(tile.std()), 1e-6)
    return np.clip(tile, -3.0, 3.0)
