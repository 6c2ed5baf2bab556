# SPDX-License-Identifier: Apache-2.0
"""Random prompt sets on the device, for families that read words."""

import random
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blabberseg_ros.text import CONTEXT_LENGTH, Tokenizer
from blabberseg_ros.training.prompt_sampler import (
    CLASS_COUNT,
    MAX_PROMPTS,
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


class PromptBatches:
    """Draws prompt sets and puts them on the device, always in the same shapes."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        """Start with no word known."""
        self._tokens = PromptTokens(tokenizer)
        self._device = device

    def draw(self, rng: random.Random, sets: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw S prompt sets, each padded to P prompts.

        Returns:
            Tokens int32 [S, P, 77], zero for padding, and the parts of `Targets` with S for B.
        """
        shape = (sets, MAX_PROMPTS)
        tokens = np.zeros((*shape, CONTEXT_LENGTH), np.int32)
        covers = np.zeros((*shape, CLASS_COUNT), bool)
        positive, valid = np.zeros(shape, bool), np.zeros(shape, bool)
        for number in range(sets):
            draw = sample_prompts(rng)
            count = len(draw.texts)
            tokens[number, :count] = self._tokens(draw.texts)
            covers[number, :count] = draw.covers
            positive[number, :count] = draw.is_positive
            valid[number, :count] = True
        return (send(tokens, self._device), send(covers, self._device),
                send(positive, self._device), send(valid, self._device))


def shared_out(values: Tensor, images: int) -> Tensor:
    """Repeat what belongs to prompt sets, [S, ...], for the images that share them, [B, ...]."""
    return values.repeat(images // len(values), *(1 for _ in values.shape[1:]))
