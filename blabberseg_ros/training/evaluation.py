# SPDX-License-Identifier: Apache-2.0
"""How well a prompted model tells safe from unsafe ground, and whether it obeys its prompts.

The same functions judge the network in training and the shipped bundle: they only see a
`Predictor`. Needs neither torch nor an engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from blabberseg_ros.errors import ImageError
from blabberseg_ros.prompts import DEFAULT_TEMPLATE, PromptSet, default_prompts
from blabberseg_ros.sim.classes import CLASSES, SAFE
from blabberseg_ros.training.lexicon import TERMS
from blabberseg_ros.training.views import LabelledView

CLASS_IDS = {name: index for index, name in CLASSES.items() if index != 0}
UNKNOWN = 0
_BINS = 200


class Predictor(Protocol):
    """Anything that answers where it is safe."""

    def probability(self, image: np.ndarray, prompts: PromptSet) -> np.ndarray:
        """Return the summed probability of the positive prompts, without blur.

        Args:
            image: uint8 [H, W, 3], RGB.
            prompts: what is safe and what is not.

        Returns:
            float32 [H, W].
        """


@dataclass(frozen=True)
class SafetyScore:
    """Intersection over union of safe and of unsafe ground with DOVESEI's default prompts.

    Pixels of one group of views are counted together; the groups are then averaged.

    Attributes:
        threshold: a pixel is called safe when its probability is above it.
        safe_iou: of the safe classes.
        unsafe_iou: of the unsafe classes.
        recall: share of each class's pixels that are called what they are, by class name.
        views: number of views.
    """

    threshold: float
    safe_iou: float
    unsafe_iou: float
    recall: dict[str, float]
    views: int


@dataclass(frozen=True)
class Flip:
    """How many of a class's safe pixels turn unsafe with it.

    Attributes:
        threshold: a pixel is called safe when its probability is above it.
        safe_before: share of the class's pixels that are safe while it is positive.
        flipped: share of these that are unsafe while it is negative.
    """

    threshold: float
    safe_before: float
    flipped: float


@dataclass(frozen=True)
class ObedienceScore:
    """What happens on a class's pixels when it alone goes from positive to negative.

    Attributes:
        name: of the class.
        phrase: prompt that stands for it.
        before: mean probability of its pixels while it is positive.
        after: the same while it is negative.
        flips: one for each threshold that was asked for.
        pixels: number of its pixels.
    """

    name: str
    phrase: str
    before: float
    after: float
    flips: tuple[Flip, ...]
    pixels: int


@dataclass(frozen=True)
class Histograms:
    """Pixels of a number of views by group, class and probability.

    Attributes:
        views: number of views that were counted.
        counts: int64 [groups, classes, bins]; bin k of n holds probabilities in (k/n, (k+1)/n].
    """

    views: int
    counts: np.ndarray


def histograms(predictor: Predictor, views: Sequence[LabelledView]) -> Histograms:
    """Count the probabilities that the default prompts give, by group and class."""
    prompts = default_prompts()
    groups = tuple(dict.fromkeys(view.group for view in views))
    counts = np.zeros((len(groups), max(CLASSES) + 1, _BINS), np.int64)
    for view in views:
        probability = predictor.probability(view.rgb, prompts)
        bins = np.clip(np.ceil(probability * _BINS).astype(np.intp) - 1, 0, _BINS - 1)
        index = view.labels.astype(np.intp) * _BINS + bins
        counts[groups.index(view.group)] += np.bincount(
            index.ravel(), minlength=counts[0].size).reshape(counts[0].shape)
    return Histograms(len(views), counts)


def choose_threshold(found: Histograms) -> float:
    """Return the threshold that gives the best worse one of the two classes' IoU."""
    thresholds = np.arange(1, _BINS) / _BINS
    worse = [min(_ious(found, threshold)) for threshold in thresholds]
    return float(thresholds[int(np.argmax(worse))])


def safety_score(found: Histograms, threshold: float) -> SafetyScore:
    """Judge a threshold (a multiple of 1/200) on what was counted."""
    first = round(threshold * _BINS)
    counts = found.counts.sum(0)
    recall = {}
    for name, index in CLASS_IDS.items():
        total, above = counts[index].sum(), counts[index, first:].sum()
        if total:
            recall[name] = float((above if index in SAFE else total - above) / total)
    safe_iou, unsafe_iou = _ious(found, threshold)
    return SafetyScore(threshold, safe_iou, unsafe_iou, recall, found.views)


