# SPDX-License-Identifier: Apache-2.0
"""Bundles: found from anywhere, and refused when anything in them is not as recorded."""

from dataclasses import replace

import pytest

from blabberseg_ros.bundle import (
    MANIFEST,
    Manifest,
    find_bundle,
    installed_bundles,
    load_bundle,
    write_manifest,
)
from blabberseg_ros.errors import BundleError


@pytest.fixture
def folder(tmp_path):
    """Return a small bundle."""
    folder = tmp_path / 'engines' / 'small'
    folder.mkdir(parents=True)
    (folder / 'weights.safetensors').write_bytes(b'weights')
    (folder / 'tokenizer.json').write_text('{}')
    (folder / 'decoder.onnx').write_bytes(b'graph')
    (folder / 'vocabulary.txt').write_text('grass\nroof\n')
    write_manifest(folder, Manifest(
        family='clipseg', name='small', variant='rd16', input_size_px=352,
        architecture={'width': 8}, graphs={'decoder': 'decoder.onnx'}, source='test',
        licence='Apache-2.0'))
    return folder


def test_round_trip(folder):
    bundle = load_bundle(folder)
    assert bundle.manifest.architecture == {'width': 8}
    assert bundle.graph('decoder') == folder / 'decoder.onnx'
    assert bundle.vocabulary == {'grass', 'roof'}
    assert set(bundle.manifest.files) == {
        'weights.safetensors', 'tokenizer.json', 'decoder.onnx', 'vocabulary.txt'}


def test_fingerprint_follows_weights_tokenizer_and_network_only(folder):
    before = load_bundle(folder).fingerprint
    (folder / 'decoder.onnx').write_bytes(b'other')
    write_manifest(folder, load_bundle(folder, verify=False).manifest)
    assert load_bundle(folder).fingerprint == before
    (folder / 'weights.safetensors').write_bytes(b'WEIGHTS')
    write_manifest(folder, load_bundle(folder, verify=False).manifest)
    assert load_bundle(folder).fingerprint != before
    before = load_bundle(folder).fingerprint
    write_manifest(folder, replace(load_bundle(folder).manifest, name='other'))
    assert load_bundle(folder).fingerprint == before
    write_manifest(folder, replace(load_bundle(folder).manifest, architecture={'width': 9}))
    assert load_bundle(folder).fingerprint != before


@pytest.mark.parametrize(('name', 'damage', 'word'), [
    ('weights.safetensors', lambda p: p.write_bytes(b'Weights'), 'damaged'),
    ('decoder.onnx', lambda p: p.write_bytes(b'grap'), 'damaged'),
    ('decoder.onnx', lambda p: p.write_bytes(b''), 'damaged'),
    ('tokenizer.json', lambda p: p.unlink(), 'missing'),
    (MANIFEST, lambda p: p.write_text('format: 99\n'), 'format'),
    (MANIFEST, lambda p: p.write_text('format: 1\nfamily: x\n'), 'damaged'),
    (MANIFEST, lambda p: p.write_text('a: [b'), 'damaged'),
    (MANIFEST, lambda p: p.write_bytes(b'\xff\xfe\x00'), 'damaged'),
    (MANIFEST, lambda p: p.write_text(p.read_text().replace('decoder.onnx', '../x.onnx')),
     'outside'),
])
def test_damage_is_refused_with_the_file_named(folder, name, damage, word):
    damage(folder / name)
    with pytest.raises(BundleError, match=word):
        load_bundle(folder)


def test_an_unknown_stage_is_named(folder):
    with pytest.raises(BundleError, match='image_encoder'):
        load_bundle(folder).graph('image_encoder')


def test_found_by_name_in_a_ros_prefix_and_by_path(folder, tmp_path, monkeypatch):
    share = tmp_path / 'prefix' / 'share' / 'blabberseg_ros'
    share.mkdir(parents=True)
    (tmp_path / 'engines').rename(share / 'engines')
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'/nowhere:{tmp_path / "prefix"}')
    monkeypatch.chdir('/')
    installed = share / 'engines' / 'small'
    assert find_bundle('small') == find_bundle(installed) == installed
    assert installed in installed_bundles()


def test_an_unknown_name_tells_what_there_is(folder, tmp_path, monkeypatch):
    share = tmp_path / 'share' / 'blabberseg_ros'
    share.mkdir(parents=True)
    (tmp_path / 'engines').rename(share / 'engines')
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    with pytest.raises(BundleError, match=r'(?s)absent.*small.*import'):
        find_bundle('absent')
