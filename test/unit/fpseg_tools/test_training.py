# SPDX-License-Identifier: Apache-2.0
"""The tools on the miniature set: they really train, and a killed run resumes to the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.cityscapes import list_frames
from blabberseg_ros.fpseg_tools.distil import DistilSettings, distil
from blabberseg_ros.fpseg_tools.embed import EmbedSettings, embed
from blabberseg_ros.fpseg_tools.embedding_store import EmbeddingStore
from blabberseg_ros.fpseg_tools.networks import load_network
from blabberseg_ros.fpseg_tools.settings import as_mapping
from blabberseg_ros.fpseg_tools.sole_writer import sole_writer
from blabberseg_ros.fpseg_tools.training_run import Outcome
from blabberseg_ros.fpseg_tools.tune import TuneSettings, tune
from blabberseg_ros.models.fpseg_config import FpSegConfig, SamVitConfig, TinyVitConfig
from blabberseg_ros.models.fpseg_prompts import read_prompts
from blabberseg_ros.models.random_fpseg import random_fpseg

_DEADLINE_S = 120.0
TuneMaker = Callable[..., TuneSettings]
pytestmark = pytest.mark.usefixtures('one_thread')


def _tests(out: Path) -> list[dict]:
    records = [json.loads(line) for line in (out / 'log.jsonl').read_text().splitlines()]
    return [record['test'] for record in records if 'test' in record]


def _kill_when(tool: str, settings: object, folder: Path, ready: Callable[[], bool]) -> None:
    """Start the tool as a process and kill it, with no chance to clean up, when it is ready."""
    config = folder / 'settings.yaml'
    config.write_text(yaml.safe_dump(as_mapping(settings)))
    process = subprocess.Popen(
        [sys.executable, '-m', 'blabberseg_ros.cli.main', 'fpseg', tool, '--config', str(config)],
        env={**os.environ, 'OMP_NUM_THREADS': '1'}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + _DEADLINE_S
    try:
        while not ready():
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline, f'{tool} did not get that far'
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    process.stderr.close()


def _step(out: Path) -> int:
    """Return how far a run was when it last wrote its state."""
    with safe_open(out / 'state.safetensors', 'pt') as stream:
        return json.loads(stream.metadata()['position'])['step']


def _same(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_distillation_teaches_the_encoder(distilled: tuple[Path, Outcome]) -> None:
    out, outcome = distilled
    # Observed: 1.98 before, 0.38 after 64 updates; the teacher's embeddings have variance 1.
    assert outcome.best < 0.6 < 1.5 < outcome.start
    assert outcome.best == min(test['mse'] for test in _tests(out))


def test_prompt_tuning_lifts_miou(tune_settings: TuneMaker, base: Path, tmp_path: Path) -> None:
    """Random prompts on a frozen network against tuned ones, on pictures not trained on."""
    before = load_network(base / 'best.safetensors')
    starts, ends = [], []
    # One random start alone may be lucky: semantic mIoU from 0.06 to 0.41.
    for seed in (3, 4, 5):
        outcome = tune(tune_settings(base / 'best.safetensors', tmp_path / str(seed),
                                     keep_prompts=False, seed=seed, n_epochs=8))
        first, *_, last = _tests(tmp_path / str(seed))
        starts.append((outcome.start, first['semantic_miou']))
        ends.append((outcome.best, last['semantic_miou']))
    start, end = np.mean(starts, axis=0), np.mean(ends, axis=0)
    # docs/families.md has what was observed.
    print(f'mIoU {start[0]:.2f} -> {end[0]:.2f}, semantic mIoU {start[1]:.2f} -> {end[1]:.2f}')
    assert end[0] > start[0] + 0.1
    assert end[1] > start[1] + 0.2
    after = load_network(tmp_path / '3' / 'best.safetensors')
    for name, value in before.state_dict().items():
        tuned = name.startswith('prompt_encoder.prompt_embeddings') or 'no_mask_embed' in name
        assert torch.equal(value, after.state_dict()[name]) is not tuned, name


def test_new_classes_are_added_without_touching_the_rest(
        tune_settings: TuneMaker, world_set: Path, base: Path, tmp_path: Path) -> None:
    outcome = tune(tune_settings(
        base / 'best.safetensors', tmp_path, seed=3, n_epochs=8,
        classes=world_set / 'new.yaml'))
    # Observed: 0.15 -> 0.51.
    assert outcome.best > outcome.start + 0.15
    prompts = read_prompts(tmp_path / 'best_prompts.safetensors')
    assert [prompt.name for prompt in prompts] == ['safe', 'hard', 'green']
    assert prompts[0].tokens.shape == (4, 64)


def test_the_decoder_can_be_tuned_as_well(base: Path, distilled: tuple[Path, Outcome]) -> None:
    before, after = (load_network(folder / 'best.safetensors').state_dict()
                     for folder in (distilled[0], base))
    assert any(not torch.equal(value, after[name]) for name, value in before.items()
               if name.startswith('mask_decoder.'))
    assert all(torch.equal(value, after[name]) for name, value in before.items()
               if name.startswith('image_encoder.'))


def _to_be_killed(tune_settings: TuneMaker, base: Path, out: Path) -> TuneSettings:
    # No test comes with a state: of 40 updates, 7, 14, ... are kept and 20 and 40 are judged.
    return tune_settings(base / 'best.safetensors', out, keep_prompts=False, seed=5, n_epochs=4,
                         test_interval=2, save_interval=7, tuned_part='prompts_and_decoder')


@pytest.fixture(scope='module')
def whole_run(one_thread: None, tune_settings: TuneMaker, base: Path,
              tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return the folder and the outcome of a run that was not killed."""
    out = tmp_path_factory.mktemp('whole')
    return out, tune(_to_be_killed(tune_settings, base, out))


