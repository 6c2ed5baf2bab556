# SPDX-License-Identifier: Apache-2.0
"""Prompts that are known: each is encoded once, and then found in memory or on disk."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from blabberseg_ros.backends.base import Backend
from blabberseg_ros.backends.values import PromptCode, PromptReading
from blabberseg_ros.prompt_store import PromptStore
from blabberseg_ros.prompts import PromptSet

MAX_PROMPTS = 1024
MAX_PROMPT_SETS = 16


@dataclass(frozen=True)
class PromptReport:
    """What encoding a prompt set took and how it was understood.

    Attributes:
        encoded: number of prompts that the text tower encoded.
        cached: number of prompts that were known already.
        truncated: readings of the prompts that were too long.
        unseen_words: words that the model was never trained on.
        matches: which of the model's own labels a prompt stands for, where that is not plain.
        cut: the prompts of `truncated` as they stand in the set, without the sentence.
        encode_ms: wall-clock time in milliseconds.
    """

    encoded: int
    cached: int
    truncated: tuple[PromptReading, ...]
    unseen_words: tuple[str, ...]
    matches: tuple[str, ...]
    cut: tuple[str, ...]
    encode_ms: float

    @property
    def message(self) -> str:
        """Return what a user should know, or an empty text."""
        parts = [_describe_truncation(reading) for reading in self.truncated]
        if self.unseen_words:
            parts.append('the model was never trained on: ' + ', '.join(self.unseen_words))
        return '; '.join(parts)

    @property
    def explanation(self) -> str:
        """Return the message and how prompts were matched to the model's own labels."""
        return '; '.join(filter(None, (self.message, *self.matches)))


@dataclass(frozen=True)
class KnownSet:
    """A prompt set whose prompts are all known.

    Attributes:
        report: what is said of it.
        codes: of its prompts, in their order.
        rows: that their logits have.
    """

    report: PromptReport
    codes: tuple[PromptCode, ...]
    rows: int


@dataclass(frozen=True)
class _KnownPrompt:
    reading: PromptReading
    code: PromptCode


class PromptCache:
    """The prompts and the prompt sets of one model that were used last."""

    def __init__(self, store: PromptStore | None) -> None:
        """Start empty.

        Args:
            store: keeps codes on disk as well; None keeps them in memory only.
        """
        self._store = store
        self._prompts: OrderedDict[str, _KnownPrompt] = OrderedDict()
        self._sets: OrderedDict[PromptSet, KnownSet] = OrderedDict()

    def clear(self) -> None:
        """Forget what is in memory."""
        self._prompts.clear()
        self._sets.clear()

    def encode(self, prompts: PromptSet, backend: Backend) -> KnownSet:
        """Return a prompt set with its codes; prompts that are not known yet are encoded.

        Args:
            prompts: the set.
            backend: encodes; the codes are the same on every engine of the model.

        Raises:
            PromptError: a prompt cannot be used.
            EngineError: the text tower fails.
        """
        # Most frames come with the prompts of the last one: looking at each text again would take
        # a twentieth of the frame on a fast GPU.
        if (found := self._sets.get(prompts)) is not None:
            self._sets.move_to_end(prompts)
            return found
        started = time.perf_counter()
        texts = backend.texts(prompts)
        different = list(dict.fromkeys(texts))
        missing = [text for text in different
                   if text not in self._prompts and not self._recall(text, backend)]
        if missing:
            self._learn(missing, backend)
        known = {text: self._known(text) for text in texts}
        readings = [each.reading for each in known.values()]
        truncated = tuple(reading for reading in readings if reading.truncated_at is not None)
        cut = {reading.text for reading in truncated}
        report = PromptReport(
            encoded=len(missing),
            cached=len(known) - len(missing),
            truncated=truncated,
            unseen_words=_unique(word for reading in readings for word in reading.unseen_words),
            matches=_unique(filter(None, (
                backend.describe_match(text, each.code) for text, each in known.items()))),
            cut=tuple(prompt for prompt, text in zip(prompts.bare_texts, texts, strict=True)
                      if text in cut),
            encode_ms=(time.perf_counter() - started) * 1e3)
        made = KnownSet(report, tuple(known[text].code for text in texts), backend.rows(texts))
        self._sets[prompts] = replace(
            made, report=replace(report, encoded=0, cached=len(known), encode_ms=0.0))
        self._trim()
        return made

    def _recall(self, text: str, backend: Backend) -> bool:
        """Take a prompt from the disk into memory; return whether it was there."""
        code = self._store.load(text) if self._store is not None else None
        if code is None:
            return False
        self._prompts[text] = _KnownPrompt(backend.read_prompt(text), code)
        return True

    def _learn(self, texts: Sequence[str], backend: Backend) -> None:
        """Encode prompts."""
        # Read first: a prompt that is refused costs no run.
        readings = [backend.read_prompt(text) for text in texts]
        codes = backend.encode_prompts(texts)
        for text, reading, code in zip(texts, readings, codes, strict=True):
            self._prompts[text] = _KnownPrompt(reading, code)
            if self._store is not None:
                self._store.save(text, code)

    def _known(self, text: str) -> _KnownPrompt:
        self._prompts.move_to_end(text)
        return self._prompts[text]

    def _trim(self) -> None:
        """Drop the prompts and prompt sets that were used longest ago."""
        while len(self._prompts) > MAX_PROMPTS:
            self._prompts.popitem(last=False)
        while len(self._sets) > MAX_PROMPT_SETS:
            self._sets.popitem(last=False)


def _describe_truncation(reading: PromptReading) -> str:
    """Return which prompt was cut, where, and what was read."""
    return (f'the prompt {reading.text[:60]!r} is too long for the model and was cut at character '
            f'{reading.truncated_at}, after {reading.kept[-30:]!r}')


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))
