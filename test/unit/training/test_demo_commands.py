# SPDX-License-Identifier: Apache-2.0
"""The commands `train-demo` and `evaluate-demo`, as far as seconds allow."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.main import main
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.prompts import default_prompts
from blabberseg_ros.segmenter import Segmenter
from blabberseg_ros.training.bundle_predictor import BundlePredictor
from blabberseg_ros.training.checkpoint import load_checkpoint, save_checkpoint
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.family import family_class
from blabberseg_ros.training.family_clipseg import build_model
from blabberseg_ros.training.lexicon import training_vocabulary

MODEL = {
    'pretrain_grid': 22, 'vision_width': 16, 'vision_heads': 2, 'vision_layers': 3,
    'vision_mlp': 16, 'extract': [0, 1, 2], 'embed_dim': 8, 'text_width': 8, 'text_heads': 2,
    'text_layers': 1, 'text_mlp': 8, 'reduce_dim': 8, 'decoder_heads': 2, 'decoder_ffn': 8}

# All as large as the views that they are judged on, and no larger than they must be.
MODELS = {
    'clipseg': MODEL,
    'segformer': {'input_size_px': 352, 'hidden': [8, 8, 16, 16], 'depths': [1, 1, 1, 1],
                  'heads': [1, 1, 2, 2], 'decoder_width': 8},
    'lseg': {'backbone': 'resnet', 'input_size_px': 352, 'resnet_blocks': [1, 1, 1, 1],
             'resnet_width': 4, 'features': 8, 'embed_dim': 8, 'text_width': 8, 'text_heads': 2,
             'text_layers': 1, 'text_mlp': 8, 'vocab_size': 1536},
    'fpseg': {'input_size_px': 352, 'prompt_size': 2, 'width': 16, 'decoder_heads': 2,
              'decoder_mlp': 16, 'encoder': {
                  'embed_dims': [8, 8, 16, 16], 'depths': [1, 1, 1, 1], 'heads': [1, 1, 2, 2],
                  'windows': [7, 11, 11, 11]}}}
CONFIGS = Path(__file__).parents[3] / 'config'
ENGINES = CONFIGS.with_name('engines')


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


@pytest.mark.parametrize('family', MODELS)
def test_from_the_first_world_to_the_bundle(family: str, tmp_path: Path) -> None:
    content = {
        'family': family,
        'worlds': {'train': 2, 'validation': 1, 'test': 1, 'views': 1, 'size_m': 60.0,
                   'resolution_m': 0.2, 'first': 1, 'ramp_steps': 1},
        'optimiser': {'steps': 2, 'batch_size': 2, 'prompt_sets': 1, 'warmup_steps': 1},
        'model': MODELS[family]}
    (tmp_path / 'train.yaml').write_text(yaml.safe_dump(content))
    out = tmp_path / 'out'
    assert main(['train-demo', '--config', str(tmp_path / 'train.yaml'), '--out', str(out),
                 '--device', 'cpu', '--workers', '1', '--world-cache', str(tmp_path / 'worlds'),
                 ]) == 0
    assert {path.name for path in out.iterdir()} == {
        'checkpoint.safetensors', f'{family}_demo.tar', 'metrics.json', 'train.log'}
    with tarfile.open(out / f'{family}_demo.tar') as archive:
        archive.extractall(tmp_path, filter='data')
    folder = tmp_path / f'{family}_demo'
    assert load_bundle(folder).manifest.family == family
    assert main(['evaluate-demo', '--bundle', str(folder), '--worlds', '1', '--views', '1',
                 '--obedience-views', '1', '--workers', '1', '--engine', 'onnxruntime-cpu',
                 '--out', str(out), '--update-card']) == 0
    assert 'onnxruntime-cpu' in (folder / 'README.md').read_text()
    assert 'IoU safe' in (out / 'evaluation.md').read_text()
    # What was judged in training is what the bundle answers.
    model, config = load_checkpoint(out / 'checkpoint.safetensors')
    trained = family_class(family)(tmp_path).predictor(model, torch.device('cpu'))
    image = np.random.default_rng(0).integers(0, 256, (352, 352, 3), dtype=np.uint8)
    with Segmenter.open(folder, engine='onnxruntime-cpu') as segmenter:
        found = BundlePredictor(segmenter).probability(image, default_prompts())
    np.testing.assert_allclose(found, trained.probability(image, default_prompts()), atol=2e-3)
    assert config.family == family


def test_a_network_continues_only_as_what_it_is(tmp_path: Path, capsys) -> None:
    values = {**MODEL, 'extract': tuple(MODEL['extract']), 'input_size_px': 64}
    config = TrainConfig(model=ClipSegConfig(**values))
    save_checkpoint(build_model(config), config, tmp_path / 'c.safetensors')
    assert main(['train-demo', '--family', 'lseg', '--continue-from',
                 str(tmp_path / 'c.safetensors'), '--out', str(tmp_path / 'out')]) == 2
    assert 'clipseg' in capsys.readouterr().err


@pytest.mark.parametrize(('arguments', 'named'), [
    (['train-demo', '--tower-from', str(ENGINES / 'segformer_demo')], 'no CLIPSeg'),
    (['train-demo', '--export-from', 'nowhere.safetensors'], 'nowhere'),
    (['train-demo', '--config', 'nowhere.yaml'], 'nowhere'),
    (['train-demo', '--family', 'fpseg', '--config', str(CONFIGS / 'train_demo.yaml')], 'clipseg'),
    (['evaluate-demo', '--worlds', '0'], '--worlds'),
    (['evaluate-demo', '--bundle', 'no-such-bundle'], 'no-such-bundle')])
def test_what_cannot_be_done_is_refused_in_one_line(arguments, named, capsys) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert named in message
    assert 'Traceback' not in message
