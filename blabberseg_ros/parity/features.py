# SPDX-License-Identifier: Apache-2.0
"""Dense features of engines, precisions and checkpoints, compared over images and sizes."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.errors import ParameterError

_FRAME_PX = 8


@dataclass(frozen=True)
class FeatureComparison:
    """One image at one size by two variants.

    Attributes:
        first, second: names of the variants.
        image: name.
        side_px: of the square that the image was stretched to.
        cosine: of the whole maps, as one vector each, as the Lab's tool prints it.
        mean_cosine, min_cosine: of the pixels' vectors.
        l2: length of the difference of the whole maps, as the Lab's tool prints it.
        relative_l2: the same over the length of the first map.
    """

    first: str
    second: str
    image: str
    side_px: int
    cosine: float
    mean_cosine: float
    min_cosine: float
    l2: float
    relative_l2: float


@dataclass(frozen=True)
class Compared:
    """Figures and a picture of one image at one size, uint8 [h, w, 3], RGB."""

    figures: FeatureComparison
    picture: np.ndarray


def compare_features(variants: Mapping[str, LSegBackend],
                     images: Iterable[tuple[str, np.ndarray]],
                     sides_px: Sequence[int]) -> Iterator[Compared]:
    """Compare every pair of variants.

    Args:
        variants: name to back-end, active.
        images: name and uint8 [H, W, 3], RGB.
        sides_px: squares that each image is stretched to, multiples of 32.

    Raises:
        ParameterError: there are not two variants, or their vectors are not of one length.
        EngineError: an engine fails or answers NaN.
    """
    if len(variants) < 2:
        raise ParameterError('two different variants are needed to compare anything')
    for name, image in images:
        for side_px in sides_px:
            maps = {variant: backend.features(backend.encode_image_at(image, side_px, side_px))
                    for variant, backend in variants.items()}
            for first, second in itertools.combinations(maps, 2):
                figures = _figures(first, second, name, side_px, maps[first], maps[second])
                yield Compared(figures, picture_of(maps[first], maps[second]))


def picture_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return both maps along the axis on which the first varies most, and how they differ.

    Args:
        first: unit vectors, float32 [D, h, w].
        second: likewise.

    Returns:
        uint8 [h, 3 * w + 16, 3], RGB: first, second, and 1 - cosine of each pixel, black for equal
        and bright for the largest difference of the image.
    """
    depth, height, width = first.shape
    vectors = [value.reshape(depth, -1).astype(np.float64) for value in (first, second)]
    mean = vectors[0].mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh((vectors[0] - mean) @ (vectors[0] - mean).T)
    along = [axes[:, -1] @ (value - mean) for value in vectors]
    low, high = along[0].min(), along[0].max()
    apart = 1 - (vectors[0] * vectors[1]).sum(axis=0)
    scaled = [(value - low) / max(high - low, 1e-12) for value in along]
    scaled.append(apart / max(apart.max(), 1e-12))
    panels = [cv2.applyColorMap((np.clip(value, 0, 1) * 255).astype(np.uint8).reshape(
        height, width), kind)[..., ::-1] for value, kind in zip(
            scaled, (cv2.COLORMAP_VIRIDIS, cv2.COLORMAP_VIRIDIS, cv2.COLORMAP_INFERNO),
            strict=True)]
    frame = np.full((height, _FRAME_PX, 3), 255, np.uint8)
    return np.concatenate([panels[0], frame, panels[1], frame, panels[2]], axis=1)


def _figures(first: str, second: str, image: str, side_px: int, wanted: np.ndarray,
             got: np.ndarray) -> FeatureComparison:
    if wanted.shape != got.shape:
        raise ParameterError(f'the vectors of {first} have {len(wanted)} numbers and those of '
                             f'{second} {len(got)}; they cannot be compared')
    # In single precision the cosine of such long vectors comes out above 1.
    a, b = (value.reshape(len(value), -1).astype(np.float64) for value in (wanted, got))
    cosines = (a * b).sum(axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0))
    l2 = float(np.linalg.norm(a - b))
    return FeatureComparison(
        first, second, image, side_px,
        float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))),
        float(cosines.mean()), float(cosines.min()), l2, l2 / float(np.linalg.norm(a)))