def _has_state(out: Path) -> bool:
    return (out / 'state.safetensors').exists()


def _has_tested_again(out: Path) -> bool:
    """Return whether the log has a test after that of the start."""
    return (out / 'log.jsonl').exists() and (out / 'log.jsonl').read_text().count('"test"') > 1


@pytest.mark.parametrize('ready', [_has_state, _has_tested_again])
def test_a_killed_tuning_resumes_to_the_same_result(
        ready: Callable[[Path], bool], tune_settings: TuneMaker, base: Path,
        whole_run: tuple[Path, Outcome], tmp_path: Path) -> None:
    (whole, expected), killed = whole_run, tmp_path / 'killed'
    settings = _to_be_killed(tune_settings, base, killed)
    _kill_when('tune', settings, tmp_path, lambda: ready(killed))
    assert 0 < _step(killed) < expected.steps
    leftover = killed / '.state.safetensors.999.tmp'
    leftover.write_bytes(b'half')
    outcome = tune(settings)
    assert outcome.start is None  # it did not start anew
    assert not leftover.exists()
    assert (outcome.best, outcome.best_step) == (expected.best, expected.best_step)
    _same(whole / 'best.safetensors', killed / 'best.safetensors')
    _same(whole / 'state.safetensors', killed / 'state.safetensors')
    assert (whole / 'log.jsonl').read_text() == (killed / 'log.jsonl').read_text()


def test_a_killed_distillation_resumes_to_the_same_result(
        distil_settings: Callable[..., DistilSettings], tmp_path: Path,
        capsys: pytest.CaptureFixture) -> None:
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    length = {'n_epochs': 2, 'test_interval': 1}
    expected = distil(distil_settings(whole, **length))
    shown = capsys.readouterr().err
    assert 'distilling: 100%|' in shown
    assert 'testing: 100%|' in shown
    settings = distil_settings(killed, **length)
    _kill_when('distil', settings, tmp_path, (killed / 'state.safetensors').exists)
    assert 0 < _step(killed) < expected.steps
    outcome = distil(settings)
    assert (outcome.best, outcome.best_step) == (expected.best, expected.best_step)
    # Batch norms are part of it.
    _same(whole / 'best.safetensors', killed / 'best.safetensors')
    _same(whole / 'state.safetensors', killed / 'state.safetensors')


