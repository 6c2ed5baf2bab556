# SPDX-License-Identifier: Apache-2.0
"""The model of a node, kept in working order: tried again, and opened again when it fails.

One thread uses it. Nothing here knows ROS.
"""

import time
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

import numpy as np

from blabberseg_ros.errors import (
    BlabbersegError,
    Cancelled,
    EngineError,
    ImageError,
    ParameterError,
    PromptError,
)
from blabberseg_ros.heatmap import FusionOptions, Heatmap
from blabberseg_ros.prompt_cache import PromptReport
from blabberseg_ros.prompts import PromptSet

REOPEN_AFTER_FAILURES = 3
REOPEN_INTERVAL_S = 5.0
PROMPT_GROUP = 32


class SegmenterLike(Protocol):
    """What the worker needs from a segmenter (see `blabberseg_ros.segmenter.Segmenter`)."""

    @property
    def engine_name(self) -> str:
        """Return the name of the engine in use."""

    def avoid(self, engines: Collection[str]) -> None:
        """Take these engines only if no other can be activated."""

    def activate(self) -> None:
        """Load what is needed to run."""

    def deactivate(self) -> None:
        """Free it."""

    def forget(self) -> None:
        """Empty the caches in memory."""

    def encode(self, prompts: PromptSet) -> PromptReport:
        """Encode the prompts that are not cached and report on them."""

    def segment(self, image: np.ndarray, prompts: PromptSet, fusion: FusionOptions, *,
                with_probability: bool, cancelled: Callable[[], bool]) -> Heatmap:
        """Segment one image, unless `cancelled` answers True on the way."""


class ModelKeeper:
    """Holds a segmenter, and stands between its failures and those who ask.

    Attributes:
        segmenter: the open model, or None.
        failures: images in a row that could not be segmented for reasons of the model.
        retries: images that were tried a second time.
    """

    def __init__(self, warn: Callable[[str], object]) -> None:
        """Hold nothing yet.

        Args:
            warn: is given a sentence when the model is opened again.
        """
        self._warn = warn
        self._opener: Callable[[], SegmenterLike] | None = None
        self._reopened_s = float('-inf')
        # Whether it was opened again and has segmented nothing since.
        self._on_trial = False
        self._avoided: set[str] = set()
        self.segmenter: SegmenterLike | None = None
        self.failures = 0
        self.retries = 0

    def open(self, opener: Callable[[], SegmenterLike]) -> None:
        """Let go of the model that is open, and open another."""
        self.close()
        self._opener = opener
        self.segmenter = opener()

    def activate(self) -> None:
        """Load the open model onto its device."""
        self._require().activate()

    def deactivate(self) -> None:
        """Free the device."""
        if self.segmenter is not None:
            self.segmenter.deactivate()

    def close(self) -> None:
        """Let go of the model."""
        self._opener = None
        self.failures = 0
        self._on_trial = False
        self._avoided.clear()
        self._let_go()

    def encode(self, prompts: PromptSet) -> PromptReport:
        """Encode the prompts that are not known yet."""
        return self._require().encode(prompts)

    def segment(self, image: np.ndarray, prompts: PromptSet, fusion: FusionOptions, *,
                with_probability: bool, cancelled: Callable[[], bool]) -> Heatmap:
        """Segment, and try once more with freed caches if the device failed.

        Args:
            image: uint8 [H, W, 3].
            prompts: what is safe and what is not.
            fusion: how probabilities become a mask.
            with_probability: whether the probability is wanted beside the mask.
            cancelled: looked at between pieces of work; True ends it.

        Raises:
            BlabbersegError: the image cannot be segmented.
        """
        def attempt() -> Heatmap:
            self._encode_in_groups(prompts, cancelled)
            heatmap = self._require().segment(
                image, prompts, fusion, with_probability=with_probability, cancelled=cancelled)
            self.failures = 0
            self._on_trial = False
            return heatmap

        try:
            return attempt()
        except (Cancelled, ImageError, ParameterError, PromptError):
            raise
        # ONNX Runtime and CUDA raise their own types for out of memory and lost devices.
        except Exception:
            self.retries += 1
        try:
            self._require().forget()
            return attempt()
        except Cancelled:
            raise
        except Exception as error:
            self.failures += 1
            if self.failures >= REOPEN_AFTER_FAILURES:
                self._reopen()
            if isinstance(error, BlabbersegError):
                raise
            raise EngineError(
                f'the model failed twice on this frame: {error!r}; the frame was not '
                'segmented. If it goes on, restart the node or use another engine') from error

    def _encode_in_groups(self, prompts: PromptSet, cancelled: Callable[[], bool]) -> None:
        """Encode many prompts a group at a time, so that a caller who has left holds up nobody."""
        if len(prompts) <= PROMPT_GROUP:
            return
        for part in in_parts(prompts, PROMPT_GROUP):
            if cancelled():
                raise Cancelled('the caller has not waited for the prompts to be encoded')
            self._require().encode(part)

    def _require(self) -> SegmenterLike:
        if self.segmenter is None and self._opener is not None:
            self._reopen()
        if self.segmenter is None:
            raise EngineError('no model is open; configure the node first, or see its log')
        return self.segmenter

    def _reopen(self) -> None:
        """Open the model anew after repeated failures, not more often than each 5 s.

        If that does not help, the next time is on another engine, where there is one.
        """
        now_s = time.monotonic()
        if self._opener is None or now_s - self._reopened_s < REOPEN_INTERVAL_S:
            return
        self._reopened_s = now_s
        if self._on_trial and self.segmenter is not None:
            self._avoided.add(self.segmenter.engine_name)
        self._warn('the model failed repeatedly; opening it again' + (
            f', if possible not on {" or ".join(sorted(self._avoided))}' if self._avoided else ''))
        try:
            self._let_go()
            segmenter = self._opener()
            segmenter.avoid(self._avoided)
            segmenter.activate()
            self.segmenter = segmenter
            self._on_trial = True
        except Exception as error:
            self._warn(f'the model could not be opened again, next try in '
                       f'{REOPEN_INTERVAL_S:.0f} s: {error}')

    def _let_go(self) -> None:
        segmenter, self.segmenter = self.segmenter, None
        if segmenter is not None:
            segmenter.deactivate()


def in_parts(prompts: PromptSet, size: int) -> Iterator[PromptSet]:
    """Yield parts of a set that add up to `size` prompts each to those before (the first: more).

    A part is a set as well, so the first prompt of each kind is in every part of the other.
    """
    positive, negative, template = prompts.positive, prompts.negative, prompts.template
    for start in range(0, len(positive), size):
        yield PromptSet(positive[start:start + size], negative[:1], template)
    for start in range(1, len(negative), size):
        yield PromptSet(positive[:1], negative[start:start + size], template)
