# SPDX-License-Identifier: Apache-2.0
"""The seam between the segmenter and a model family.

A back-end has three steps with a value between them that can be kept: a prompt becomes a prompt
code, an image becomes an image code, both together become a probability. The segmenter owns the
caches; a back-end computes. Its networks are stages, each of which runs on one engine.
"""

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from blabberseg_ros.backends.feeds import device_search, positive_weights
from blabberseg_ros.backends.values import (
    Answer,
    ImageCode,
    LabelMap,
    PromptCode,
    PromptReading,
    Query,
    RunCounts,
)
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Engine, EngineKind
from blabberseg_ros.errors import BundleError, Cancelled
from blabberseg_ros.heatmap import (
    apply_threshold,
    blur_and_resize,
    find_threshold,
    positive_probability,
)
from blabberseg_ros.prompts import PromptSet, default_prompts
from blabberseg_ros.resampling import blur_and_resize_matrices, read_only, triangle_matrices

# Prompts that share one run of the decoder: on two cores 32 of them take 0.1 to 1.5 s.
DECODE_GROUP = 32
# Prompt sets whose stacked codes are kept.
_STACKS = 16
# Stage of engines that do everything after the image code at once, on their device.
ANSWER = 'answer'


@dataclass(frozen=True)
class _Stack:
    """Arrays of several prompts in one, and the codes themselves, which keep their identity."""

    prompts: tuple[PromptCode, ...]
    arrays: dict[str, np.ndarray]