def test_a_killed_embedding_goes_on_where_it_was(
        world_set: Path, embeddings: Path, distilled: tuple[Path, Outcome],
        tmp_path: Path) -> None:
    folder = tmp_path / 'embeddings'
    settings = EmbedSettings(
        world_set, str(distilled[0] / 'best.safetensors'), folder, splits=('train',),
        frames_per_shard=1, batch_size=1, workers=1, device='cpu')
    _kill_when('embed', settings, tmp_path,
               (folder / 'train' / 'shard-00003.safetensors').exists)
    left = len(list((folder / 'train').glob('shard-*')))
    assert 4 <= left < 48
    times = {path: path.stat().st_mtime_ns for path in (folder / 'train').glob('shard-*')}
    assert embed(settings) == {'train': 48 - left}
    assert all(path.stat().st_mtime_ns == written for path, written in times.items())
    store, reference = (EmbeddingStore.open(place / 'train') for place in (folder, embeddings))
    for stem in store.header.stems:
        # One frame at a time or three: sums may differ in the last bits of fp16.
        assert abs(store.read(stem).astype(float) - reference.read(stem)).max() < 4e-3
    assert embed(settings) == {'train': 0}


def test_a_run_with_other_settings_is_not_taken_up(tune_settings: TuneMaker,
                                                    base: Path) -> None:
    distilled = base.parent / 'distilled' / 'best.safetensors'
    with pytest.raises(ParameterError, match='prompt_learning_rate was'):
        tune(tune_settings(distilled, base, decoder_learning_rate=3e-3,
                           tuned_part='prompts_and_decoder', prompt_learning_rate=0.5,
                           n_epochs=12, test_interval=6))


def _base_settings(tune_settings: TuneMaker, base: Path, **changes: object) -> TuneSettings:
    """Return the settings that the run in `base` was made with."""
    return tune_settings(base.parent / 'distilled' / 'best.safetensors', base, **{
        'tuned_part': 'prompts_and_decoder', 'decoder_learning_rate': 3e-3,
        'prompt_learning_rate': 0.01, 'n_epochs': 12, 'test_interval': 6, **changes})


@pytest.mark.parametrize(('old', 'new', 'reason'), [
    ('water: [3]', 'water: [3, 4]', 'class_list was'),
    ('ignored: [0]', 'ignored: [0, 4]', 'ignored was'),
    ('exclusive: [road, ground, water]', 'exclusive: [road, ground]', 'exclusive was')])
def test_a_run_is_not_taken_up_with_other_labels_under_the_same_names(
        old: str, new: str, reason: str, tune_settings: TuneMaker, world_set: Path, base: Path,
        tmp_path: Path) -> None:
    text = (world_set / 'known.yaml').read_text()
    assert old in text
    (tmp_path / 'classes.yaml').write_text(text.replace(old, new))
    with pytest.raises(ParameterError, match=reason):
        tune(_base_settings(tune_settings, base, classes=tmp_path / 'classes.yaml'))


def test_a_run_is_not_taken_up_with_other_embeddings_or_frames(
        tune_settings: TuneMaker, world_set: Path, base: Path, embeddings: Path,
        tmp_path: Path) -> None:
    shutil.copytree(embeddings, tmp_path / 'embeddings')
    header = tmp_path / 'embeddings' / 'train' / 'store.json'
    header.write_text(header.read_text().replace('"float16"', '"float32"'))
    settings = _base_settings(tune_settings, base)
    with pytest.raises(ParameterError, match=r"embeddings was \['float16', 'float16'\]"):
        tune(replace(settings, embeddings=tmp_path / 'embeddings'))
    shutil.copytree(world_set, tmp_path / 'set')
    first = list_frames(tmp_path / 'set', 'train', labelled=True)[0]
    first.image.unlink()
    with pytest.raises(ParameterError, match=r"frames was \['48 frames"):
        tune(replace(settings, data_root=tmp_path / 'set'))


def test_one_process_trains_in_a_folder(tune_settings: TuneMaker, base: Path,
                                        distil_settings: Callable[..., DistilSettings],
                                        distilled: tuple[Path, Outcome]) -> None:
    for folder, run in ((base, lambda: tune(_base_settings(tune_settings, base))),
                        (distilled[0], lambda: distil(distil_settings(distilled[0])))):
        with sole_writer(folder), pytest.raises(ParameterError, match='another process'):
            run()
        run()  # there is nothing left to do


def test_embeddings_of_another_encoder_are_refused(tune_settings: TuneMaker,
                                                    random_network: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match='another encoder'):
        tune(tune_settings(random_network, tmp_path))


