# SPDX-License-Identifier: Apache-2.0
"""How far two answers are apart: logits, probabilities, thresholds, masks. NumPy only."""

from dataclasses import dataclass, replace

import numpy as np

from blabberseg_ros.heatmap import FusionOptions, find_threshold

# A reference mask that covers less or more than this decides nothing: almost every other map
# would give the same mask.
DECIDABLE_COVERAGE = (0.05, 0.95)
# Pixels whose reference probability is this close to the threshold may fall on either side.
FLIP_MARGIN = 0.02
AREA_FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Difference:
    """Absolute difference of two maps over all pixels: largest, 99th percentile, mean."""

    max: float
    p99: float
    mean: float


@dataclass(frozen=True)
class ThresholdCheck:
    """Two probability maps cut at the threshold that the reference asks for.

    Attributes:
        fraction: of the image that shall be safe, from which the threshold follows.
        threshold: DOVESEI's dynamic one, found on the reference.
        coverage: fraction of the image above it in the reference.
        flips: pixels on the other side of it than in the reference, although the reference is
            not within FLIP_MARGIN of it.
        iou: intersection over union of the two masks.
    """

    fraction: float
    threshold: float
    coverage: float
    flips: int
    iou: float

    @property
    def decidable(self) -> bool:
        """Return whether the reference mask is neither almost empty nor almost full."""
        low, high = DECIDABLE_COVERAGE
        return low <= self.coverage <= high


def centred_cosines(reference: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Return the cosine between the logits of two engines, per prompt, means taken off first.

    Without the means, two unrelated maps with the same offset would look alike.

    Args:
        reference: float [P, S, S].
        tested: float [P, S, S].

    Returns:
        float64 [P]; 0 where a map is constant, NaN where it holds NaN.
    """
    flat = [logits.reshape(len(logits), -1).astype(np.float64) for logits in (reference, tested)]
    first, second = (logits - logits.mean(axis=1, keepdims=True) for logits in flat)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = (first * second).sum(axis=1)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths != 0)


def difference(reference: np.ndarray, tested: np.ndarray) -> Difference:
    """Return how far two maps of the same shape are apart; NaN where one holds NaN."""
    apart = np.abs(reference.astype(np.float64) - tested.astype(np.float64))
    if not np.isfinite(apart).all():
        return Difference(np.nan, np.nan, np.nan)
    return Difference(float(apart.max()), float(np.percentile(apart, 99)), float(apart.mean()))


def check_threshold(reference: np.ndarray, tested: np.ndarray, fraction: float,
                    fusion: FusionOptions | None = None) -> ThresholdCheck:
    """Cut two probability maps at the reference's threshold for an area fraction.

    The same threshold for both: a search of its own for each map would move by a whole step
    (safety_threshold / 100) when one pixel does.

    Args:
        reference: float32 [H, W].
        tested: float32 [H, W].
        fraction: of the image that shall be safe.
        fusion: start of the search; DOVESEI's if None.
    """
    search = replace(fusion or FusionOptions(), dynamic_threshold=fraction)
    threshold = find_threshold(reference, search)
    cut = np.float32(threshold.value)
    wanted, got = reference > cut, tested > cut
    clear = np.abs(reference - cut) > FLIP_MARGIN
    return ThresholdCheck(fraction, threshold.value, float(wanted.mean()),
                          int(np.count_nonzero((wanted != got) & clear)), mask_iou(wanted, got))


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = np.count_nonzero((first != 0) | (second != 0))
    return float(np.count_nonzero((first != 0) & (second != 0)) / union) if union else 1.0


class Confusion:
    """Pixels of two classes (0 unsafe, 1 safe) over many images, as BlabberSeg counts them.

    Attributes:
        counts: int64 [2, 2]; rows are the reference, columns what is tested.
    """

    def __init__(self) -> None:
        """Start with no pixels."""
        self.counts = np.zeros((2, 2), np.int64)

    def add(self, reference: np.ndarray, tested: np.ndarray) -> None:
        """Count the pixels of one pair of masks, bool [H, W]."""
        pairs = 2 * (reference != 0).astype(np.intp) + (tested != 0)
        self.counts += np.bincount(pairs.ravel(), minlength=4).reshape(2, 2)

    @property
    def accuracy(self) -> float:
        """Return the share of pixels that agree; BlabberSeg prints it as `mean_acc`."""
        return float(np.trace(self.counts) / max(self.counts.sum(), 1))

    @property
    def recall(self) -> tuple[float, float]:
        """Return, for each class, the share of its reference pixels that agree; NaN if none."""
        return self._shares(self.counts.sum(axis=1))

    @property
    def iou(self) -> tuple[float, float]:
        """Return the intersection over union of each class; NaN if it occurs in neither."""
        diagonal = np.diag(self.counts)
        return self._shares(self.counts.sum(axis=0) + self.counts.sum(axis=1) - diagonal)

    def _shares(self, totals: np.ndarray) -> tuple[float, float]:
        unsafe, safe = (float(count / total) if total else float('nan')
                        for count, total in zip(np.diag(self.counts), totals, strict=True))
        return unsafe, safe
