# SPDX-License-Identifier: Apache-2.0
"""CLIPSeg in the stages of BlabberSeg: what does not change is computed once.

The prompt code is the FiLM pair, 2 x r numbers a prompt; the image code holds the three reduced
activations, [3, T, r], which no prompt changes. A new prompt costs one run of the text tower, a
new frame one run of the image tower, and all prompts share one run of the decoder.
"""

import math
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from blabberseg_ros.backends.base import (
    Answer,
    Backend,
    ImageCode,
    PromptCode,
    PromptReading,
    Query,
    RunCounts,
)
from blabberseg_ros.bundle import TOKENIZER, Bundle
from blabberseg_ros.engines.base import Engine, EngineKind
from blabberseg_ros.errors import NotFiniteError
from blabberseg_ros.heatmap import THRESHOLD_STEPS, FusionOptions, Threshold, threshold_table
from blabberseg_ros.resampling import blur_and_resize_matrices, read_only, triangle_matrices
from blabberseg_ros.text import Tokenizer, words_of

_STAGES = ('image_encoder', 'text_encoder', 'film', 'decoder', 'fusion')
# Every frame needs these. The text tower is loaded when a prompt is new: a robot whose prompts
# are all in the cache never loads it.
_FRAME_STAGES = ('image_encoder', 'decoder', 'fusion')
_TEXT_STAGES = ('text_encoder', 'film')


