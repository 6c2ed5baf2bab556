# SPDX-License-Identifier: Apache-2.0
"""A tuned network judged in torch and, as a bundle, on an engine; the commands themselves."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.main import main
from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.bench import NEW_FRAME, UPSTREAM, Row, with_ratios
from blabberseg_ros.fpseg_tools.cityscapes import list_frames, read_image
from blabberseg_ros.fpseg_tools.embed import EmbedSettings, embed
from blabberseg_ros.fpseg_tools.engine_network import open_on_engine
from blabberseg_ros.fpseg_tools.evaluate import EvaluateSettings, evaluate
from blabberseg_ros.fpseg_tools.metrics import Figures
from blabberseg_ros.fpseg_tools.networks import Preprocessor, decode_all, load_network
from blabberseg_ros.fpseg_tools.tune import TuneSettings, tune

pytestmark = pytest.mark.usefixtures('one_thread')


def _settings(world_set: Path, network: Path, out: Path, **changes: object) -> EvaluateSettings:
    values: dict = {'classes': world_set / 'known.yaml', 'test_n_class_examples_per_epoch': 50,
                    'workers': 1, 'device': 'cpu', **changes}
    return EvaluateSettings(world_set, str(network), out, **values)


@pytest.fixture(scope='module')
def figures(one_thread: None, world_set: Path, base: Path, embeddings: Path,
            tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """Return the figures of the tuned network on embeddings."""
    return evaluate(_settings(world_set, base / 'best.safetensors',
                              tmp_path_factory.mktemp('figures'), embeddings=embeddings))


@pytest.fixture(scope='module')
def tuned_bundle(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tuned network as a bundle, through the command."""
    folder = tmp_path_factory.mktemp('bundles') / 'tuned'
    assert main(['fpseg', 'export', '--set', f'network={base / "best.safetensors"}',
                 '--set', f'out={folder}']) == 0
    return folder


def test_tuning_and_evaluation_agree(base: Path, figures: Figures) -> None:
    tests = [record['test'] for record in map(
        json.loads, (base / 'log.jsonl').read_text().splitlines()) if 'test' in record]
    best = max(tests, key=lambda test: test['miou'])
    assert figures.miou == best['miou']
    assert figures.pooled_iou == best['pooled_iou']
    assert list(figures.class_iou) == best['class_iou']


def test_images_and_embeddings_give_the_same(world_set: Path, base: Path, figures: Figures,
                                             tmp_path: Path) -> None:
    encoded = evaluate(_settings(world_set, base / 'best.safetensors', tmp_path))
    # The embeddings were kept in fp16.
    assert encoded.miou == pytest.approx(figures.miou, abs=5e-3)
    assert encoded.pooled_iou == pytest.approx(figures.pooled_iou, abs=5e-3)


def test_the_pooled_iou_depends_on_the_seed_alone(world_set: Path, base: Path, embeddings: Path,
                                                  figures: Figures, tmp_path: Path) -> None:
    again, other = (evaluate(_settings(world_set, base / 'best.safetensors', tmp_path, seed=seed,
                                       embeddings=embeddings)) for seed in (0, 1))
    assert again == figures
    assert other.miou == figures.miou
    assert other.pooled_iou != figures.pooled_iou


