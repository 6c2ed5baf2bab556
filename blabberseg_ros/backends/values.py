# SPDX-License-Identifier: Apache-2.0
"""The values that cross the seam between the segmenter and a back-end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from blabberseg_ros.heatmap import FusionOptions, Threshold

# Where the back-end's engine keeps it; only the back-end looks inside.
ImageCode = Any


def never() -> bool:
    """Return False: the answer of a caller who never loses interest."""
    return False


@dataclass(frozen=True)
class PromptCode:
    """All that a decoder needs to know of one prompt, small enough to keep on disk.

    Attributes:
        arrays: named float32 or integer arrays on the host, for CLIPSeg the FiLM pair.
    """

    arrays: tuple[tuple[str, np.ndarray], ...]

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one of the arrays."""
        return dict(self.arrays)[name]


@dataclass(frozen=True)
class PromptReading:
    """How a text was understood.

    Attributes:
        text: as it was given.
        kept: what of the cleaned text was read; all of it unless it was too long.
        truncated_at: character of the cleaned text at which it was cut, or None.
        unseen_words: words that the model was never trained on.
    """

    text: str
    kept: str
    truncated_at: int | None = None
    unseen_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """What is asked of an image.

    Attributes:
        is_positive: for each prompt whether it stands for safe ground.
        fusion: blur, threshold and failure rules.
        size: (height, width) of the image in pixels.
        with_probability: whether the probability is wanted; a device need not copy it else.
        cancelled: looked at between pieces of work; True ends it with `Cancelled`.
        decode_budget_ms: time that the decoder may take, for back-ends that decode in the order
            of the prompts; None is no limit.
    """

    is_positive: tuple[bool, ...]
    fusion: FusionOptions
    size: tuple[int, int]
    with_probability: bool = True
    cancelled: Callable[[], bool] = never
    decode_budget_ms: float | None = None


@dataclass(frozen=True)
class Answer:
    """What the prompts say about an image, on the host.

    Attributes:
        probability: float32 [H, W] of safe ground, or None if it was not wanted.
        mask: uint8 [H, W], 255 where it is safe.
        threshold: the one that cut the mask.
        finite: whether every probability is a number; if not, nothing here can be trusted.
        notes: what the user should know of this answer.
        decode_ms, fuse_ms, threshold_ms: wall-clock times; a back-end that does all at once on a
            device reports the whole as `decode_ms`.
    """

    probability: np.ndarray | None
    mask: np.ndarray
    threshold: Threshold
    finite: bool
    decode_ms: float
    fuse_ms: float = 0.0
    threshold_ms: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelMap:
    """The likeliest label of each pixel.

    Attributes:
        labels: uint8 [H, W], indices into `names`.
        names: of the model's labels; of pixels without one as well, if there are such.
    """

    labels: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class RunCounts:
    """How often each stage has really run, counted inside the engines."""

    image_encoder: int = 0
    text_encoder: int = 0
    decoder: int = 0
