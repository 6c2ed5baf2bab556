# SPDX-License-Identifier: Apache-2.0
"""What the worker is given to do, and what it gives back."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from blabberseg_ros.errors import EngineError
from blabberseg_ros.heatmap import FusionOptions, Heatmap
from blabberseg_ros.prompt_cache import PromptReport
from blabberseg_ros.prompts import PromptSet


class Withdrawn(EngineError):
    """Work was not done because it has been replaced or the worker is not available."""


@dataclass(frozen=True)
class Segmented:
    """One finished image.

    Attributes:
        heatmap: the result.
        rgb: uint8 [H, W, 3], the image that it belongs to.
        prompts: the set that was used.
    """

    heatmap: Heatmap
    rgb: np.ndarray
    prompts: PromptSet


@dataclass(frozen=True)
class PromptChange:
    """A prompt set that has come into use.

    Attributes:
        prompts: the set.
        report: what the segmenter says about it, with the time that encoding took altogether.
        since_ns: time of the change, on the worker's clock.
    """

    prompts: PromptSet
    report: PromptReport
    since_ns: int


@dataclass(frozen=True)
class Frame:
    """One image of the stream.

    Attributes:
        image: returns uint8 [H, W, 3], or None if the frame is no longer worth working on. Runs
            on the worker's thread, so that frames which are never worked on cost nothing.
        fusion: options for this frame.
        with_probability: whether the probability is wanted beside the mask.
        deliver: is given the answer, on the worker's thread.
        fail: is given the reason when there is none.
    """

    image: Callable[[], np.ndarray | None]
    fusion: FusionOptions
    with_probability: bool
    deliver: Callable[[Segmented], None]
    fail: Callable[[Exception], None]


@dataclass
class Request:
    """One image that somebody waits for; see `Worker.segment`.

    Attributes:
        deadline_s: on the monotonic clock.
    """

    image: np.ndarray
    prompts: PromptSet | None
    fusion: FusionOptions
    deadline_s: float
    future: 'Future[Segmented]'


@dataclass
class Encoding:
    """A prompt set that is being encoded, or waits for it.

    Attributes:
        steps: the parts that are left to encode.
        encode_ms: time that it has taken so far.
        encoded: prompts that the text tower has encoded so far.
    """

    prompts: PromptSet
    future: 'Future[PromptChange]'
    steps: Iterator[PromptSet]
    encode_ms: float = 0.0
    encoded: int = 0
