# SPDX-License-Identifier: Apache-2.0
"""What families that read words share: the tokenizer, and what they know of language."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from blabberseg_ros.text import Tokenizer, write_tokenizer_json
from blabberseg_ros.training.family import Family
from blabberseg_ros.training.lexicon import training_texts, training_vocabulary
from blabberseg_ros.training.prompt_batch import PromptTokens

_MERGES = 'bpe_simple_vocab_16e6.txt.gz'


class OpenFamily(Family):
    """A family that reads words."""

    @cached_property
    def tokenizer_json(self) -> Path:
        """Return a file of the tokenizer, written when it is first wanted."""
        path = self.workspace / 'tokenizer.json'
        write_demo_tokenizer(path)
        return path

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Return CLIP's tokenizer, or that part of it which the family uses."""
        return Tokenizer.from_file(self.tokenizer_json)

    @cached_property
    def token_ids(self) -> list[int]:
        """Return the ids of every token that training can show, sorted."""
        return training_token_ids(self.tokenizer)

    @property
    def language(self) -> str:
        """Return for the card what the model knows of language."""
        return (f'it knows the {len(training_vocabulary())} English words in `vocabulary.txt` and '
                "no others. A word that it\n  never saw means nothing to it, and the answer's "
                'message names it')

    def vocabulary_files(self) -> dict[str, Any]:
        """Return the tokenizer and the words that it was trained on."""
        return {'tokenizer_json': self.tokenizer_json, 'vocabulary': training_vocabulary()}


def write_demo_tokenizer(path: Path, texts: Iterable[str] | None = None) -> None:
    """Write CLIP's tokenizer, from the merges file that open_clip brings along.

    Args:
        path: file to write.
        texts: keep only the tokens that these need; None: all.
    """
    write_tokenizer_json(Path(open_clip.__file__).parent / _MERGES, path, texts)


def training_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of every token that training can show, sorted."""
    ids = PromptTokens(tokenizer)(training_texts())
    return sorted({int(token) for token in ids.ravel() if token})


def warm_token_embedding(embedding: nn.Embedding, ids: Sequence[int], seed: int) -> None:
    """Draw the embeddings of the tokens that training will show, and make all others zero.

    Rows of tokens that training never shows get no gradient: they stay zero, so a word that the
    model does not know says nothing instead of something random, and the file compresses well.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = embedding.weight
    rows = 0.3 * torch.randn((len(ids), weight.shape[1]), generator=generator)
    with torch.no_grad():
        weight.zero_()
        weight[torch.tensor(ids, device=weight.device)] = rows.to(weight.device)
