# SPDX-License-Identifier: Apache-2.0
"""From logits to a landing heatmap: the readable reference that every engine is tested against.

The rules are DOVESEI's (`generate_landing_heatmap`): softmax over the prompts, sum of the
positive ones, box blur at the model's resolution, bilinear resize to the image, then a threshold
that is lowered in a hundred steps until enough of the image is safe.
"""

import bisect
import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from blabberseg_ros.errors import ParameterError

THRESHOLD_STEPS = 100
SAFE, UNSAFE = 255, 0
MAX_BLUR_KERNEL = 127
ON_FAILURE = ('unsafe', 'dovesei')


@dataclass(frozen=True)
class FusionOptions:
    """How probabilities become a mask.

    Attributes:
        safety_threshold: probability from which the search starts, above 0; a pixel is safe when
            its probability is strictly above the threshold found.
        blur_kernel_size: side of the box blur in pixels at the model's resolution, 1 to 127;
            1 means no blur.
        dynamic_threshold: fraction of the image that shall be safe, 0 to 1; the threshold is
            lowered until it is. 0 or less switches the search off.
        min_threshold: floor under which the search never goes; 0 means none, as in DOVESEI.
        on_failure: mask of an unsuccessful search: `unsafe` (all black) or `dovesei` (what the
            last threshold gives, close to 0 and so almost all white).

    Raises:
        ParameterError: on construction, when a value is out of its bounds.
    """

    safety_threshold: float = 0.8
    blur_kernel_size: int = 15
    dynamic_threshold: float = 0.1
    min_threshold: float = 0.0
    on_failure: str = 'unsafe'

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        for name in ('safety_threshold', 'dynamic_threshold', 'min_threshold'):
            if not math.isfinite(getattr(self, name)):
                raise ParameterError(f'{name} is {getattr(self, name)}; it must be a number')
        if self.safety_threshold <= 0:
            raise ParameterError(
                f'safety_threshold is {self.safety_threshold}; it must be above 0, or every pixel '
                'would count as safe')
        if not 1 <= self.blur_kernel_size <= MAX_BLUR_KERNEL:
            raise ParameterError(
                f'blur_kernel_size is {self.blur_kernel_size}; it must be 1 (no blur) to '
                f'{MAX_BLUR_KERNEL} pixels')
        if self.min_threshold < 0:
            raise ParameterError(
                f'min_threshold is {self.min_threshold}; it must be 0 (off) or more')
        if self.on_failure not in ON_FAILURE:
            raise ParameterError(
                f'on_failure is {self.on_failure!r}; it must be one of {", ".join(ON_FAILURE)}')


@dataclass(frozen=True)
class Timings:
    """Wall-clock time of one call, per stage, in milliseconds; 0 for a stage that did not run."""

    encode_text_ms: float = 0.0
    encode_image_ms: float = 0.0
    decode_ms: float = 0.0
    fuse_ms: float = 0.0
    threshold_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class CacheHits:
    """What one call did not have to compute again.

    Attributes:
        image: the image code came from the cache.
        prompts: number of prompts whose code came from the cache.
        prompts_encoded: number of prompts that the text tower had to encode.
    """

    image: bool = False
    prompts: int = 0
    prompts_encoded: int = 0


@dataclass(frozen=True)
class Threshold:
    """Outcome of the threshold search.

    Attributes:
        value: the threshold found, or the last one tested.
        success: whether enough of the image is above it.
    """

    value: float
    success: bool


@dataclass(frozen=True)
class ThresholdTable:
    """What a threshold search tries.

    Attributes:
        tested: thresholds in the order of the search, falling.
        failed: threshold that is reported when none of them has enough safe pixels.
        wanted: fraction of the image that has to be above the threshold.
    """

    tested: tuple[float, ...]
    failed: float
    wanted: float