def obedience_scores(predictor: Predictor, views: Sequence[LabelledView],
                     thresholds: Sequence[float],
                     phrases: dict[str, Sequence[str]]) -> list[ObedienceScore]:
    """Move each class alone from positive to negative and look at its pixels.

    One prompt stands for each class; the safe classes and the one in question are positive, all
    others negative. Then the one in question is negative as well, or no longer positive if it is
    one of the safe ones. Nothing else changes.

    Args:
        predictor: the model.
        views: with ground truth.
        thresholds: a pixel is safe when its probability is above one of these, each counted apart.
        phrases: by class name, what to call it in turn.
    """
    totals: dict[tuple[str, str], np.ndarray] = {}
    limits = np.asarray(thresholds, np.float32)[:, None]
    for view in views:
        for name, index in CLASS_IDS.items():
            where = view.labels == index
            if not where.any():
                continue
            for phrase in phrases[name]:
                before, after = (
                    predictor.probability(view.rgb, class_prompts(name, phrase, positive))[where]
                    for positive in (True, False))
                safe = before > limits
                row = np.concatenate([
                    [where.sum(), before.sum(dtype=np.float64), after.sum(dtype=np.float64)],
                    safe.sum(1), (safe & (after <= limits)).sum(1)])
                totals[name, phrase] = totals.get((name, phrase), 0) + row
    return [_obedience_score(name, phrase, row, thresholds)
            for (name, phrase), row in sorted(totals.items())]


def _obedience_score(name: str, phrase: str, row: np.ndarray,
                     thresholds: Sequence[float]) -> ObedienceScore:
    pixels, before, after = row[:3]
    safe, flipped = row[3:].reshape(2, -1)
    return ObedienceScore(name, phrase, float(before / pixels), float(after / pixels), tuple(
        Flip(threshold, float(count / pixels), float(turned / max(count, 1)))
        for threshold, count, turned in zip(thresholds, safe, flipped, strict=True)), int(pixels))


def class_prompts(name: str, phrase: str, positive: bool) -> PromptSet:
    """Return one prompt a class; `name` is called `phrase` and is positive or negative."""
    texts = {other: TERMS[other].canonical for other in TERMS} | {name: phrase}
    safe = {other for other in TERMS if CLASS_IDS[other] in SAFE} - {name}
    if positive:
        safe.add(name)
    return PromptSet(tuple(text for other, text in texts.items() if other in safe),
                     tuple(text for other, text in texts.items() if other not in safe),
                     DEFAULT_TEMPLATE)


def canonical_phrases() -> dict[str, Sequence[str]]:
    """Return each class's plain name."""
    return {name: (terms.canonical,) for name, terms in TERMS.items()}


def held_out_phrases() -> dict[str, Sequence[str]]:
    """Return for each class the three phrases that training never shows."""
    return {name: terms.held_out for name, terms in TERMS.items()}


def read_real_frames(folder: Path) -> list[LabelledView]:
    """Read hand-labelled frames: `frames_dev/NAME.png` and `labels_dev/NAME.png`.

    The part of a name before the first underscore is the video that it was taken from: its group.

    Raises:
        ImageError: there are none, or one cannot be read.
    """
    views = []
    for path in sorted((folder / 'labels_dev').glob('*.png')):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        image = cv2.imread(str(folder / 'frames_dev' / path.name), cv2.IMREAD_COLOR)
        if labels is None or image is None or labels.shape != image.shape[:2]:
            raise ImageError(f'{path} and its frame are not an image and a label map of one size')
        views.append(LabelledView(path.stem.split('_')[0],
                                  np.ascontiguousarray(image[..., ::-1]), labels))
    if not views:
        raise ImageError(f'{folder} holds no labels_dev/*.png; give the folder of the real frames')
    return views


def _ious(found: Histograms, threshold: float) -> tuple[float, float]:
    """Return the IoU of safe and of unsafe ground, averaged over the groups."""
    first = round(threshold * _BINS)
    safe = np.array([index in SAFE for index in range(found.counts.shape[1])])
    unsafe = ~safe
    unsafe[UNKNOWN] = False
    above, below = found.counts[:, :, first:].sum(2), found.counts[:, :, :first].sum(2)
    wrong = above[:, unsafe].sum(1) + below[:, safe].sum(1)
    right_safe, right_unsafe = above[:, safe].sum(1), below[:, unsafe].sum(1)
    return (float(np.mean(right_safe / np.maximum(right_safe + wrong, 1))),
            float(np.mean(right_unsafe / np.maximum(right_unsafe + wrong, 1))))
