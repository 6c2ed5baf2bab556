# SPDX-License-Identifier: Apache-2.0
"""Reading of checkpoint files, whole and broken."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.checkpoints import read_json, read_state


class Foreign:
    """An object that is not a tensor."""


@pytest.fixture
def state():
    return {'a.weight': torch.arange(6.).reshape(2, 3), 'b': torch.ones(2, dtype=torch.float16)}


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first)


def test_every_format_gives_the_same_tensors(tmp_path, state):
    save_file(state, tmp_path / 'a.safetensors')
    torch.save(state, tmp_path / 'b.pth')
    torch.save(state, tmp_path / 'c.bin', _use_new_zipfile_serialization=False)
    torch.save({'epoch': 3, 'state_dict': state}, tmp_path / 'd.pt')
    torch.save({f'module.{key}': value for key, value in state.items()}, tmp_path / 'e.pt')
    for path in tmp_path.iterdir():
        assert same(read_state(path), state), path.name


def test_a_torchscript_archive_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2))
    torch.jit.script(module).save(str(tmp_path / 'jit.pt'))
    assert same(read_state(tmp_path / 'jit.pt'), module.state_dict())


def test_objects_are_refused(tmp_path, state):
    torch.save({**state, 'x': Foreign()}, tmp_path / 'a.pth')
    with pytest.raises(BundleError, match='Python objects besides tensors'):
        read_state(tmp_path / 'a.pth')


@pytest.mark.parametrize('content', [{'a': 3}, [torch.ones(2)], {}, {3: torch.ones(2)}])
def test_anything_but_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(BundleError, match='other than named tensors'):
        read_state(tmp_path / 'a.pth')


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BundleError, match=r'absent\.pth cannot be read'):
        read_state(tmp_path / 'absent.pth')


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_a_cut_file_is_damaged(tmp_path, state, name):
    path = tmp_path / name
    if path.suffix == '.pth':
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError, match='damaged or is not a checkpoint'):
            read_state(path)


def test_a_flipped_bit_is_found(tmp_path):
    torch.save({'a': torch.zeros(10000)}, tmp_path / 'a.pth')
    content = bytearray((tmp_path / 'a.pth').read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(BundleError, match='damaged'):
        read_state(tmp_path / 'a.pth')


@pytest.mark.parametrize('junk', [b'hello world' * 100, b'<!DOCTYPE html><html>', b'\x80\x02}'])
def test_junk_is_refused(tmp_path, junk):
    (tmp_path / 'a.pth').write_bytes(junk)
    with pytest.raises(BundleError, match='damaged or is not a checkpoint'):
        read_state(tmp_path / 'a.pth')


def test_a_git_lfs_pointer_is_explained(tmp_path):
    path = tmp_path / 'rd64-uni.pth'
    path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:13845f\nsize 9\n',
                    encoding='utf-8')
    with pytest.raises(BundleError, match='git lfs pull'):
        read_state(path)


def test_json_objects_only(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'a': 1}), encoding='utf-8')
    assert read_json(path) == {'a': 1}
    for content in ('[1]', '{"a":', ''):
        path.write_text(content, encoding='utf-8')
        with pytest.raises(BundleError, match=r'config\.json'):
            read_json(path)


def test_the_published_rd16_is_the_official_file(shared_dir):
    path = shared_dir / 'data' / 'weights' / 'rd16-uni.pth'
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith('61545cdb')
    state = read_state(path)
    assert len(state) == 50
    assert state['trans_conv.weight'].shape == (16, 1, 16, 16)
