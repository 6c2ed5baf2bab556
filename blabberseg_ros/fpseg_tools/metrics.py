# SPDX-License-Identifier: Apache-2.0
"""Intersection over union: of each class, of the semantic map, and pooled as FPSeg reports it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Counts:
    """Pixels of binary masks, each frame and class apart.

    Attributes:
        intersection: int64 [F, N], predicted and true.
        union: int64 [F, N], predicted or true.
        intersection_counted: as `intersection`, without pixels whose label is ignored.
        union_counted: as `union`, without pixels whose label is ignored.
        loss: float64 [F, N], mean binary cross-entropy over the frame's pixels.
        confusion: int64 [E + 1, E], true (the last row: none of them) by chosen exclusive class.
    """

    intersection: np.ndarray
    union: np.ndarray
    intersection_counted: np.ndarray
    union_counted: np.ndarray
    loss: np.ndarray
    confusion: np.ndarray

    @classmethod
    def zeros(cls, frames: int, classes: int, exclusive: int) -> 'Counts':
        """Return counts of nothing."""
        pairs = np.zeros((4, frames, classes), np.int64)
        return cls(pairs[0], pairs[1], pairs[2], pairs[3], np.zeros((frames, classes)),
                   np.zeros((exclusive + 1, exclusive), np.int64))


@dataclass(frozen=True)
class Figures:
    """What a model is worth.

    Attributes:
        class_iou: IoU of each class's own mask (logit above 0) over all frames; NaN for a class
            that neither occurs nor was predicted.
        miou: mean of `class_iou`.
        semantic_iou: IoU of each exclusive class in the map of the highest logits, over pixels
            whose true class is one of them: Cityscapes' own protocol for its 19 classes.
        semantic_miou: its mean; NaN without exclusive classes.
        pooled_iou: intersection over union, each summed over a class-balanced sample of frames
            and classes. FPSeg's programs call this figure mIoU; it is none.
        loss: mean binary cross-entropy of that sample.
    """

    class_iou: tuple[float, ...]
    miou: float
    semantic_iou: tuple[float, ...]
    semantic_miou: float
    pooled_iou: float
    loss: float


def figures_of(counts: Counts, examples: np.ndarray) -> Figures:
    """Return the figures.

    Args:
        counts: of all frames and classes.
        examples: int64 [E, 2] of frame and class, the sample of the pooled IoU.
    """
    frame, index = examples.T
    class_iou = _ratio(counts.intersection_counted.sum(axis=0), counts.union_counted.sum(axis=0))
    known = counts.confusion[:-1]
    hits = np.diagonal(known)
    semantic_iou = _ratio(hits, known.sum(axis=0) + known.sum(axis=1) - hits)
    pooled = _ratio(counts.intersection[frame, index].sum(keepdims=True),
                    counts.union[frame, index].sum(keepdims=True))
    return Figures(tuple(class_iou.tolist()), _mean(class_iou), tuple(semantic_iou.tolist()),
                   _mean(semantic_iou), float(pooled[0]), float(counts.loss[frame, index].mean()))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float('nan')
