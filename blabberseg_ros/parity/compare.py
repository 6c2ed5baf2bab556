# SPDX-License-Identifier: Apache-2.0
"""Two engines, precisions or bundles, compared over a folder of images.

The figures are those of the parity gate and those that BlabberSeg publishes. For the latter both
maps are cut to eight bits, as BlabberSeg does, and turned into masks, once with a fixed threshold
and once with a dynamic one that each map finds for itself. The second hides a drift of the
probability, which is why the differences of probability and threshold stand beside it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from blabberseg_ros.backends.base import Backend
from blabberseg_ros.backends.values import PromptCode, Query
from blabberseg_ros.errors import NotFiniteError
from blabberseg_ros.heatmap import FusionOptions, find_threshold
from blabberseg_ros.parity.metrics import (
    AREA_FRACTIONS,
    Confusion,
    ThresholdCheck,
    centred_cosines,
    check_threshold,
    difference,
)
from blabberseg_ros.prompts import PromptSet

FIXED_THRESHOLD = 0.5


@dataclass(frozen=True)
class Judged:
    """BlabberSeg's three figures; pairs are unsafe, safe; NaN for a class that never occurs.

    Attributes:
        accuracy: share of pixels that agree (printed there as `mean_acc`).
        recall: of each class.
        iou: of each class.
    """

    accuracy: float
    recall: tuple[float, float]
    iou: tuple[float, float]

    @classmethod
    def of(cls, confusion: Confusion) -> 'Judged':
        """Read them from a confusion matrix."""
        return cls(confusion.accuracy, confusion.recall, confusion.iou)


@dataclass(frozen=True)
class ImageComparison:
    """One image by A (the reference) and B.

    Attributes:
        name: of the image.
        cosine: smallest over the prompts, on mean-centred logits; NaN where the two models have
            maps of different size.
        max_dp, p99_dp, mean_dp: absolute difference of the probabilities.
        threshold_a, threshold_b: found by each for itself.
        checks: masks at A's threshold, for several area fractions.
        fixed, dynamic: of this image alone.
    """

    name: str
    cosine: float
    max_dp: float
    p99_dp: float
    mean_dp: float
    threshold_a: float
    threshold_b: float
    checks: tuple[ThresholdCheck, ...]
    fixed: Judged
    dynamic: Judged

    @property
    def threshold_change(self) -> float:
        """Return by how much B's threshold is above A's."""
        return self.threshold_b - self.threshold_a


@dataclass(frozen=True)
class Comparison:
    """All images, and BlabberSeg's figures over all their pixels together."""

    images: tuple[ImageComparison, ...]
    fixed: Judged
    dynamic: Judged

    @property
    def flips(self) -> int:
        """Return the pixels that changed sides, over all decidable masks."""
        return sum(check.flips for image in self.images for check in image.checks
                   if check.decidable)

    @property
    def decidable(self) -> int:
        """Return the number of reference masks that are neither almost empty nor almost full."""
        return sum(check.decidable for image in self.images for check in image.checks)

    @property
    def mask_iou(self) -> float:
        """Return the smallest mask IoU at A's threshold; NaN if no mask is decidable."""
        return min((check.iou for image in self.images for check in image.checks
                    if check.decidable), default=float('nan'))


@dataclass(frozen=True)
class Side:
    """One of the two: an active back-end and its codes of the prompts."""

    backend: Backend
    codes: Sequence[PromptCode]


def compare(first: Backend, second: Backend, images: Iterable[tuple[str, np.ndarray]],
            prompts: PromptSet, fusion: FusionOptions,
            fixed_threshold: float = FIXED_THRESHOLD) -> Comparison:
    """Compare two back-ends.

    Args:
        first: the reference, active.
        second: active.
        images: name and uint8 [H, W, 3], RGB.
        prompts: what is safe and what is not.
        fusion: blur and threshold search.
        fixed_threshold: probability above which a pixel is safe, beside the dynamic one.

    Raises:
        EngineError: an engine fails or answers NaN.
    """
    sides = (Side(first, first.encode_prompts(first.texts(prompts))),
             Side(second, second.encode_prompts(second.texts(prompts))))
    fixed, dynamic = Confusion(), Confusion()
    compared = []
    for name, image in images:
        one_fixed, one_dynamic = Confusion(), Confusion()
        cosine, *maps = _answers(sides, image, prompts, fusion)
        wanted, got = maps
        _count((one_fixed, fixed), [_eight_bits(p) > fixed_threshold for p in maps])
        _count((one_dynamic, dynamic), [
            p > np.float32(find_threshold(p, fusion).value) for p in map(_eight_bits, maps)])
        apart = difference(wanted, got)
        compared.append(ImageComparison(
            name, cosine, apart.max, apart.p99, apart.mean,
            find_threshold(wanted, fusion).value, find_threshold(got, fusion).value,
            tuple(check_threshold(wanted, got, fraction, fusion) for fraction in AREA_FRACTIONS),
            Judged.of(one_fixed), Judged.of(one_dynamic)))
    return Comparison(tuple(compared), Judged.of(fixed), Judged.of(dynamic))


def _answers(sides: tuple[Side, Side], image: np.ndarray, prompts: PromptSet,
             fusion: FusionOptions) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the smallest cosine of the logits and both probabilities, float32 [H, W]."""
    size = (image.shape[0], image.shape[1])
    logits, maps = [], []
    for side in sides:
        code = side.backend.encode_image(image)
        answer = side.backend.answer(code, side.codes,
                                     Query(prompts.is_positive, fusion, size))
        if answer.probability is None or not answer.finite:
            raise NotFiniteError(f'{side.backend.kind.name} answered NaN or infinity')
        maps.append(answer.probability)
        logits.append(side.backend.to_host(side.backend.decode(code, side.codes)))
    same = logits[0].shape == logits[1].shape
    cosine = float(centred_cosines(*logits).min()) if same else float('nan')
    return cosine, maps[0], maps[1]


def _eight_bits(probability: np.ndarray) -> np.ndarray:
    """Return the probability as BlabberSeg keeps it: cut to 256 levels, then divided again."""
    return (probability * 255).astype(np.uint8).astype(np.float32) / np.float32(255)


def _count(confusions: Iterable[Confusion], masks: Sequence[np.ndarray]) -> None:
    for confusion in confusions:
        confusion.add(*masks)
