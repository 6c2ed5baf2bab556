# SPDX-License-Identifier: Apache-2.0
"""Segmentation without prompts: the best word of a whole vocabulary for every pixel.

Words times pixels would be gigabytes, so scores are made in pieces and only the best is kept. The
vectors of the words depend on the model alone and are kept on disk.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from blabberseg_ros.atomic import write_bytes
from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.bundle import TOKENIZER
from blabberseg_ros.errors import EngineError
from blabberseg_ros.text import vocabulary_texts

_LOG = logging.getLogger(__name__)
# Scores of one piece: 16 MB, which stays in a CPU's outer cache.
_WORDS, _PIXELS = 1024, 4096
_TEXTS_AT_ONCE = 512


def words_of_model(backend: LSegBackend, every: bool = False) -> tuple[str, ...]:
    """Return what can be found: the words of the model's training, else its whole tokenizer's.

    A tokenizer has parts of words as well.

    Args:
        backend: of the model.
        every: take the tokenizer's whatever the model was trained on.
    """
    bundle = backend.bundle
    if bundle.vocabulary is not None and not every:
        return tuple(sorted(bundle.vocabulary))
    return vocabulary_texts(bundle.folder / TOKENIZER)


def word_vectors(backend: LSegBackend, words: Sequence[str], cache_dir: Path,
                 report: Callable[[int], object] = lambda _: None) -> np.ndarray:
    """Return the unit vectors of words, from the disk if they were made before.

    Args:
        backend: whose tokenizer and model are used.
        words: to encode.
        cache_dir: where the vectors are kept.
        report: called with the number of words that have been encoded since the last call.

    Returns:
        float16 [N, D], in the order of the words.

    Raises:
        EngineError: torch, which encodes short texts in a fraction of the time, is not installed.
    """
    key = hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()[:16]
    path = cache_dir / 'words' / f'{backend.bundle.fingerprint}-{key}.safetensors'
    known = _load(path, len(words))
    if known is not None:
        report(len(words))
        return known
    vectors = _encode(backend, words, report)
    try:
        _save(path, vectors)
    except OSError as error:
        _LOG.warning('The words cannot be kept in %s (%s); they will be encoded again', path,
                     error)
    return vectors


def best_words(features: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the best word of each pixel.

    Args:
        features: unit vectors of pixels, float32 [D, h, w].
        vectors: of words, float16 or float32 [N, D].

    Returns:
        Index of the word, int32 [h, w], and its cosine, float32 [h, w].
    """
    depth, height, width = features.shape
    pixels = features.reshape(depth, -1)
    best = np.full(height * width, -np.inf, np.float32)
    index = np.zeros(height * width, np.int32)
    for start in range(0, len(vectors), _WORDS):
        chunk = vectors[start:start + _WORDS].astype(np.float32)
        for left in range(0, len(best), _PIXELS):
            part = slice(left, left + _PIXELS)
            scores = chunk @ pixels[:, part]
            winner = scores.argmax(axis=0)
            score = np.take_along_axis(scores, winner[None], axis=0)[0]
            better = score > best[part]
            best[part][better] = score[better]
            index[part][better] = start + winner[better]
    return index.reshape(height, width), best.reshape(height, width)


def _encode(backend: LSegBackend, words: Sequence[str],
            report: Callable[[int], object]) -> np.ndarray:
    """Encode words sorted by length, each group without its padding.

    The padding changes nothing (no token looks at a later one), and 77 tokens for a word of one
    would be twenty times the work.
    """
    try:
        import torch
    except ImportError as error:
        raise EngineError('the words of a vocabulary are encoded by torch, which is not '
                          'installed; pip install "blabberseg_ros[torch]"') from error
    from blabberseg_ros.models.load_lseg import load_lseg

    device = 'cuda' if backend.kind.device == 'cuda' and torch.cuda.is_available() else 'cpu'
    tower = load_lseg(backend.bundle).text.to(device)
    tokens = backend.tokens(words)
    # The end token has the highest id.
    lengths = tokens.argmax(axis=1) + 1
    order = np.argsort(lengths, kind='stable')
    vectors: list[np.ndarray] = []
    for start in range(0, len(order), _TEXTS_AT_ONCE):
        rows = order[start:start + _TEXTS_AT_ONCE]
        short = torch.from_numpy(tokens[rows, :lengths[rows[-1]]]).to(device)
        with torch.inference_mode():
            embedding = torch.nn.functional.normalize(tower(short), dim=-1)
        vectors.append(embedding.half().cpu().numpy())
        report(len(rows))
    result = np.empty((len(words), vectors[0].shape[1]), np.float16)
    result[order] = np.concatenate(vectors)
    return result


def _save(path: Path, vectors: np.ndarray) -> None:
    from safetensors.numpy import save

    digest = hashlib.sha256(vectors.tobytes()).hexdigest()
    write_bytes(path, save({'vectors': vectors}, {'sha256': digest}))


def _load(path: Path, count: int) -> np.ndarray | None:
    """Return stored vectors; None if there are none, or not the ones that were stored."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, 'np') as stored:
            vectors = stored.get_tensor('vectors')
            digest = (stored.metadata() or {}).get('sha256')
    except (OSError, SafetensorError):
        return None
    if len(vectors) != count or hashlib.sha256(vectors.tobytes()).hexdigest() != digest:
        _LOG.warning('The stored words %s are damaged; encoding them again', path)
        return None
    return vectors
