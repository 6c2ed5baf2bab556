# SPDX-License-Identifier: Apache-2.0
"""The seam between the segmenter and a model family.

A back-end has three stages with a value between them that can be kept: a prompt becomes a prompt
code, an image becomes an image code, both together become a probability. The segmenter owns the
caches; a back-end computes.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Engine, EngineKind
from blabberseg_ros.errors import Cancelled
from blabberseg_ros.heatmap import FusionOptions, Threshold, apply_threshold, find_threshold

# Where the back-end's engine keeps it; only the back-end looks inside.
ImageCode = Any
# Prompts that share one run of the decoder: on two cores 32 of them take 0.1 to 1.5 s.
DECODE_GROUP = 32


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
    """

    is_positive: tuple[bool, ...]
    fusion: FusionOptions
    size: tuple[int, int]
    with_probability: bool = True
    cancelled: Callable[[], bool] = never


@dataclass(frozen=True)
class Answer:
    """What the prompts say about an image, on the host.

    Attributes:
        probability: float32 [H, W] of safe ground, or None if it was not wanted.
        mask: uint8 [H, W], 255 where it is safe.
        threshold: the one that cut the mask.
        finite: whether every probability is a number; if not, nothing here can be trusted.
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


@dataclass(frozen=True)
class RunCounts:
    """How often each stage has really run, counted inside the engines."""

    image_encoder: int = 0
    text_encoder: int = 0
    decoder: int = 0


class Backend(ABC):
    """A model family on an engine, used by one thread.

    Attributes:
        family: name in a bundle's manifest.
        bundle: the model.
        kind: the engine that it runs on.
    """

    family: ClassVar[str]

    def __init__(self, bundle: Bundle, kind: EngineKind) -> None:
        """Remember the model and the engine; nothing is loaded before `activate`."""
        self.bundle = bundle
        self.kind = kind

    @property
    @abstractmethod
    def precision(self) -> str:
        """Return the precision of the image path, for example `fp32`."""

    @property
    def active_engines(self) -> tuple[Engine, ...]:
        """Return the engines that are loaded."""
        return ()

    @property
    @abstractmethod
    def run_counts(self) -> RunCounts:
        """Return how often the stages have run."""

    @abstractmethod
    def activate(self) -> None:
        """Load what every frame needs.

        Raises:
            EngineError: the engine refuses a graph.
        """

    @abstractmethod
    def deactivate(self) -> None:
        """Free everything."""

    @abstractmethod
    def read_prompt(self, text: str) -> PromptReading:
        """Say how a text will be understood, without running the network.

        Raises:
            PromptError: it cannot be used.
        """

    @abstractmethod
    def encode_prompts(self, texts: Sequence[str]) -> list[PromptCode]:
        """Return a code for each text.

        Raises:
            PromptError: a text cannot be used.
            EngineError: the network fails or answers NaN.
        """

    @abstractmethod
    def encode_image(self, image: np.ndarray) -> ImageCode:
        """Return the code of an image: uint8 [H, W, 3], RGB.

        Raises:
            EngineError: the network fails.
        """

    @abstractmethod
    def decode(self, image: ImageCode, prompts: Sequence[PromptCode]) -> Any:
        """Return logits [P, S, S], where the engine keeps them.

        Raises:
            EngineError: the network fails.
        """

    def to_host(self, value: Any) -> np.ndarray:
        """Return what `decode` gave as a NumPy array."""
        return np.asarray(value)

    @abstractmethod
    def fuse(self, logits: Any, is_positive: Sequence[bool], blur_kernel_size: int,
             size: tuple[int, int]) -> np.ndarray:
        """Return the probability of safe ground on the host.

        Args:
            logits: from `decode`.
            is_positive: for each prompt whether it stands for safe ground.
            blur_kernel_size: side of the box blur in pixels, at the model's resolution.
            size: (height, width) of the image in pixels.

        Returns:
            float32 [H, W].
        """

    def answer(self, image: ImageCode, prompts: Sequence[PromptCode], query: Query) -> Answer:
        """Decode, fuse, find the threshold and cut the mask.

        Back-ends whose engine does all of it on its device override this.

        Args:
            image: from `encode_image`.
            prompts: codes, in the order of `query.is_positive`.
            query: what is asked.

        Raises:
            EngineError: the network fails.
            Cancelled: the caller has lost interest.
        """
        started = time.perf_counter()
        logits = self._decode_in_groups(image, prompts, query)
        decoded = time.perf_counter()
        probability = self.fuse(
            logits, query.is_positive, query.fusion.blur_kernel_size, query.size)
        fused = time.perf_counter()
        finite = bool(np.isfinite(probability).all())
        threshold = find_threshold(probability, query.fusion)
        mask = apply_threshold(probability, threshold, query.fusion.on_failure)
        done = time.perf_counter()
        return Answer(probability, mask, threshold, finite, (decoded - started) * 1e3,
                      (fused - decoded) * 1e3, (done - fused) * 1e3)

    def _decode_in_groups(self, image: ImageCode, prompts: Sequence[PromptCode],
                          query: Query) -> Any:
        """Decode all prompts; many of them in groups, which bounds the memory and the wait."""
        groups = []
        for start in range(0, len(prompts), DECODE_GROUP):
            if query.cancelled():
                raise Cancelled('the work was cancelled before it was done')
            groups.append(self.decode(image, prompts[start:start + DECODE_GROUP]))
        if len(groups) == 1:
            return groups[0]
        return np.concatenate([self.to_host(logits) for logits in groups])