def test_an_engine_gives_the_same_figures(world_set: Path, tuned_bundle: Path, figures: Figures,
                                          tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert load_bundle(tuned_bundle).manifest.family == 'fpseg'
    assert main(['fpseg', 'evaluate', '--set', f'data_root={world_set}', '--set',
                 f'network={tuned_bundle}', '--set', 'engine=onnxruntime-cpu', '--set',
                 f'out={tmp_path}', '--set', f'classes={world_set / "known.yaml"}', '--set',
                 'embeddings=null', '--set', 'test_n_class_examples_per_epoch=50']) == 0
    printed, shown = capsys.readouterr()
    assert 'judging onnxruntime-cpu: 100%|' in shown
    written = json.loads((tmp_path / 'figures.json').read_text())['figures']
    assert written['miou'] == pytest.approx(figures.miou, abs=5e-3)
    assert written['semantic_miou'] == pytest.approx(figures.semantic_miou, abs=5e-3)
    assert written['class_iou'].keys() == {'road', 'ground', 'water', 'plants'}
    assert f'mIoU {written["miou"]:.4f}' in printed


def test_other_classes_are_refused(world_set: Path, tuned_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match='the network knows the classes road, ground'):
        evaluate(_settings(world_set, tuned_bundle, tmp_path, classes=world_set / 'new.yaml',
                           engine='onnxruntime-cpu'))


def test_the_graphs_build_as_plans(tuned_bundle: Path, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert main(['fpseg', 'build', '--set', f'network={tuned_bundle}', '--set',
                 'builder=tensorrt_rtx', '--set', 'stages=[decoder]', '--set',
                 'n_classes=[1, 3, 8]', '--set', 'image_sizes=[192x96]', '--set',
                 'optimisation_level=0']) == 0
    assert 'decoder: built' in capsys.readouterr().out


def test_the_benchmark_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / 'fpseg.csv'
    assert main(['fpseg', 'bench', '--set', f'out={path}', '--set', 'input_size_px=64', '--set',
                 'image_size_px=[96, 64]', '--set', 'n_classes=[1, 4]', '--set',
                 'prompt_sizes=[2]', '--set', 'engines=[upstream, torch, onnxruntime-cpu]',
                 '--set', 'n_runs=2', '--set', 'n_warmup=1', '--set', 'device=cpu']) == 0
    with open(path, encoding='utf-8') as stream:
        rows = list(csv.DictReader(stream))
    assert [(row['engine'], row['n_classes']) for row in rows] == [
        ('upstream', '1'), ('upstream', '4'), *(
            (engine, count) for engine in ('torch', 'onnxruntime-cpu') for count in '1144')]
    assert all(float(row['p50_ms']) > 0 and row['ratio_to_upstream'] for row in rows)
    printed, shown = capsys.readouterr()
    assert 'x upstream' in printed
    assert 'measuring: 100%|' in shown


def test_ratio_and_cost_of_a_class() -> None:
    def row(engine: str, n_classes: int, p50_ms: float) -> Row:
        return Row('cpu', engine, 'fp32', 'mobilesam', 1024, '2048x1024', n_classes, 4, NEW_FRAME,
                   5, p50_ms, p50_ms, p50_ms)

    rows = with_ratios([row(UPSTREAM, 1, 100.0), row(UPSTREAM, 3, 300.0), row('fast', 1, 10.0),
                        row('fast', 3, 14.0), row('alone', 5, 7.0)])
    assert [entry.ratio_to_upstream for entry in rows] == [1.0, 1.0, 10.0, 21.43, None]
    assert [entry.per_class_ms for entry in rows] == [100.0, 100.0, 2.0, 2.0, None]


def test_an_unknown_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(['fpseg', 'bench', '--set', f'out={tmp_path / "a.csv"}', '--set',
                 'engines=[warp]']) == 2
    assert "'warp' is not an engine" in capsys.readouterr().err


def test_tuned_classes_join_a_bundle_that_runs(
        tune_settings: Callable[..., TuneSettings], world_set: Path, base: Path,
        tuned_bundle: Path, tmp_path: Path) -> None:
    tune(tune_settings(base / 'best.safetensors', tmp_path, classes=world_set / 'new.yaml',
                       seed=3, n_epochs=1))
    backend = open_on_engine(str(tuned_bundle), 'onnxruntime-cpu', 'cpu')
    try:
        added = backend.add_classes(tmp_path / 'best_prompts.safetensors')
        assert added == ('safe', 'hard', 'green')
        image = read_image(list_frames(world_set, 'val', labelled=False)[0].image)
        logits = backend.to_host(backend.decode(
            backend.encode_image(image), backend.encode_prompts(['green', 'road'])))
    finally:
        backend.deactivate()
    for row, network, index in ((0, tmp_path, 2), (1, base, 0)):
        model = load_network(network / 'best.safetensors')
        preprocess = Preprocessor(model.config, torch.device('cpu'))
        with torch.inference_mode():
            expected = decode_all(model, model.encode_images(preprocess(image)[None])[0])[index]
        np.testing.assert_allclose(logits[row], expected, atol=2e-3)


def test_tuning_goes_on_from_a_bundle(world_set: Path, tuned_bundle: Path, figures: Figures,
                                      tmp_path: Path) -> None:
    """A bundle's batch norms are folded into its convolutions."""
    embed(EmbedSettings(world_set, str(tuned_bundle), tmp_path / 'embeddings', workers=1,
                        device='cpu'))
    outcome = tune(TuneSettings(
        world_set, tmp_path / 'embeddings', str(tuned_bundle), tmp_path / 'run',
        classes=world_set / 'known.yaml', prompt_size=4, batch_size=16, best_by='miou',
        train_n_class_examples_per_epoch=4, test_n_class_examples_per_epoch=50, n_epochs=1,
        workers=1, device='cpu'))
    # It knows the classes by name, so it starts where the bundle is.
    assert outcome.start == pytest.approx(figures.miou, abs=5e-3)
    load_network(tmp_path / 'run' / 'best.safetensors')
