# SPDX-License-Identifier: Apache-2.0
"""Shards: whole or absent, and never of another encoder."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.embedding_store import EmbeddingStore, StoreHeader

HEADER = StoreHeader('key', 64, 'squash', 'live', 'float16', 2, ('a', 'b', 'c'))


def _embeddings(*stems: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {stem: rng.standard_normal((8, 4, 4)).astype(np.float32) for stem in stems}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path, HEADER)
    values = _embeddings('a', 'b', 'c')
    assert store.missing_shards() == [0, 1]
    store.write(0, values)
    with pytest.raises(ParameterError, match='1 of 2 shards are missing'):
        EmbeddingStore.open(tmp_path)
    store.write(1, values)
    again = EmbeddingStore.open(tmp_path)
    assert again.header == HEADER
    for stem, value in values.items():
        np.testing.assert_allclose(again.read(stem), value, atol=2e-3)
    with pytest.raises(ParameterError, match='no embedding of d'):
        again.read('d')
    with pytest.raises(ParameterError, match='1 of 2 frames, the first is e'):
        again.check_frames(['a', 'e'])


@pytest.mark.parametrize('change', [
    {'encoder': 'other'}, {'fit': 'letterbox'}, {'attention_bias': 'zero'}, {'stems': ('a',)},
    {'dtype': 'float32'}, {'input_size_px': 32}])
def test_other_embeddings_are_not_mixed_in(tmp_path: Path, change: dict) -> None:
    EmbeddingStore.create(tmp_path, HEADER)
    with pytest.raises(ParameterError, match=f'{next(iter(change))} differs'):
        EmbeddingStore.create(tmp_path, replace(HEADER, **change))


def test_a_damaged_shard_counts_as_missing(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path, HEADER)
    store.write(0, _embeddings('a', 'b'))
    store.write(1, _embeddings('c'))
    path = tmp_path / 'shard-00000.safetensors'
    path.write_bytes(path.read_bytes()[:-7])
    assert store.missing_shards() == [0]


def test_one_writer_at_a_time_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path, HEADER)
    leftover = tmp_path / '.shard-00000.safetensors.999.tmp'
    leftover.write_bytes(b'half')
    with store.writing():
        assert not leftover.exists()
        with pytest.raises(ParameterError, match='another process'), \
                EmbeddingStore.create(tmp_path, HEADER).writing():
            pass
    with store.writing():
        pass
