# SPDX-License-Identifier: Apache-2.0
"""FPSeg: named classes, chosen, ordered and added at run time, decoded within a time budget.

A prompt is the name of a class, or an alias for some. The image code is the encoder's embedding;
the decoder takes the classes' tokens as inputs, so which classes a frame is asked for, how many
and in which order is up to the caller. Each class is decoded once, however many prompts mean it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from blabberseg_ros.backends.base import DECODE_GROUP, Backend
from blabberseg_ros.backends.fpseg_classes import Classes
from blabberseg_ros.backends.fpseg_fit import fitted_size, matrices_in, matrices_out
from blabberseg_ros.backends.values import (
    Answer,
    ImageCode,
    LabelMap,
    PromptCode,
    PromptReading,
    Query,
    never,
)
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.errors import Cancelled, ParameterError
from blabberseg_ros.heatmap import blur_and_resize
from blabberseg_ros.models.fpseg_config import FpSegConfig
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.resampling import read_only

# Label of a pixel in which no class is seen.
NO_CLASS = 'none'
# A label map holds one byte a pixel.
MAX_LABELS = 256
# Logits of a class that was not looked for: absent if it were safe, everywhere if it were not.
_ABSENT, _EVERYWHERE = -1e4, 1e4
# Classes that are decoded at once where the time is limited. An engine that is built for each set
# of shapes is built for these few in advance.
_TIMED_GROUPS = (8, 4, 2, 1)
# A new measurement's share in the estimate of what a class costs.
_NEWEST = 0.3


@dataclass(frozen=True)
class SemanticMap:
    """Which class is where.

    Attributes:
        classes: int32 [h, w] at the resolution of the masks: index in `names`, or -1 where none
            of them is seen.
        names: of the classes that were looked for, in the order of the call.
        not_decoded: names of the classes for which the time budget did not last.
    """

    classes: np.ndarray
    names: tuple[str, ...]
    not_decoded: tuple[str, ...] = ()

    def at_size(self, height: int, width: int) -> np.ndarray:
        """Return the map at another size, int32 [height, width], each pixel from its nearest."""
        return cv2.resize(self.classes, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


class FpSegBackend(Backend):
    """FPSeg on any engine, one graph a stage.

    Attributes:
        config: of the network.
        not_decoded: names of the classes that the last frame's time budget did not last for.
    """

    family = 'fpseg'
    reads_template = False
    # A code is the numbers of classes, which say nothing without the files they came from.
    keeps_codes = False
    decodes_in_order = True

    def __init__(self, bundle: Bundle, kind: EngineKind) -> None:
        """Make the engines and read the classes."""
        super().__init__(bundle, kind)
        self.config = FpSegConfig.from_dict(bundle.manifest.architecture)
        self.not_decoded: tuple[str, ...] = ()
        self._classes = Classes(bundle, self.config)
        self._class_s: float | None = None
        self._warm = False

    def deactivate(self) -> None:
        """Free everything."""
        super().deactivate()
        self._warm = False

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages."""
        return 'image_encoder', 'decoder', 'fusion', 'merge'

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of all classes that can be asked for."""
        return self._classes.names

    def add_classes(self, path: Path) -> tuple[str, ...]:
        """Make the classes of a file of prompts available as well; nothing else changes.

        Args:
            path: a file of prompts that were tuned for this bundle's encoder and decoder.

        Returns:
            The names of the new classes.

        Raises:
            BundleError: the file cannot be used, or has a class that there is already.
        """
        return self._classes.add(path)

    def rows(self, texts: Sequence[str]) -> int:
        """Return how many classes the prompts mean; each is decoded once."""
        return len(_numbers(self.encode_prompts(texts)))

    def example_prompts(self, rows: int | None = None) -> PromptSet:
        """Return the first classes, all if not told how many, every other one as positive."""
        names = self.class_names[:rows]
        # A set needs both kinds; a class of both counts as negative.
        return PromptSet(names[::2], names[1::2] or names[:1])

    def read_prompt(self, text: str) -> PromptReading:
        """Look the classes up that a text names.

        Raises:
            PromptError: it names none; the message lists those that there are.
        """
        self._classes.match(text)
        return PromptReading(text, text)

    def encode_prompts(self, texts: Sequence[str]) -> list[PromptCode]:
        """Return the numbers of the classes of each text; no network runs."""
        return [PromptCode((('classes', np.array(self._classes.match(text).labels, np.int32)),))
                for text in texts]

    def describe_match(self, text: str, code: PromptCode) -> str:
        """Say which classes an alias stands for."""
        return self._classes.describe(text)

    def encode_image(self, image: np.ndarray) -> ImageCode:
        """Return the embedding of an image: uint8 [H, W, 3], RGB.

        Raises:
            EngineError: the network fails.
        """
        rows, cols = matrices_in(image.shape[0], image.shape[1], self.config.input_size_px,
                                 self.config.fit)
        return self.engine('image_encoder').infer(
            {'image': image, 'rows': rows, 'cols': cols})['code']

    def decode(self, image: ImageCode, prompts: Sequence[PromptCode]) -> Any:
        """Return the logits [n, s, s] of the prompts' classes, in the order of first mention."""
        return self.engine('decoder').infer(self.code_feeds(image, prompts))['logits']

    def code_feeds(self, image: ImageCode, prompts: Sequence[PromptCode]) -> dict[str, Any]:
        """Return what a decoder is fed for the prompts' classes."""
        return {'code': image, **self._classes.feeds(_numbers(prompts))}

    def decode_all(self, image: ImageCode, prompts: Sequence[PromptCode], query: Query) -> Any:
        """Decode the prompts' classes, as many of them as the time budget allows.

        Where a class was not looked for, it may be anywhere: if it is safe ground it is taken to
        be absent, if it is not, to be everywhere.

        Raises:
            EngineError: the network fails.
            Cancelled: the caller has lost interest.
        """
        numbers = _numbers(prompts)
        groups, done = self._decode_in_time(
            image, numbers, query.decode_budget_ms, query.cancelled)
        missing = numbers[done:]
        self.not_decoded = tuple(self.class_names[number] for number in missing)
        if missing:
            side = self.config.mask_size_px
            unsafe = self.weights(prompts, query.is_positive)[done:] == 0
            unknown = np.where(unsafe, np.float32(_EVERYWHERE), np.float32(_ABSENT))
            groups.append(np.tile(unknown[:, None, None], (1, side, side)))
        return self.joined(groups)

    def answer(self, image: ImageCode, prompts: Sequence[PromptCode], query: Query) -> Answer:
        """Answer, and say which classes the time budget did not last for."""
        self.not_decoded = ()
        answer = super().answer(image, prompts, query)
        return self._explained(answer, query) if self.not_decoded else answer

    def _explained(self, answer: Answer, query: Query) -> Answer:
        note = (f'not decoded within {query.decode_budget_ms:g} ms and counted as unsafe: '
                f'{", ".join(self.not_decoded)}')
        return replace(answer, notes=(*answer.notes, note))

    def semantic_map(self, image: ImageCode, prompts: Sequence[PromptCode],
                     size: tuple[int, int],
                     decode_budget_ms: float | None = None) -> SemanticMap:
        """Merge the masks of the prompts' classes on the device: the surest class wins.

        Args:
            image: from `encode_image`.
            prompts: codes, most important first if there is a time budget.
            size: (height, width) of the image in pixels.
            decode_budget_ms: time that the decoder may take; None is no limit.

        Raises:
            EngineError: the network fails.
        """
        return self._merged(image, _numbers(prompts), size, decode_budget_ms)

    def label_map(self, image: ImageCode, size: tuple[int, int]) -> LabelMap:
        """Return the surest of all classes for each pixel, or `none` where none is seen.

        Raises:
            EngineError: the network fails.
            ParameterError: there are more classes than a label map can tell apart.
        """
        names = (*self.class_names, NO_CLASS)
        if len(names) > MAX_LABELS:
            raise ParameterError(f'{len(names) - 1} classes do not fit in a label map, which has '
                                 f'one byte a pixel; use at most {MAX_LABELS - 1}')
        classes = self._merged(image, tuple(range(len(names) - 1)), size).at_size(*size)
        return LabelMap(np.where(classes < 0, len(names) - 1, classes).astype(np.uint8), names)

    def _merged(self, image: ImageCode, numbers: tuple[int, ...], size: tuple[int, int],
                decode_budget_ms: float | None = None) -> SemanticMap:
        groups, done = self._decode_in_time(image, numbers, decode_budget_ms)
        engine = self.engine('merge')
        merged = engine.infer({'logits': self.joined(groups)})['classes']
        classes, = engine.to_host(merged)
        side = self.config.input_size_px
        height, width = (max(round(length * self.config.mask_size_px / side), 1)
                         for length in fitted_size(*size, side, self.config.fit))
        names = [self.class_names[number] for number in numbers]
        return SemanticMap(classes[:height, :width], tuple(names[:done]), tuple(names[done:]))

    def weights(self, prompts: Sequence[PromptCode],
                is_positive: tuple[bool, ...]) -> np.ndarray:
        """Return 1 for a class that a positive prompt means and no negative one, else 0."""
        safe = dict.fromkeys(_numbers(prompts), True)
        for prompt, positive in zip(prompts, is_positive, strict=True):
            for number in prompt['classes'].tolist():
                safe[number] &= positive
        return read_only(np.array(list(safe.values()), np.float32))

    def reference_probability(self, logits: np.ndarray, prompts: Sequence[PromptCode],
                              is_positive: tuple[bool, ...]) -> np.ndarray:
        """Return the probability of safe ground at the model's resolution: the rule itself."""
        highest = np.maximum(logits.max(axis=0), 0)
        shares = np.exp(logits - highest)
        safe = np.tensordot(self.weights(prompts, is_positive), shares, axes=1)
        side = self.config.input_size_px
        return cv2.resize(safe / (shares.sum(axis=0) + np.exp(-highest)), (side, side),
                          interpolation=cv2.INTER_LINEAR)

    def to_image(self, small: np.ndarray, blur_kernel_size: int,
                 size: tuple[int, int]) -> np.ndarray:
        """Return what `fuse` makes of `reference_probability`: float32 [H, W]."""
        height, width = fitted_size(*size, self.config.input_size_px, self.config.fit)
        return blur_and_resize(small[:height, :width], blur_kernel_size, *size)

    def _decode_in_time(self, image: ImageCode, numbers: tuple[int, ...],
                        budget_ms: float | None,
                        cancelled: Callable[[], bool] = never) -> tuple[list[Any], int]:
        """Decode classes in groups until they are done or the next would end too late.

        The first is decoded in any case, or an estimate that is too high would never be
        corrected.

        Returns:
            The logits of each group, and how many classes they are of.
        """
        engine = self.engine('decoder')
        most = self.kind.decode_group or DECODE_GROUP
        if budget_ms is not None:
            self._warm_up(image)
        started = time.perf_counter()
        groups: list[Any] = []
        done = 0
        while done < len(numbers):
            if cancelled():
                raise Cancelled('the work was cancelled before it was done')
            count = most
            if budget_ms is not None:
                left_s = budget_ms / 1e3 - (time.perf_counter() - started)
                count = min(max(self._classes_in(left_s), int(done == 0)), len(numbers) - done)
                if count == 0:
                    break
                count = next(size for size in _TIMED_GROUPS if size <= count)
            chosen = numbers[done:done + count]
            begun = time.perf_counter()
            logits = engine.infer({'code': image, **self._classes.feeds(chosen)})['logits']
            if budget_ms is not None:
                self.to_host(logits)  # which waits for it
                self._measure((time.perf_counter() - begun) / len(chosen))
            groups.append(logits)
            done += len(chosen)
        return groups, done

    def _warm_up(self, image: ImageCode) -> None:
        """Decode groups of each size once, before the first frame whose time is limited.

        On a GPU the first run of a size compiles or looks for algorithms, which takes seconds.
        They are no cost of a class, nor may they come in flight.
        """
        if self._warm or self.kind.device == 'cpu':
            return
        engine = self.engine('decoder')
        for size in _TIMED_GROUPS:
            self.to_host(engine.infer(
                {'code': image, **self._classes.feeds((0,) * size)})['logits'])
        self._warm = True

    def _classes_in(self, left_s: float) -> int:
        """Return how many classes can be decoded in a time, by what they have taken so far."""
        if self._class_s is None:
            return 0
        return max(int(left_s / self._class_s), 0)

    def _measure(self, class_s: float) -> None:
        before = class_s if self._class_s is None else self._class_s
        self._class_s = before + _NEWEST * (class_s - before)

    def _back_to_image(self, query: Query) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrices that take a mask to the image."""
        return matrices_out(
            *query.size, (self.config.mask_size_px, self.config.input_size_px), self.config.fit,
            query.fusion.blur_kernel_size)


def _numbers(prompts: Sequence[PromptCode]) -> tuple[int, ...]:
    """Return the numbers of the classes that prompts mean, each once, by first mention."""
    return tuple(dict.fromkeys(
        number for prompt in prompts for number in prompt['classes'].tolist()))


BACKEND = FpSegBackend
