# SPDX-License-Identifier: Apache-2.0
"""Pictures of the page, as data URIs: the page has no other files."""

import base64

import cv2
import numpy as np

from blabberseg_ros import viz

_JPEG_QUALITY = 80
# Wider pictures would not look better in a column of the page.
_WIDTH_PX = 352
# Unsafe, safe, and the border between them: red, green, blue, opacity.
_VEIL = ((196, 52, 60, 105), (38, 201, 123, 90), (255, 255, 255, 255))


def photo(rgb: np.ndarray) -> str:
    """Return a camera frame, uint8 [H, W, 3], as JPEG."""
    bgr = cv2.cvtColor(_fit(rgb, cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    return _uri(bgr, 'jpeg', [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def heat(probability: np.ndarray) -> str:
    """Return a probability map, float32 [H, W], in colours, as JPEG."""
    return photo(viz.colour_probability(probability))


def veil(mask: np.ndarray) -> str:
    """Return a mask, uint8 [H, W], as a transparent PNG: green safe, red unsafe, white border."""
    safe = (_fit(mask, cv2.INTER_NEAREST) > 0).astype(np.uint8)
    border = cv2.morphologyEx(safe, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8)) > 0
    rgba = np.array(_VEIL, np.uint8)[np.where(border, 2, safe)]
    return _uri(cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA), 'png', [cv2.IMWRITE_PNG_COMPRESSION, 9])


def ground(rgba: np.ndarray) -> str:
    """Return a picture with transparency, uint8 [H, W, 4], as WebP."""
    return _uri(cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA), 'webp', [cv2.IMWRITE_WEBP_QUALITY, 82])


def _fit(image: np.ndarray, interpolation: int) -> np.ndarray:
    if image.shape[1] <= _WIDTH_PX:
        return image
    height_px = max(1, round(image.shape[0] * _WIDTH_PX / image.shape[1]))
    return cv2.resize(image, (_WIDTH_PX, height_px), interpolation=interpolation)


def _uri(image: np.ndarray, kind: str, options: list[int]) -> str:
    encoded = cv2.imencode(f'.{kind}', image, options)[1]
    return f'data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}'
