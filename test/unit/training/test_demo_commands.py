# SPDX-License-Identifier: Apache-2.0
"""The commands `train-demo` and `evaluate-demo`, as far as seconds allow."""

import tarfile
from pathlib import Path

import pytest
import yaml

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.main import main
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.training.checkpoint import save_checkpoint
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.family_clipseg import build_model
from blabberseg_ros.training.lexicon import training_vocabulary

MODEL = {
    'pretrain_grid': 22, 'vision_width': 16, 'vision_heads': 2, 'vision_layers': 3,
    'vision_mlp': 16, 'extract': [0, 1, 2], 'embed_dim': 8, 'text_width': 8, 'text_heads': 2,
    'text_layers': 1, 'text_mlp': 8, 'reduce_dim': 8, 'decoder_heads': 2, 'decoder_ffn': 8}


def test_a_checkpoint_becomes_a_bundle(tmp_path: Path) -> None:
    values = {**MODEL, 'extract': tuple(MODEL['extract']), 'input_size_px': 64}
    config = TrainConfig(model=ClipSegConfig(**values))
    save_checkpoint(build_model(config), config, tmp_path / 'c.safetensors')
    assert main(['train-demo', '--export-from', str(tmp_path / 'c.safetensors'),
                 '--out', str(tmp_path / 'engines')]) == 0
    bundle = load_bundle(tmp_path / 'engines' / 'clipseg_demo')
    assert bundle.vocabulary == frozenset(training_vocabulary())
    card = (bundle.folder / 'README.md').read_text()
    assert '**For demonstration, never for flight.**' in card
    assert 'Not measured yet' in card


def test_from_the_first_world_to_the_bundle(tmp_path: Path) -> None:
    content = {
        'worlds': {'train': 2, 'validation': 1, 'test': 1, 'views': 1, 'size_m': 60.0,
                   'resolution_m': 0.2, 'first': 1, 'ramp_steps': 1},
        'optimiser': {'steps': 2, 'batch_size': 2, 'prompt_sets': 1, 'warmup_steps': 1},
        'model': MODEL}
    (tmp_path / 'train.yaml').write_text(yaml.safe_dump(content))
    out = tmp_path / 'out'
    assert main(['train-demo', '--config', str(tmp_path / 'train.yaml'), '--out', str(out),
                 '--device', 'cpu', '--workers', '1']) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        'checkpoint.safetensors', 'clipseg_demo.tar', 'metrics.json', 'train.log']
    with tarfile.open(out / 'clipseg_demo.tar') as archive:
        archive.extractall(tmp_path, filter='data')
    folder = tmp_path / 'clipseg_demo'
    load_bundle(folder)
    assert main(['evaluate-demo', '--bundle', str(folder), '--worlds', '1', '--views', '1',
                 '--obedience-views', '1', '--workers', '1', '--engine', 'onnxruntime-cpu',
                 '--out', str(out), '--update-card']) == 0
    assert 'onnxruntime-cpu' in (folder / 'README.md').read_text()
    assert 'IoU safe' in (out / 'evaluation.md').read_text()


@pytest.mark.parametrize(('arguments', 'named'), [
    (['train-demo', '--export-from', 'nowhere.safetensors'], 'nowhere'),
    (['train-demo', '--config', 'nowhere.yaml'], 'nowhere'),
    (['evaluate-demo', '--worlds', '0'], '--worlds'),
    (['evaluate-demo', '--bundle', 'no-such-bundle'], 'no-such-bundle')])
def test_what_cannot_be_done_is_refused_in_one_line(arguments, named, capsys) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert named in message
    assert 'Traceback' not in message