class ClipSegBackend(Backend):
    """CLIPSeg on any engine, one graph a stage."""

    family = 'clipseg'

    def __init__(self, bundle: Bundle, kind: EngineKind) -> None:
        """Make the engines; nothing is loaded before `activate`."""
        super().__init__(bundle, kind)
        self._answers = 'answer' in kind.extra_stages
        self._frame_stages = ('image_encoder', 'answer') if self._answers else _FRAME_STAGES
        self._engines: dict[str, Engine] = {
            stage: kind.create(bundle, stage) for stage in (*_STAGES, *kind.extra_stages)}
        self._tokenizer: Tokenizer | None = None
        self._paired: tuple[PromptCode, ...] = ()
        self._pairs: dict[str, np.ndarray] = {}

    @property
    def precision(self) -> str:
        """Return the precision of the image encoder."""
        return self._engines['image_encoder'].precision

    @property
    def active_engines(self) -> tuple[Engine, ...]:
        """Return the engines that are loaded."""
        return tuple(engine for engine in self._engines.values() if engine.active)

    @property
    def run_counts(self) -> RunCounts:
        """Return how often the three networks have run."""
        runs = {stage: engine.runs for stage, engine in self._engines.items()}
        return RunCounts(runs['image_encoder'], runs['text_encoder'],
                         runs['decoder'] + runs.get('answer', 0))

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the bundle's tokenizer, loaded when it is first used."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(self.bundle.folder / TOKENIZER)
        return self._tokenizer

    def activate(self) -> None:
        """Load the stages that every frame needs."""
        for stage in self._frame_stages:
            self._engines[stage].activate()

    def deactivate(self) -> None:
        """Free everything."""
        for engine in self._engines.values():
            engine.deactivate()

    def read_prompt(self, text: str) -> PromptReading:
        """Say where a text is cut and which of its words the text tower never saw."""
        tokens = self.tokenizer.encode(text)
        unseen: tuple[str, ...] = ()
        if self.bundle.vocabulary is not None:
            unseen = tuple(dict.fromkeys(
                word for word in words_of(tokens.kept) if word not in self.bundle.vocabulary))
        return PromptReading(text, tokens.kept, tokens.truncated_at, unseen)

    def encode_prompts(self, texts: Sequence[str]) -> list[PromptCode]:
        """Run the text tower and the FiLM layers on all texts at once."""
        for stage in _TEXT_STAGES:
            self._engines[stage].activate()
        tokens = np.stack([self.tokenizer.encode(text).ids for text in texts])
        conditional = self._engines['text_encoder'].infer({'tokens': tokens})['conditional']
        film = self._engines['film'].infer({'conditional': conditional})
        mul, add = self._engines['film'].to_host(film['mul'], film['add'])
        if not (np.isfinite(mul).all() and np.isfinite(add).all()):
            raise NotFiniteError(
                'the text tower answered NaN or infinity; the prompts cannot be used. Check the '
                'bundle with `blabberseg doctor`, or use fp32')
        return [PromptCode((('mul', mul[index]), ('add', add[index])))
                for index in range(len(texts))]

    def encode_image(self, image: np.ndarray) -> ImageCode:
        """Resize, normalise and encode: uint8 [H, W, 3] to the image code [3, T, r]."""
        rows, cols = triangle_matrices(*image.shape[:2], self.bundle.manifest.input_size_px)
        return self._engines['image_encoder'].infer(
            {'image': image, 'rows': rows, 'cols': cols})['code']

    def decode(self, image: ImageCode, prompts: Sequence[PromptCode]) -> Any:
        """Run the decoder once for all prompts."""
        self._engines['decoder'].activate()
        return self._engines['decoder'].infer({
            'code': image, **self._film_pairs(prompts)})['logits']

    def to_host(self, value: Any) -> np.ndarray:
        """Return what `decode` gave as a NumPy array."""
        return self._engines['decoder'].to_host(value)[0]

    def fuse(self, logits: Any, is_positive: Sequence[bool], blur_kernel_size: int,
             size: tuple[int, int]) -> np.ndarray:
        """Softmax, sum, blur and resize in one graph; the last two as matrix products."""
        rows, cols = blur_and_resize_matrices(
            self.bundle.manifest.input_size_px, *size, blur_kernel_size)
        engine = self._engines['fusion']
        engine.activate()
        probability = engine.infer({
            'logits': logits,
            'positive': _weights(tuple(is_positive)), 'rows': rows, 'cols': cols})['probability']
        return engine.to_host(probability)[0]

    def answer(self, image: ImageCode, prompts: Sequence[PromptCode], query: Query) -> Answer:
        """Run everything after the image code, on the device if the engine can."""
        if not self._answers:
            return super().answer(image, prompts, query)
        fusion, size = query.fusion, query.size
        started = time.perf_counter()
        engine = self._engines['answer']
        rows, cols = blur_and_resize_matrices(
            self.bundle.manifest.input_size_px, *size, fusion.blur_kernel_size)
        thresholds, wanted = search_feeds(fusion, size[0] * size[1])
        result = engine.infer({
            'code': image, **self._film_pairs(prompts), 'positive': _weights(query.is_positive),
            'rows': rows, 'cols': cols, 'thresholds': thresholds, 'wanted': wanted})
        names = ['mask', 'found', *(['probability'] if query.with_probability else [])]
        mask, found, *rest = engine.to_host(*(result[name] for name in names))
        table = threshold_table(fusion)
        success = bool(found[0] < len(table.tested))
        threshold = Threshold(table.tested[found[0]] if success else table.failed, success)
        return Answer(rest[0] if rest else None, mask, threshold, not found[1],
                      (time.perf_counter() - started) * 1e3)

    def _film_pairs(self, prompts: Sequence[PromptCode]) -> dict[str, np.ndarray]:
        """Return the pairs of all prompts, `mul` and `add`, each float32 [P, r].

        The same prompts get the same arrays, so that an engine need not copy them again.
        """
        if len(prompts) != len(self._paired) or any(
                new is not old for new, old in zip(prompts, self._paired, strict=True)):
            self._paired = tuple(prompts)
            self._pairs = {name: read_only(np.stack([prompt[name] for prompt in prompts]))
                           for name in ('mul', 'add')}
        return self._pairs


@lru_cache(maxsize=64)
def _weights(is_positive: tuple[bool, ...]) -> np.ndarray:
    """Return 1 for a positive prompt and 0 for a negative one, float32 [P]."""
    return read_only(np.array(is_positive, np.float32))


@lru_cache(maxsize=64)
def search_feeds(fusion: FusionOptions, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the search as a device takes it: `thresholds` [101] and `wanted` [2].

    The hundred-and-first threshold cuts the mask of a failed search; infinity leaves it black.
    """
    table = threshold_table(fusion)
    thresholds = np.full(THRESHOLD_STEPS + 1, np.inf, np.float32)
    thresholds[:len(table.tested)] = table.tested
    if fusion.on_failure == 'dovesei':
        thresholds[-1] = table.failed
    # The fewest pixels whose share, computed in double as the loop does, is enough.
    count = min(max(math.ceil(table.wanted * pixels) - 1, 0), pixels + 1)
    while count <= pixels and count / pixels < table.wanted:
        count += 1
    return read_only(thresholds), read_only(np.array([count, len(table.tested)], np.int32))


BACKEND = ClipSegBackend
