# SPDX-License-Identifier: Apache-2.0
"""Random prompt sets on the device, for families that read words."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blabberseg_ros.text import CONTEXT_LENGTH, Tokenizer
from blabberseg_ros.training.losses import Targets
from blabberseg_ros.training.prompt_sampler import (
    CLASS_COUNT,
    MAX_PROMPTS,
    PromptDraw,
    sample_prompts,
)
from blabberseg_ros.training.world_store import send


class PromptTokens:
    """CLIP's tokens of our own training texts, quickly.

    Cleaning and splitting any text of the world takes a few hundred microseconds, and an update
    has hundreds of new texts. Ours are plain lower-case words with spaces and punctuation between
    them, and CLIP merges within words only: so each word is tokenised once.
    """

    _WORD = re.compile(r"'s|[a-z]+|[0-9]|[^\sa-z0-9]+")

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start empty."""
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return int32 [len(texts), 77]."""
        rows = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self._tokenizer.start_id]
            for word in self._WORD.findall(text):
                ids += self._ids(word)
            ids = [*ids[:CONTEXT_LENGTH - 1], self._tokenizer.end_id]
            row[:len(ids)] = ids
        return rows

    def _ids(self, word: str) -> list[int]:
        if word not in self._known:
            ids = self._tokenizer.encode(word).ids.tolist()
            self._known[word] = ids[1:ids.index(self._tokenizer.end_id)]
        return self._known[word]


@dataclass(frozen=True)
class PromptBatch:
    """Prompt sets of a batch on the device.

    Attributes:
        tokens: int32 [U, 77], each text once.
        covers: bool [U, C]; whether a text stands for a class.
        index: int64 [B, P], row of `tokens`.
        targets: what the prompts stand for.
    """

    tokens: Tensor
    covers: Tensor
    index: Tensor
    targets: Targets


class PromptBatches:
    """Draws prompt sets and puts them on the device."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        """Start with no word known."""
        self._tokens = PromptTokens(tokenizer)
        self._device = device

    def draw(self, rng: random.Random, batch_size: int, prompt_sets: int) -> PromptBatch:
        """Draw `prompt_sets` sets, which the images of a batch share out evenly."""
        draws = [sample_prompts(rng) for _ in range(prompt_sets)]
        return self._batch([draws[number % len(draws)] for number in range(batch_size)])

    def _batch(self, draws: Sequence[PromptDraw]) -> PromptBatch:
        texts = list(dict.fromkeys(text for draw in draws for text in draw.texts))
        row = {text: index for index, text in enumerate(texts)}
        shape = (len(draws), MAX_PROMPTS)
        text_covers = np.zeros((len(texts), CLASS_COUNT), bool)
        index = np.zeros(shape, np.int64)
        covers = np.zeros((*shape, CLASS_COUNT), bool)
        positive, valid = np.zeros(shape, bool), np.zeros(shape, bool)
        for number, draw in enumerate(draws):
            count = len(draw.texts)
            index[number, :count] = [row[text] for text in draw.texts]
            text_covers[index[number, :count]] = draw.covers
            covers[number, :count] = draw.covers
            positive[number, :count] = draw.is_positive
            valid[number, :count] = True
        sent = [send(values, self._device) for values in (
            self._tokens(texts), text_covers, index, covers, positive, valid)]
        return PromptBatch(sent[0], sent[1], sent[2], Targets(*sent[3:]))

