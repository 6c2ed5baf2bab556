# SPDX-License-Identifier: Apache-2.0
"""The sub-commands around LSeg's features, on a small random bundle."""

import csv
import re
import shutil

import cv2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.bench.model import write_model
from blabberseg_ros.bundle import TOKENIZER, VOCABULARY, WEIGHTS, load_bundle, write_manifest
from blabberseg_ros.cli.main import main
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.label_picture import shares
from blabberseg_ros.models.families import load_network
from blabberseg_ros.models.random_lseg import SMALL, random_lseg
from blabberseg_ros.text import vocabulary_texts
from blabberseg_ros.words import word_vectors

ENGINE = ['--engine', 'onnxruntime-cpu']


@pytest.fixture(scope='module')
def bundle(make_random_bundle):
    """Return the folder of a small bundle of LSeg."""
    return make_random_bundle('lseg')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Return a folder with two small images."""
    folder = tmp_path_factory.mktemp('images')
    random = np.random.default_rng(0)
    for name in ('one', 'two'):
        cv2.imwrite(str(folder / f'{name}.png'), random.integers(0, 256, (60, 90, 3), np.uint8))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the user's cache out of the tests."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.mark.parametrize('dtype', ['float16', 'float32'])
def test_features_are_written_as_arrays(bundle, images, tmp_path, dtype):
    out = tmp_path / 'out'
    assert main(['features', str(images), '--out', str(out), '--bundle', str(bundle),
                 '--size', '160x96', '--dtype', dtype, *ENGINE]) == 0
    assert sorted(path.name for path in out.iterdir()) == ['one.npy', 'two.npy']
    features = np.load(out / 'one.npy', allow_pickle=False)
    assert features.dtype == dtype
    assert features.shape == (24, 48, 80)
    backend = LSegBackend(load_bundle(bundle), OnnxRuntimeCpu())
    image = cv2.imread(str(images / 'one.png'))[..., ::-1].copy()
    backend.activate()
    wanted = backend.features(backend.encode_image_at(image, 96, 160))
    backend.deactivate()
    assert np.abs(features - wanted).max() < (1e-3 if dtype == 'float16' else 1e-6)


def test_features_have_the_size_of_the_bundle_by_default(bundle, images, tmp_path):
    assert main(['features', str(images / 'one.png'), '--out', str(tmp_path), '--bundle',
                 str(bundle), *ENGINE]) == 0
    side = load_bundle(bundle).manifest.input_size_px // 2
    assert np.load(tmp_path / 'one.npy').shape == (24, side, side)


def test_another_size_is_refused_with_the_nearest(bundle, images, tmp_path, capsys):
    assert main(['features', str(images), '--out', str(tmp_path / 'out'), '--bundle',
                 str(bundle), '--size', '100', *ENGINE]) == 2
    assert '96 and 128' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_another_family_has_no_features(make_random_bundle, images, tmp_path, capsys):
    assert main(['features', str(images), '--out', str(tmp_path), '--bundle',
                 str(make_random_bundle('clipseg')), *ENGINE]) == 2
    assert 'clipseg' in capsys.readouterr().err


def test_labels_are_printed_and_drawn(bundle, images, tmp_path, capsys):
    assert main(['label', str(images), '--labels', 'grass, roof,, grass', '--out', str(tmp_path),
                 '--bundle', str(bundle), *ENGINE]) == 0
    printed = capsys.readouterr().out
    assert 'one.png: ' in printed
    assert 'grass' in printed or 'roof' in printed
    picture = cv2.imread(str(tmp_path / 'one_labels.png'))
    assert picture.shape[1] > 2 * 90
    assert np.array_equal(picture[:60, :90], cv2.imread(str(images / 'one.png')))


def test_no_label_is_refused(bundle, images, tmp_path, capsys):
    assert main(['label', str(images), '--labels', ' , ', '--out', str(tmp_path), '--bundle',
                 str(bundle), *ENGINE]) == 2
    assert 'no label' in capsys.readouterr().err


def test_words_are_found_without_prompts(bundle, images, tmp_path, capsys, monkeypatch):
    words = ('grass', 'rooftop', 'lake')
    monkeypatch.setattr('blabberseg_ros.words.words_of_model', lambda *_: words)
    assert main(['label', str(images / 'two.png'), '--word-free', '--out', str(tmp_path),
                 '--bundle', str(bundle), *ENGINE]) == 0
    printed = capsys.readouterr().out
    assert any(word in printed for word in words)
    assert (tmp_path / 'two_labels.png').is_file()


def test_all_words_are_tried_of_a_model_that_knows_few(bundle, images, tmp_path, capsys,
                                                       monkeypatch):
    """Three thousand words, in pieces, are those that one product of matrices finds."""
    few = tmp_path / 'few'
    shutil.copytree(bundle, few)
    (few / VOCABULARY).write_text('grass\nroof\n')
    write_manifest(few, load_bundle(bundle).manifest)
    words = vocabulary_texts(few / TOKENIZER)[:3000]
    monkeypatch.setattr('blabberseg_ros.words.vocabulary_texts', lambda path: words)

    def found(option):
        assert main(['label', str(images / 'two.png'), option, '--most', '3000', '--out',
                     str(tmp_path), '--bundle', str(few), *ENGINE]) == 0
        line, = [line for line in capsys.readouterr().out.splitlines() if 'two.png: ' in line]
        return {name: float(share) for name, share in re.findall(
            r'(\S+) ([\d.]+)%(?:, |$)', line.partition(': ')[2])}

    assert set(found('--word-free')) <= {'grass', 'roof'}
    backend = LSegBackend(load_bundle(few), OnnxRuntimeCpu())
    backend.activate()
    image = cv2.imread(str(images / 'two.png'))[..., ::-1].copy()
    features = backend.features(backend.encode_image(image))
    vectors = word_vectors(backend, words, tmp_path / 'words').astype(np.float32)
    backend.deactivate()
    best = np.einsum('nd,dhw->nhw', vectors, features).argmax(0)
    wanted = {words[index]: 100 * share for index, share in shares(best)}
    given = found('--all-words')
    assert len(wanted) > 5
    assert max(index for index, _ in shares(best)) > 1024, 'a word of a later piece'
    for word in {*wanted, *given}:
        assert abs(wanted.get(word, 0) - given.get(word, 0)) < 0.15


def test_features_of_two_checkpoints_are_compared(bundle, images, tmp_path, capsys):
    """A checkpoint in half precision beside its original, and beside another one."""
    half, other = tmp_path / 'half', tmp_path / 'other'
    model = load_network(load_bundle(bundle))
    write_model(model, half, graphs=False)
    weights = load_file(half / WEIGHTS)
    save_file({name: weight.bfloat16().float() for name, weight in weights.items()},
              half / WEIGHTS)
    write_manifest(half, load_bundle(half, verify=False).manifest)
    write_model(random_lseg(SMALL, seed=1), other, graphs=False)
    table = tmp_path / 'table.csv'
    assert main(['compare', f'{bundle}@torch-cpu', f'{half}@torch-cpu', str(images / 'one.png'),
                 '--features', '--with', f'{other}@torch-cpu', '--sizes', '64', '--out',
                 str(table)]) == 0
    with open(table, newline='', encoding='utf-8') as stream:
        cosines = [float(row['cosine']) for row in csv.DictReader(stream)]
    assert len(cosines) == 3
    assert 0.99 < cosines[0] < 0.999999, 'original and half'
    assert max(cosines[1:]) < 0.9, 'another network'


def test_features_of_two_engines_are_compared(bundle, images, tmp_path, capsys):
    table = tmp_path / 'table.csv'
    assert main(['compare', '@torch-cpu', '@onnxruntime-cpu', str(images), '--features',
                 '--with', '@torch-cpu:bf16', '--bundle', str(bundle), '--sizes', '100', '64',
                 '--limit', '1', '--out', str(table), '--pictures', str(tmp_path)]) == 0
    assert '96, 64' in capsys.readouterr().out
    with open(table, newline='', encoding='utf-8') as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 2
    cosines = {(row['first'], row['second']): float(row['min_cosine']) for row in rows}
    assert cosines['@torch-cpu', '@onnxruntime-cpu'] > 0.999999
    assert 0.9 < cosines['@torch-cpu', '@torch-cpu:bf16'] < 0.999999
    assert len(list(tmp_path.glob('one_*.png'))) == 6


def test_the_table_of_sizes_is_measured(bundle, tmp_path, capsys):
    out = tmp_path / 'lseg.csv'
    assert main(['bench', '--backend', 'lseg', '--bundle', str(bundle), '--sizes', '70', '--quick',
                 '--engine', 'onnxruntime-cpu', '--out', str(out), '--commit', 'test']) == 0
    printed = capsys.readouterr().out
    assert 'no multiples of 32' in printed
    with open(out, newline='', encoding='utf-8') as stream:
        rows = list(csv.DictReader(stream))
    assert {(row['engine'], row['scenario']) for row in rows} == {
        (engine, stage) for engine in ('plain torch', 'onnxruntime-cpu')
        for stage in ('encode image', 'encode text', 'frame', 'total')} | {
            ('plain torch', 'encode image, not copied')}
    assert {row['input'] for row in rows} == {'64x64'}


def test_another_family_has_no_such_table(make_random_bundle, capsys):
    assert main(['bench', '--backend', 'lseg', '--bundle',
                 str(make_random_bundle('clipseg'))]) == 2
    assert 'clipseg' in capsys.readouterr().err
