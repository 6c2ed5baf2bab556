# SPDX-License-Identifier: Apache-2.0
"""What a camera and its link do to a picture: focus, exposure, colour cast, noise, compression."""

import cv2
import numpy as np
from numpy.typing import NDArray


def apply_sensor(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Degrade a picture at random, mildly most of the time.

    Args:
        rgb: uint8 [h, w, 3].
        rng: Source of randomness.

    Returns:
        uint8 [h, w, 3].
    """
    image: np.ndarray = rgb
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.4)))
    image = cv2.LUT(image, _tone_curves(rng))
    if rng.random() < 0.5:
        image = _add_noise(image, rng)
    if rng.random() < 0.4:
        quality = int(rng.integers(35, 95))
        _, coded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))
    return np.asarray(image, np.uint8)


def _tone_curves(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw exposure, contrast, gamma and colour cast as one table: uint8 [1, 256, 3]."""
    level = np.arange(256, dtype=np.float64) / 255.0
    gamma = np.exp(rng.normal(0, 0.18))
    gain = np.exp(rng.normal(0, 0.14)) * np.exp(rng.normal(0, 0.035, 3))
    lift = rng.normal(0, 0.02, 3)
    curve = level[:, None] ** gamma * gain + lift
    contrast = np.exp(rng.normal(0, 0.1))
    curve = (curve - 0.35) * contrast + 0.35
    return np.clip(curve * 255.0, 0, 255).astype(np.uint8)[None]


def _add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    sigma = float(rng.uniform(1.0, 7.0))
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    return cv2.add(image, noise, dtype=cv2.CV_8U)
