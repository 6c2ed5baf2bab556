# SPDX-License-Identifier: Apache-2.0
"""Pictures of heatmaps for people; nothing computes with them."""

import cv2
import numpy as np

_SAFE_RGB = (38, 201, 123)
_UNSAFE_RGB = (196, 52, 60)
_TINT = 0.38


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image tinted green where it is safe and red where it is not.

    Args:
        image: uint8 [H, W, 3], RGB.
        mask: uint8 [H, W], not 0 where it is safe.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    safe = mask > 0
    tint = np.array((_UNSAFE_RGB, _SAFE_RGB), np.uint8)[safe.astype(np.uint8)]
    picture = cv2.addWeighted(image, 1.0 - _TINT, tint, _TINT, 0.0)
    outline, _ = cv2.findContours(
        safe.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, outline, -1, (255, 255, 255), 1)


def colour_probability(probability: np.ndarray) -> np.ndarray:
    """Return a probability as a picture: dark for 0, bright for 1.

    Args:
        probability: float32 [H, W] in 0 to 1.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    grey = (np.clip(np.nan_to_num(probability), 0.0, 1.0) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
