# SPDX-License-Identifier: Apache-2.0
"""What back-ends with a text tower share: tokens, and how a text is read."""

from collections.abc import Sequence

import numpy as np

from blabberseg_ros.backends.base import Backend
from blabberseg_ros.backends.values import PromptReading
from blabberseg_ros.bundle import TOKENIZER, Bundle
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.text import Tokenizer, words_of


class TextBackend(Backend):
    """A family whose prompts go through CLIP's tokenizer and a text tower."""

    def __init__(self, bundle: Bundle, kind: EngineKind) -> None:
        """Make the engines; the tokenizer is loaded when it is first used."""
        super().__init__(bundle, kind)
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the bundle's tokenizer, loaded when it is first used."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(self.bundle.folder / TOKENIZER)
        return self._tokenizer

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Return the token ids of texts: int32 [P, 77].

        Raises:
            PromptError: a text cannot be used.
        """
        return np.stack([self.tokenizer.encode(text).ids for text in texts])

    def read_prompt(self, text: str) -> PromptReading:
        """Say where a text is cut and which of its words the text tower never saw."""
        tokens = self.tokenizer.encode(text)
        unseen: tuple[str, ...] = ()
        if self.bundle.vocabulary is not None:
            unseen = tuple(dict.fromkeys(
                word for word in words_of(tokens.kept) if word not in self.bundle.vocabulary))
        return PromptReading(text, tokens.kept, tokens.truncated_at, unseen)