def test_training_starts_from_a_plain_sam_checkpoint(
        world_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """SAM's own file has prompts for points and three further masks, which are of no use here."""
    config = FpSegConfig(
        encoder=SamVitConfig(width=32, depth=2, heads=2, global_blocks=(1,), grid=8),
        class_names=('none',), prompt_size=4, input_size_px=128, width=64, decoder_mlp=64)
    state = dict(random_fpseg(config).state_dict())
    del state['prompt_encoder.prompt_embeddings']
    own = 'mask_decoder.output_hypernetworks_mlps.0'
    for index in (1, 2, 3):
        state |= {name.replace(own, own[:-1] + str(index)): value
                  for name, value in state.items() if name.startswith(own)}
    state['mask_decoder.mask_tokens.weight'] = torch.randn(4, 64)
    for name in ('mask_decoder.iou_token', 'mask_decoder.iou_prediction_head.layers.0',
                 'prompt_encoder.point_embeddings.3', 'prompt_encoder.not_a_point_embed',
                 'prompt_encoder.mask_downscaling.6'):
        state[f'{name}.weight'] = torch.randn(1, 64)
    checkpoint = tmp_path / 'sam_vit.pth'
    torch.save(state, checkpoint)
    embed(EmbedSettings(world_set, str(checkpoint), tmp_path / 'embeddings', input_size_px=128,
                        workers=1, device='cpu'))
    outcome = tune(TuneSettings(
        world_set, tmp_path / 'embeddings', str(checkpoint), tmp_path / 'run',
        classes=world_set / 'known.yaml', prompt_size=4, batch_size=4,
        train_n_class_examples_per_epoch=2, test_n_class_examples_per_epoch=5, n_epochs=1,
        test_frames=3, workers=1, device='cpu'))
    assert outcome.steps == 2
    after = load_network(tmp_path / 'run' / 'best.safetensors')
    assert after.config.encoder == config.encoder
    assert after.config.class_names == ('road', 'ground', 'water', 'plants')
    frozen = 'image_encoder.patch_embed.proj.weight'
    assert torch.equal(after.state_dict()[frozen], state[frozen])
    shown = capsys.readouterr().err
    for title in ('embedding train', 'embedding val', 'reading label maps', 'tuning prompts',
                  'testing'):
        assert f'{title}: 100%|' in shown


def test_checkpoints_with_and_without_biases_are_told_apart(world_set: Path,
                                                            tmp_path: Path) -> None:
    """The published FPSeg was tuned with zero biases and deployed with live ones."""
    config = FpSegConfig(
        encoder=TinyVitConfig((16, 32, 64, 320), (1, 1, 1, 1), (1, 1, 2, 10)),
        class_names=('a', 'b', 'c', 'd'), prompt_size=4, input_size_px=128, width=64,
        decoder_mlp=64)
    checkpoint = tmp_path / 'mobile_sam.pt'
    state = random_fpseg(config).state_dict()
    torch.save({name: value for name, value in state.items() if 'prompt_embed' not in name},
               checkpoint)

    def settings(**changes: object) -> EmbedSettings:
        values: dict = {'input_size_px': 128, 'attention_bias': 'zero', 'fit': 'letterbox',
                        'workers': 1, 'device': 'cpu', **changes}
        return EmbedSettings(world_set, str(checkpoint), tmp_path / 'zero', **values)

    embed(settings())
    with pytest.raises(ParameterError, match='encoder, attention_bias differs'):
        embed(settings(attention_bias='live'))
    store = EmbeddingStore.open(tmp_path / 'zero' / 'val')
    assert (store.header.attention_bias, store.header.fit) == ('zero', 'letterbox')
    # Tuning takes the network as the embeddings had it, and leaves the letterbox out.
    outcome = tune(TuneSettings(
        world_set, tmp_path / 'zero', str(checkpoint), tmp_path / 'run',
        classes=world_set / 'known.yaml', prompt_size=4, batch_size=4,
        train_n_class_examples_per_epoch=2, test_n_class_examples_per_epoch=5, n_epochs=1,
        target_size_px=64, test_frames=3, workers=1, device='cpu'))
    tuned = load_network(tmp_path / 'run' / 'best.safetensors')
    assert outcome.steps == 2
    assert (tuned.config.attention_bias, tuned.config.fit) == ('zero', 'letterbox')
    assert tuned.config.class_names == ('road', 'ground', 'water', 'plants')
