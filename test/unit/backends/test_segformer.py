# SPDX-License-Identifier: Apache-2.0
"""Prompts and labels of the Segformer back-end, and what the command line shows of them."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from blabberseg_ros.backends.segformer import SegformerBackend
from blabberseg_ros.backends.values import PromptCode
from blabberseg_ros.bundle import load_bundle, write_manifest
from blabberseg_ros.cli.main import main
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.errors import NotFiniteError, PromptError
from blabberseg_ros.label_picture import voc_colours
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.segmenter import Segmenter


@pytest.fixture(scope='module')
def bundle_folder(make_random_bundle):
    return make_random_bundle('segformer')


@pytest.fixture(scope='module')
def backend(bundle_folder):
    opened = SegformerBackend(load_bundle(bundle_folder), OnnxRuntimeCpu())
    opened.activate()
    yield opened
    opened.deactivate()


@pytest.fixture
def segmenter(bundle_folder, tmp_path):
    with Segmenter.open(bundle_folder, cache_dir=tmp_path / 'cache') as opened:
        yield opened


def changed(source, folder, **architecture):
    """Copy a bundle and change what its manifest says of the network; the weights stay."""
    shutil.copytree(source, folder)
    manifest = load_bundle(source).manifest
    write_manifest(folder, replace(
        manifest, architecture={**manifest.architecture, **architecture}))
    return folder


def labels_of(backend, text):
    code, = backend.encode_prompts([text])
    return [backend.config.labels[index] for index in np.flatnonzero(code['labels'])]


@pytest.mark.parametrize(('text', 'labels'), [
    ('grass', ['grass']), ('lawn', ['grass']), ('Sports-Field', ['grass', 'field']),
    ('car, boat, lake', ['water', 'vehicle'])])
def test_words_are_matched_without_the_text_tower(backend, text, labels):
    before = backend.run_counts.text_encoder
    assert labels_of(backend, text) == labels
    assert backend.run_counts.text_encoder == before


def test_other_words_go_by_their_meaning_and_the_match_is_shown(backend):
    before = backend.run_counts.text_encoder
    label, = labels_of(backend, 'heather')
    assert backend.run_counts.text_encoder == before + 1
    code, = backend.encode_prompts(['heather'])
    assert backend.describe_match('heather', code) == f"'heather' is read as {label}, by meaning"
    assert labels_of(backend, label) == [label]


def test_matches_are_explained_unless_they_are_plain(segmenter):
    report = segmenter.encode(PromptSet(('grass', 'soil, grass'), ('lake, car', 'trees')))
    assert report.matches == ("'lake, car' is read as water, vehicle",)
    assert report.explanation == report.matches[0]
    assert report.message == ''


def test_what_is_no_label_goes_by_its_meaning_beside_what_is(backend):
    label, = labels_of(backend, 'heather')
    assert set(labels_of(backend, 'lake, heather')) == {'water', label}
    code, = backend.encode_prompts(['lake, heather'])
    described = backend.describe_match('lake, heather', code)
    assert described.startswith("'lake, heather' is read as ")
    assert described.endswith(' (heather by meaning)')


@pytest.mark.parametrize('text', ['quicksand', 'water, quicksand, minefield', 'grass, quicksand'])
def test_without_a_text_tower_no_part_of_a_prompt_is_dropped(bundle_folder, tmp_path, text):
    """A danger that nobody looks for would be safe ground."""
    folder = changed(bundle_folder, tmp_path / 'bundle', text_layers=0)
    with Segmenter.open(folder, cache_dir=tmp_path / 'cache', engine='onnxruntime-cpu') as opened:
        for prompts in (PromptSet(('grass',), (text,)), PromptSet((text,), ('water',))):
            with pytest.raises(PromptError, match=r"^'quicksand.*building, tree, .*asphalt"):
                opened.encode(prompts)
        assert 'text_encoder' not in opened.backend.stages


def test_a_text_that_is_near_no_label_is_refused_by_name(backend, bundle_folder, tmp_path,
                                                        monkeypatch):
    with Segmenter.open(changed(bundle_folder, tmp_path / 'bundle', min_similarity=0.8),
                        cache_dir=tmp_path / 'cache', engine='onnxruntime-cpu') as opened:
        tower = opened.backend.engine('text_encoder')
        for highest in (0.81, 0.79):
            row = np.full((1, 16), 0.1, np.float32)
            row[0, 3] = highest
            monkeypatch.setattr(tower, 'infer', lambda feeds, row=row: {'similarity': row})
            prompts = PromptSet(('grass',), (f'water, bog {highest}',))
            if highest > 0.8:
                assert opened.encode(prompts).matches == (
                    "'water, bog 0.81' is read as water, vehicle (bog 0.81 by meaning)",)
                continue
            with pytest.raises(PromptError, match=r"'bog 0.79' stands for none.*vehicle.*0\.79"):
                opened.encode(prompts)


def test_the_same_weights_with_other_labels_do_not_share_prompts(bundle_folder, tmp_path):
    labels = load_bundle(bundle_folder).manifest.architecture['labels']
    prompts = PromptSet(('grass',), ('heather',))
    weights = []
    for name, order in (('as they are', labels), ('turned', labels[::-1])):
        folder = changed(bundle_folder, tmp_path / name, labels=order)
        with Segmenter.open(folder, cache_dir=tmp_path / 'cache', engine='onnxruntime-cpu') as it:
            codes = it._prompts.encode(prompts, it.backend).codes
            code = codes[prompts.is_positive.index(True)]
            weights.append(code['labels'])
            assert [order[index] for index in np.flatnonzero(code['labels'])] == ['grass']
    assert not np.array_equal(*weights)


def test_the_sentence_around_prompts_changes_nothing(segmenter):
    image = moving_frames(1, (96, 64))[0]
    masks = [segmenter.segment(image, PromptSet(('grass', 'soil'), ('water',), template)).mask
             for template in ('{}', 'a photo of {} from above')]
    np.testing.assert_array_equal(*masks)
    assert segmenter.run_counts.image_encoder == 1


def test_unsafe_wins_where_both_kinds_name_a_label(backend):
    codes = backend.encode_prompts(['grass, soil', 'field', 'soil'])
    weights = backend.weights(codes, (True, True, False))
    assert [backend.config.labels[i] for i in np.flatnonzero(weights)] == ['grass', 'field']


def test_labels_that_no_prompt_names_are_unsafe(segmenter):
    image = moving_frames(1, (96, 64))[0]
    labels = segmenter.backend.config.labels
    some = segmenter.segment(image, PromptSet(('grass',), ('water',))).probability
    rest = segmenter.segment(image, PromptSet(tuple(
        name for name in labels if name != 'grass'), ('grass',))).probability
    np.testing.assert_allclose(some + rest, 1.0, atol=1e-5)


def test_nan_in_a_prompts_code_is_refused(backend, segmenter):
    code, = backend.encode_prompts(['grass'])
    poisoned = PromptCode((('labels', np.full_like(code['labels'], np.nan)),))
    assert np.isnan(backend.weights([code, poisoned], (True, False))).all()
    segmenter.backend.encode_prompts = lambda texts: [poisoned for _ in texts]
    with pytest.raises(NotFiniteError):
        segmenter.segment(moving_frames(1, (96, 64))[0], PromptSet(('dune',), ('reef',)))


def test_the_command_writes_labels_with_a_legend_and_times(bundle_folder, tmp_path, capsys):
    image = moving_frames(1, (160, 120))[0]
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    assert main(['segment', '--backend', 'segformer', '--bundle', str(bundle_folder),
                 '--engine', 'onnxruntime-cpu', '--timings', '--out', str(tmp_path / 'out'),
                 str(tmp_path / 'a.png')]) == 0
    printed = capsys.readouterr().out
    for figure in ('deserialise', 'preprocess (reading the file)',
                   'inference (resizing, normalising, network)', 'postprocess', 'label map alone',
                   'CPU, logits resized', 'CPU, colours resized'):
        assert f'{figure} ' in printed
    picture = cv2.imread(str(tmp_path / 'out' / 'a_labels.png'))[..., ::-1]
    assert picture.shape[0] >= 120
    assert picture.shape[1] > 2 * 160, 'image, colours and legend'
    np.testing.assert_array_equal(picture[:120, :160], image)
    backend = SegformerBackend(load_bundle(bundle_folder), OnnxRuntimeCpu())
    backend.activate()
    labels = backend.label_map(backend.encode_image(image), (120, 160)).labels
    backend.deactivate()
    blended = cv2.addWeighted(image, 0.5, voc_colours(17)[1:][labels], 0.5, 0.0)
    np.testing.assert_array_equal(picture[:120, 160:320], blended)


def test_timings_are_for_segformer(random_bundle, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'a.png'), moving_frames(1, (64, 48))[0])
    assert main(['segment', '--bundle', str(random_bundle), '--timings', '--engine',
                 'onnxruntime-cpu', '--out', str(tmp_path / 'out'), str(tmp_path / 'a.png')]) == 2
    assert '--timings is for Segformer' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'heatmaps.csv').is_file()
