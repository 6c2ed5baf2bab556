# SPDX-License-Identifier: Apache-2.0
"""Segformer's table: the baseline gives our answers, and the command writes both sides' rows."""

import csv

import numpy as np
import pytest

from blabberseg_ros.backends.segformer import SegformerBackend
from blabberseg_ros.backends.values import Query
from blabberseg_ros.bench import lseg_table, segformer_table
from blabberseg_ros.bench.baselines_segformer import PlainSegformer, write_random_folder
from blabberseg_ros.bench.model import write_model
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.main import main
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.models.import_segformer import import_model
from blabberseg_ros.models.importing import ImportOptions
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.parity.reference import TorchCpu

SIDE_PX = 128


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Return one network for both sides, as `make_models` does, but B0 at 128 pixels."""
    folder = tmp_path_factory.mktemp('segformer')
    write_random_folder(folder / 'theirs', 'b0')
    model = import_model(folder / 'theirs', ImportOptions(SIDE_PX)).model
    write_model(model, folder / 'ours', graphs=False)
    return folder / 'theirs', load_bundle(folder / 'ours')


def test_the_baseline_gives_our_labels_and_our_mask(models):
    theirs, bundle = models
    plain = PlainSegformer(theirs, 'cpu', SIDE_PX)
    backend = SegformerBackend(bundle, TorchCpu())
    backend.activate()
    prompts = segformer_table.prompts_of(bundle)
    codes = backend.encode_prompts(backend.texts(prompts))
    safe = np.arange(len(bundle.manifest.architecture['labels'])) % 3 == 0
    # Not resized on the way in: there OpenCV reads fewer pixels than our antialiased weights.
    image, size = moving_frames(1, (SIDE_PX, SIDE_PX))[0], (SIDE_PX, SIDE_PX)
    code = backend.encode_image(image)
    logits = plain.infer(plain.preprocess(image))
    np.testing.assert_allclose(logits, backend.to_host(code), atol=1e-3)
    labels = backend.label_map(code, (96, 160)).labels
    assert len(np.unique(labels)) > 5
    assert (plain.label_map(logits, (96, 160)) == labels).mean() > 0.999
    fusion = FusionOptions(dynamic_threshold=0.3)
    answer = backend.answer(code, codes, Query(prompts.is_positive, fusion, size))
    assert 0.1 < (answer.mask > 0).mean() < 0.9
    assert (plain.mask(logits, safe, fusion, size) == answer.mask).mean() > 0.98
    backend.deactivate()


def test_the_command_measures_both_sides(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segformer_table, 'make_models', lambda folder, graphs: models)
    few = lseg_table.Limits(2, 0.0)
    monkeypatch.setattr(lseg_table, 'Limits', lambda *_: few)
    assert main(['bench', '--backend', 'segformer', '--engine', 'torch-cpu', '--quick', '--out',
                 str(tmp_path / 'table.csv'), '--commit', 'test']) == 0
    with open(tmp_path / 'table.csv', newline='', encoding='utf-8') as stream:
        rows = {(row['engine'], row['scenario'], row['detail']): row
                for row in csv.DictReader(stream)}
    assert {key[1:] for key in rows if key[0] == segformer_table.PLAIN} == {
        ('label map', ''), ('new frame', ''), ('stage', 'preprocess'),
        ('stage', 'preprocess, network'), ('stage', 'label map on the host'),
        ('stage', 'mask on the host')}
    assert {key[1:] for key in rows if key[0] == 'torch-cpu'} == {
        ('label map', ''), ('new frame', ''), ('stage', 'label map'), ('stage', 'answer')}
    plain, ours = (float(rows[engine, 'label map', '']['p50_ms'])
                   for engine in (segformer_table.PLAIN, 'torch-cpu'))
    line, = [line for line in capsys.readouterr().out.splitlines()
             if line.startswith('torch-cpu              fp32  label map  ')]
    assert float(line.split()[-1]) == pytest.approx(plain / ours, abs=0.06)


def test_a_bundle_is_refused(capsys):
    assert main(['bench', '--backend', 'segformer', '--bundle', 'segformer_demo']) == 2
    assert 'weights that both sides can run' in capsys.readouterr().err