class Backend(ABC):
    """A model family on an engine, used by one thread.

    Attributes:
        family: name in a bundle's manifest.
        reads_template: whether prompts are put into their sentence; a family with labels of its
            own takes the bare words.
        rows_are_labels: whether the logits have a row for each label of the model, whatever is
            asked, and not for each prompt.
        keeps_codes: whether prompt codes may be kept on disk, for the same model.
        decodes_in_order: whether the time for decoding can be limited, and classes be added.
        frame_stages: what every frame needs; all else is loaded when it is first used.
        logits_stage: stage that gives what `decode` returns.
        bundle: the model.
        kind: the engine that it runs on.
    """

    family: ClassVar[str]
    reads_template: ClassVar[bool] = True
    rows_are_labels: ClassVar[bool] = False
    keeps_codes: ClassVar[bool] = True
    decodes_in_order: ClassVar[bool] = False
    frame_stages: ClassVar[tuple[str, ...]] = ('image_encoder', 'decoder', 'fusion')
    logits_stage: ClassVar[str] = 'decoder'

    def __init__(self, bundle: Bundle, kind: EngineKind) -> None:
        """Make the engines; nothing is loaded before `activate`."""
        self.bundle = bundle
        self.kind = kind
        extra = kind.extra_stages(bundle)
        # A kind that answers on its device needs no decoder and no fusion for a frame.
        self._answers = ANSWER in extra
        self._engines: dict[str, Engine] = {
            stage: kind.create(bundle, stage) for stage in (*self.stages, *sorted(extra))}
        self._stacks: OrderedDict[tuple[int, ...], _Stack] = OrderedDict()

    @property
    @abstractmethod
    def stages(self) -> tuple[str, ...]:
        """Return the names of the bundle's stages."""

    @property
    def map_size_px(self) -> int:
        """Return the side of the map that is blurred and resized to the image, in pixels."""
        return self.bundle.manifest.input_size_px

    @property
    def precision(self) -> str:
        """Return the precision of the image path, for example `fp32`."""
        return self._engines['image_encoder'].precision

    @property
    def answers_on_device(self) -> bool:
        """Return whether a device does all that follows the image encoder while the host waits."""
        return self._answers

    @property
    def active_engines(self) -> tuple[Engine, ...]:
        """Return the engines that are loaded."""
        return tuple(engine for engine in self._engines.values() if engine.active)

    @property
    def run_counts(self) -> RunCounts:
        """Return how often the networks have run."""
        runs = {stage: engine.runs for stage, engine in self._engines.items()}
        return RunCounts(runs['image_encoder'], runs.get('text_encoder', 0),
                         runs.get('decoder', 0) + runs.get(ANSWER, 0))

    def activate(self) -> None:
        """Load what every frame needs.

        Raises:
            EngineError: the engine refuses a graph.
        """
        for stage in ('image_encoder', ANSWER) if self._answers else self.frame_stages:
            self._engines[stage].activate()

    def deactivate(self) -> None:
        """Free everything."""
        for engine in self._engines.values():
            engine.deactivate()

    def engine(self, stage: str) -> Engine:
        """Return the engine of a stage, loaded.

        Raises:
            EngineError: the engine refuses the graph.
        """
        self._engines[stage].activate()
        return self._engines[stage]

    def texts(self, prompts: PromptSet) -> tuple[str, ...]:
        """Return what of a prompt set is encoded: a text a prompt, negatives first."""
        return prompts.texts if self.reads_template else prompts.bare_texts

    def rows(self, texts: Sequence[str]) -> int:
        """Return how many rows the logits of some prompts have; engines are built for each."""
        return len(texts)

    def example_prompts(self, rows: int | None = None) -> PromptSet:
        """Return prompts that every model of the family can answer, to compare engines with.

        Args:
            rows: that their logits shall have; None for the family's own number.
        """
        prompts = default_prompts()
        return prompts if rows is None else _resized(prompts, rows)

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

    def add_classes(self, path: Path) -> tuple[str, ...]:
        """Make the classes of a file available as well; return their names.

        Raises:
            BundleError: the family has no such files, or this one cannot be used.
        """
        raise BundleError(f'{self.bundle.manifest.name} is of the family {self.family}, which '
                          f'takes no classes from files such as {path}; leave it out')

    def describe_match(self, text: str, code: PromptCode) -> str:
        """Say which of the model's own labels a text stands for, where that is not plain."""
        return ''

    def encode_image(self, image: np.ndarray) -> ImageCode:
        """Return the code of an image: uint8 [H, W, 3], RGB.

        Raises:
            EngineError: the network fails.
        """
        rows, cols = triangle_matrices(image.shape[0], image.shape[1],
                                       self.bundle.manifest.input_size_px)
        outputs = self._engines['image_encoder'].infer(
            {'image': image, 'rows': rows, 'cols': cols})
        return outputs['code']

    @abstractmethod
    def decode(self, image: ImageCode, prompts: Sequence[PromptCode]) -> Any:
        """Return logits [P, s, s], where the engine keeps them.

        Raises:
            EngineError: the network fails.
        """

    def to_host(self, value: Any) -> np.ndarray:
        """Return what `decode` gave as a NumPy array."""
        return self._engines[self.logits_stage].to_host(value)[0]

    def fuse(self, logits: Any, prompts: Sequence[PromptCode], query: Query) -> np.ndarray:
        """Return the probability of safe ground on the host, in one graph.

        Blur and resizing are matrix products.

        Args:
            logits: from `decode`.
            prompts: codes, in the order of `query.is_positive`.
            query: what is asked; its blur is in pixels of the model's resolution.

        Returns:
            float32 [H, W].
        """
        rows, cols = self._back_to_image(query)
        engine = self.engine('fusion')
        probability = engine.infer({
            'logits': logits, 'positive': self.weights(prompts, query.is_positive), 'rows': rows,
            'cols': cols})['probability']
        return engine.to_host(probability)[0]

    def weights(self, prompts: Sequence[PromptCode],
                is_positive: tuple[bool, ...]) -> np.ndarray:
        """Return the weight of each row of the logits in the probability of safe ground.

        Returns:
            float32 [P]: 1 for a positive prompt, 0 for a negative one.
        """
        return positive_weights(is_positive)

    def reference_probability(self, logits: np.ndarray, prompts: Sequence[PromptCode],
                              is_positive: tuple[bool, ...]) -> np.ndarray:
        """Return what `fuse` computes before blur and resizing, in NumPy: the rule itself.

        The parity gate holds every engine's own fusion to it.

        Args:
            logits: from `decode`, on the host.
            prompts: codes.
            is_positive: for each prompt whether it stands for safe ground.

        Returns:
            float32 [S, S], S the model's resolution.
        """
        return positive_probability(logits, np.array(is_positive))

    def to_image(self, small: np.ndarray, blur_kernel_size: int,
                 size: tuple[int, int]) -> np.ndarray:
        """Return what `fuse` makes of `reference_probability`, in NumPy: float32 [H, W]."""
        return blur_and_resize(small, blur_kernel_size, *size)

    def answer(self, image: ImageCode, prompts: Sequence[PromptCode], query: Query) -> Answer:
        """Decode, fuse, find the threshold and cut the mask, on the device if the engine can.

        Args:
            image: from `encode_image`.
            prompts: codes, in the order of `query.is_positive`.
            query: what is asked.

        Raises:
            EngineError: the network fails.
            Cancelled: the caller has lost interest.
        """
        # A device that does everything at once cannot stop when the time is up.
        if self._answers and query.decode_budget_ms is None:
            return self._answer_on_device(image, prompts, query)
        started = time.perf_counter()
        logits = self.decode_all(image, prompts, query)
        decoded = time.perf_counter()
        probability = self.fuse(logits, prompts, query)
        fused = time.perf_counter()
        finite = bool(np.isfinite(probability).all())
        threshold = find_threshold(probability, query.fusion)
        mask = apply_threshold(probability, threshold, query.fusion.on_failure)
        done = time.perf_counter()
        return Answer(probability, mask, threshold, finite, (decoded - started) * 1e3,
                      (fused - decoded) * 1e3, (done - fused) * 1e3)

    def label_map(self, image: ImageCode, size: tuple[int, int]) -> LabelMap | None:
        """Return the likeliest label of each pixel; None if the family has none of its own.

        Args:
            image: from `encode_image`.
            size: (height, width) of the image in pixels.

        Raises:
            EngineError: the network fails.
        """
        return None

    def decode_all(self, image: ImageCode, prompts: Sequence[PromptCode], query: Query) -> Any:
        """Decode all prompts; many of them in groups, which bounds the memory and the wait.

        Raises:
            EngineError: the network fails.
            Cancelled: the caller has lost interest.
        """
        runs = -(-len(prompts) // (self.kind.decode_group or DECODE_GROUP))
        size = -(-len(prompts) // runs)
        groups = []
        for start in range(0, len(prompts), size):
            if query.cancelled():
                raise Cancelled('the work was cancelled before it was done')
            groups.append(self.decode(image, prompts[start:start + size]))
        return self.joined(groups)

    def joined(self, groups: Sequence[Any]) -> Any:
        """Return the logits of several groups of prompts as one, where the engine keeps them."""
        return groups[0] if len(groups) == 1 else self.engine(self.logits_stage).concatenate(
            groups)

    def code_feeds(self, image: ImageCode, prompts: Sequence[PromptCode]) -> dict[str, Any]:
        """Return what a decoder is fed: the image code and each array of the prompts' codes.

        The arrays of all prompts are stacked, [P, ...]. The same prompts get the same arrays, so
        that an engine need not copy them again.
        """
        key = tuple(map(id, prompts))
        if key not in self._stacks:
            self._stacks[key] = _Stack(tuple(prompts), {
                name: read_only(np.stack([prompt[name] for prompt in prompts]))
                for name, _ in prompts[0].arrays})
            while len(self._stacks) > _STACKS:
                self._stacks.popitem(last=False)
        self._stacks.move_to_end(key)
        return {'code': image, **self._stacks[key].arrays}

    def _answer_on_device(self, image: ImageCode, prompts: Sequence[PromptCode],
                          query: Query) -> Answer:
        """Run everything after the image code in one stage."""
        started = time.perf_counter()
        rows, cols = self._back_to_image(query)
        search = device_search(query.fusion, query.size[0] * query.size[1])
        engine = self.engine(ANSWER)
        outputs = engine.infer({
            **self.code_feeds(image, prompts),
            'positive': self.weights(prompts, query.is_positive), 'rows': rows, 'cols': cols,
            'thresholds': search.thresholds, 'wanted': search.wanted})
        # Looked at while the device works.
        if query.cancelled():
            raise Cancelled('the work was cancelled before it was done')
        wanted = [outputs['mask'], outputs['found']]
        if query.with_probability:
            wanted.append(outputs['probability'])
        mask, found, *rest = engine.to_host(*wanted)
        index, not_finite = found.tolist()
        return Answer(rest[0] if rest else None, mask, search.outcome(index), not not_finite,
                      (time.perf_counter() - started) * 1e3)

    def _back_to_image(self, query: Query) -> tuple[np.ndarray, np.ndarray]:
        """Return the matrices that blur a map of the model and resize it to the image."""
        return blur_and_resize_matrices(
            self.map_size_px, *query.size, query.fusion.blur_kernel_size)


def _resized(prompts: PromptSet, count: int) -> PromptSet:
    """Return as many prompts as wanted, both kinds in their old ratio, repeated if need be."""
    positives = max(round(count * len(prompts.positive) / len(prompts)), 1)
    return PromptSet(_cycled(prompts.positive, positives),
                     _cycled(prompts.negative, max(count - positives, 1)), prompts.template)


def _cycled(texts: tuple[str, ...], count: int) -> tuple[str, ...]:
    return tuple(texts[index % len(texts)] for index in range(count))