@dataclass(frozen=True)
class Heatmap:
    """Where to land.

    Attributes:
        mask: uint8 [H, W], 255 where it is safe, 0 where it is not or is not known.
        probability: float32 [H, W], the summed probability of the positive prompts; None if the
            caller did not want it.
        threshold: probability above which a pixel counts as safe.
        success: whether enough of the image is safe.
        message: what a user should know about this answer; empty when there is nothing.
        timings: wall-clock time per stage.
        cache_hits: what came from the caches.
    """

    mask: np.ndarray
    probability: np.ndarray | None
    threshold: float
    success: bool
    message: str = ''
    timings: Timings = field(default_factory=Timings)
    cache_hits: CacheHits = field(default_factory=CacheHits)


def positive_probability(logits: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    """Return the softmax over the prompts, summed over the positive ones.

    Args:
        logits: float32 [P, S, S].
        is_positive: bool or float32 [P].

    Returns:
        float32 [S, S].
    """
    shifted = np.exp(logits - logits.max(axis=0, keepdims=True))
    weights = np.asarray(is_positive, dtype=np.float32)
    return np.tensordot(weights, shifted, axes=1) / shifted.sum(axis=0)


def blur_and_resize(probability: np.ndarray, blur_kernel_size: int, height: int,
                    width: int) -> np.ndarray:
    """Return the probability, blurred with a box and resized bilinearly to the image.

    Args:
        probability: float32 [S, S].
        blur_kernel_size: side of the box in pixels.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        float32 [height, width].
    """
    blurred = cv2.blur(probability, (blur_kernel_size, blur_kernel_size))
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)


def threshold_table(options: FusionOptions) -> ThresholdTable:
    """Return the thresholds that DOVESEI's loop would test.

    The loop tests s, s - s/100, … s - 99 s/100; the hundredth step is applied but never checked.
    Our floor ends the search earlier.
    """
    start, floor = options.safety_threshold, options.min_threshold
    first = max(start, floor) if floor > 0 else start
    if options.dynamic_threshold <= 0:
        return ThresholdTable((first,), first, 0.0)
    step = start / THRESHOLD_STEPS
    tested = tuple(start - step * index for index in range(THRESHOLD_STEPS))
    failed = start - step * THRESHOLD_STEPS
    if floor > 0:
        tested = tuple(value for value in tested if np.float32(value) >= np.float32(floor))
        failed = tested[-1] if tested else first
    return ThresholdTable(tested, failed, options.dynamic_threshold)


def find_threshold(probability: np.ndarray, options: FusionOptions) -> Threshold:
    """Lower the threshold until enough of the image is safe.

    The result is that of DOVESEI's loop, without its hundred passes: the fraction of safe pixels
    never falls from one step to the next, so the first step that has enough is found by
    bisection. Thresholds are computed in double precision and compared in single, as NumPy does
    in the loop.

    Args:
        probability: float32 [H, W]. A NaN pixel is never safe.
        options: `safety_threshold`, `dynamic_threshold` and `min_threshold` are used.
    """
    table = threshold_table(options)

    def enough(value: float) -> bool:
        return _fraction_above(probability, value) >= table.wanted

    index = bisect.bisect_left(table.tested, True, key=enough)
    success = index < len(table.tested)
    value = table.tested[index] if success else table.failed
    return Threshold(value, success)


def apply_threshold(probability: np.ndarray, threshold: Threshold, on_failure: str) -> np.ndarray:
    """Return the mask: uint8 [H, W], 255 where the probability is strictly above the threshold.

    An unsuccessful search gives an all-black mask, unless `on_failure` is `dovesei`.
    """
    if not threshold.success and on_failure == 'unsafe':
        return np.zeros(probability.shape, np.uint8)
    return (probability > np.float32(threshold.value)).astype(np.uint8) * np.uint8(SAFE)


def _fraction_above(probability: np.ndarray, threshold: float) -> float:
    return np.count_nonzero(probability > np.float32(threshold)) / max(probability.size, 1)
