# SPDX-License-Identifier: Apache-2.0
"""Stored prompts: back after a restart, and absent rather than wrong after damage."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blabberseg_ros.backends.values import PromptCode
from blabberseg_ros.prompt_store import PromptStore

CODE = PromptCode((('add', np.arange(4, dtype=np.float32)),
                   ('mul', np.linspace(-1, 1, 4, dtype=np.float32))))


def stored_file(folder):
    """Return the one file in the store."""
    (path,) = folder.rglob('*.safetensors')
    return path


def same(found):
    """Return whether a code is CODE, bit by bit."""
    return found is not None and all(
        np.array_equal(found[name], array) for name, array in CODE.arrays)


@pytest.mark.parametrize('text', ['grass', '', 'ümläut 🌳', 'a/b/../c', 'x' * 5000])
def test_round_trip_through_a_new_store(tmp_path, text):
    PromptStore(tmp_path, 'model').save(text, CODE)
    assert same(PromptStore(tmp_path, 'model').load(text))
    assert PromptStore(tmp_path, 'model').load(text + ' ') is None
    assert PromptStore(tmp_path, 'other model').load(text) is None


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_torn_or_altered_file_counts_as_absent(tmp_path, data):
    store = PromptStore(tmp_path, 'model')
    store.save('grass', CODE)
    path = stored_file(tmp_path)
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        path.write_bytes(whole[:data.draw(st.integers(0, len(whole) - 1))])
    else:
        index = data.draw(st.integers(0, len(whole) - 1))
        altered = bytearray(whole)
        altered[index] ^= data.draw(st.integers(1, 255))
        path.write_bytes(altered)
    found = store.load('grass')
    # Whitespace in the header may change without changing what it says.
    assert found is None or same(found)
    store.save('grass', CODE)
    assert same(store.load('grass'))


def test_a_file_under_another_prompts_name_is_not_believed(tmp_path):
    store = PromptStore(tmp_path, 'model')
    store.save('grass', CODE)
    store.save('roof', PromptCode((('add', np.ones(4, np.float32)),)))
    grass, roof = store._path('grass'), store._path('roof')
    roof.write_bytes(grass.read_bytes())
    assert store.load('roof') is None


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path, caplog):
    blocked = tmp_path / 'file'
    blocked.write_text('not a folder')
    store = PromptStore(blocked, 'model')
    for text in ('grass', 'roof'):
        store.save(text, CODE)
        assert store.load(text) is None
    assert sum('cannot be stored' in record.message for record in caplog.records) == 1
