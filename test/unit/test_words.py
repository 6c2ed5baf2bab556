# SPDX-License-Identifier: Apache-2.0
"""Word-free segmentation: the vocabulary, its vectors on disk, and scores in pieces."""

import tracemalloc

import numpy as np
import pytest

from blabberseg_ros import words as module
from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.bundle import TOKENIZER, load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.errors import BundleError
from blabberseg_ros.text import vocabulary_texts
from blabberseg_ros.words import best_words, word_vectors, words_of_model


@pytest.fixture(scope='module')
def backend(make_random_bundle):
    """Return an active back-end on a small random bundle."""
    made = LSegBackend(load_bundle(make_random_bundle('lseg')), OnnxRuntimeCpu())
    made.activate()
    yield made
    made.deactivate()


def unit(*shape, seed):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=0)


def test_the_vocabulary_is_clips(backend):
    texts = vocabulary_texts(backend.bundle.folder / TOKENIZER)
    assert len(texts) == len(set(texts))
    assert 40_000 < len(texts) < 49_406
    assert {'grass', 'roof', 'dog', 'rooftop', '!', 'café', 'é'} <= set(texts)
    assert not any(text != text.strip() or '</w>' in text or '<start' in text for text in texts)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / 'tokenizer.json').write_text('{}', encoding='utf-8')
    with pytest.raises(BundleError, match='cannot be read'):
        vocabulary_texts(tmp_path / 'tokenizer.json')


def test_a_model_of_few_words_is_asked_for_those_alone(backend):
    few = LSegBackend(type(backend.bundle)(
        backend.bundle.folder, backend.bundle.manifest, frozenset({'roof', 'grass'})),
        backend.kind)
    assert words_of_model(few) == ('grass', 'roof')
    assert words_of_model(few, every=True) == words_of_model(backend)


def test_words_get_the_vectors_of_the_text_tower(backend, tmp_path):
    words = ('grass', 'a roof of a house', 'dog', 'qzxv')
    reported = []
    vectors = word_vectors(backend, words, tmp_path, reported.append)
    wanted = np.stack([code['embedding'] for code in backend.encode_prompts(words)])
    assert vectors.dtype == np.float16
    assert np.abs(vectors - wanted).max() < 2e-3
    assert sum(reported) == len(words)


def test_vectors_are_made_once(backend, tmp_path, monkeypatch):
    words = ('grass', 'roof')
    first = word_vectors(backend, words, tmp_path)
    monkeypatch.setattr(module, '_encode', None)
    assert np.array_equal(word_vectors(backend, words, tmp_path), first)


def test_damaged_vectors_are_made_again(backend, tmp_path):
    words = ('grass', 'roof')
    first = word_vectors(backend, words, tmp_path)
    path, = (tmp_path / 'words').iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert np.array_equal(word_vectors(backend, words, tmp_path), first)
    path.write_bytes(data[:100])
    assert np.array_equal(word_vectors(backend, words, tmp_path), first)


@pytest.mark.parametrize(('words', 'size'), [(5, (3, 4)), (2500, (70, 65)), (1024, (64, 64))])
def test_the_best_word_wins_across_pieces(words, size):
    features, vectors = unit(16, *size, seed=1), unit(16, words, seed=2).T.copy()
    scores = np.einsum('nd,dhw->nhw', vectors, features)
    index, cosine = best_words(features, vectors)
    assert index.shape == cosine.shape == size
    assert np.allclose(cosine, scores.max(0), atol=1e-6)
    assert np.mean(index == scores.argmax(0)) > 0.999


def test_words_times_pixels_are_never_in_memory():
    words, side = 20_000, 100
    features, vectors = unit(8, side, side, seed=1), unit(8, words, seed=2).T.astype(np.float16)
    tracemalloc.start()
    best_words(features, vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * words * side * side / 8
