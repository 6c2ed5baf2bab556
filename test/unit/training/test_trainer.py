# SPDX-License-Identifier: Apache-2.0
"""The training loop on a tiny network and tiny worlds."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blabberseg_ros.errors import BundleError, ParameterError
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.training.card import with_tables, write_card
from blabberseg_ros.training.checkpoint import load_checkpoint, rounded_to_half, save_checkpoint
from blabberseg_ros.training.config import (
    CropsConfig,
    OptimiserConfig,
    TrainConfig,
    WorldsConfig,
    config_from_dict,
    worlds_needed,
)
from blabberseg_ros.training.family import family_class
from blabberseg_ros.training.trainer import Trainer, learning_rate
from blabberseg_ros.training.worlds import POINTS, Map

CONFIGS = Path(__file__).parents[3] / 'config'
TINY = TrainConfig(
    seed=3,
    worlds=WorldsConfig(train=3, first=1, ramp_steps=2, size_m=32.0, resolution_m=0.5),
    crops=CropsConfig(min_altitude_m=6.0, max_altitude_m=12.0),
    optimiser=OptimiserConfig(steps=3, batch_size=2, prompt_sets=2, warmup_steps=1),
    model=ClipSegConfig(
        input_size_px=32, pretrain_grid=2, vision_width=16, vision_heads=2, vision_layers=3,
        vision_mlp=16, extract=(0, 1, 2), embed_dim=8, text_width=8, text_heads=2, text_layers=1,
        text_mlp=8, reduce_dim=8, decoder_heads=2, decoder_ffn=8))


class Feed:
    """Worlds of random blocks; remembers how many were taken."""

    is_ready = False

    def __init__(self) -> None:
        self.taken = 0

    def next(self) -> Map:
        rng = np.random.default_rng(self.taken)
        self.taken += 1
        labels = np.kron(rng.integers(1, 12, (8, 8)), np.ones((8, 8))).astype(np.uint8)
        rgb = np.stack([labels * 20] * 3, -1).astype(np.uint8)
        points = rng.uniform(0, 64, (12, POINTS, 2)).astype(np.float32)
        return Map(rgb, labels, np.bincount(labels.ravel(), minlength=12), points)


@pytest.fixture(scope='module')
def family(tmp_path_factory):
    return family_class('clipseg')(tmp_path_factory.mktemp('family'))


def _trained(family, config=TINY, feed=None, deadline_s=None):
    trainer = Trainer(config, family, feed or Feed(), torch.device('cpu'))
    lines, steps = [], []
    trainer.run(lambda progress: bool(steps.append(progress.step)) or True, lines.append,
                deadline_s)
    return trainer, lines, steps


@pytest.fixture(scope='module')
def trainer(family):
    return _trained(family)[0]


def test_the_same_configuration_gives_the_same_weights(family, trainer) -> None:
    again = _trained(family)[0]
    for name, weight in trainer.averaged.state_dict().items():
        assert torch.equal(weight, again.averaged.state_dict()[name]), name
    other = _trained(family, replace(TINY, seed=4))[0]
    assert not torch.equal(other.model.film_mul.weight, trainer.model.film_mul.weight)


def test_every_part_of_the_network_learns(family, trainer) -> None:
    fresh = Trainer(TINY, family, Feed(), torch.device('cpu')).model
    before = dict(fresh.named_parameters())
    for name, weight in trainer.model.named_parameters():
        assert torch.isfinite(weight).all(), name
        if 'token_embedding' not in name:
            assert not torch.equal(weight, before[name]), name
    for name, weight in trainer.averaged.named_parameters():
        assert torch.isfinite(weight).all(), name


def test_words_that_training_never_shows_mean_nothing(family, trainer) -> None:
    rows = trainer.averaged.token_embedding.weight
    unseen = family.tokenizer.encode('zebra').ids[1]
    seen = family.tokenizer.encode('grass').ids[1]
    assert (rows[unseen] == 0).all()
    assert (rows[seen] != 0).any()


def test_worlds_come_into_use_by_the_step_and_by_nothing_else(family) -> None:
    assert [worlds_needed(step, TINY) for step in range(5)] == [1, 2, 3, 3, 3]
    feed = Feed()
    _, lines, steps = _trained(family, feed=feed)
    assert feed.taken == 3
    assert steps == [1, 2, 3]
    assert any(line.startswith('step 1/3') for line in lines)


def test_the_rate_rises_then_falls() -> None:
    config = OptimiserConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.01 <= rates[-1] < 0.02


def test_a_deadline_plans_the_number_of_steps(family) -> None:
    many = replace(TINY, optimiser=replace(TINY.optimiser, steps=10_000, warmup_steps=4))
    # A deadline that has passed leaves only the steps of the warm-up.
    trainer, lines, steps = _trained(family, many, deadline_s=0.0)
    assert trainer.config.optimiser.steps == len(steps) == 4
    assert 'planned 4 steps' in lines


def test_a_loss_that_is_no_number_ends_the_run(family) -> None:
    wild = replace(TINY, optimiser=replace(TINY.optimiser, learning_rate=1e30, steps=30))
    with pytest.raises(ParameterError, match='learning_rate'):
        _trained(family, wild)


def test_a_checkpoint_gives_back_the_rounded_network(trainer, tmp_path) -> None:
    path = tmp_path / 'checkpoint.safetensors'
    save_checkpoint(trainer.averaged, TINY, path)
    model, config = load_checkpoint(path)
    assert config == TINY
    rounded = rounded_to_half(trainer.averaged).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, rounded[name]), name


def test_a_run_goes_on_from_what_fits(family, trainer) -> None:
    wider = replace(TINY, model=replace(TINY.model, decoder_ffn=12), earlier_steps=3)
    again = Trainer(wider, family, Feed(), torch.device('cpu'), trainer.averaged)
    assert again.fresh
    assert all(name.startswith('blocks.') for name in again.fresh)
    ours, theirs = again.model.state_dict(), trainer.averaged.state_dict()
    for name, weight in ours.items():
        assert (name in again.fresh) != torch.equal(weight, theirs[name]), name


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', None])
def test_what_is_no_checkpoint_is_refused(content, tmp_path) -> None:
    path = tmp_path / 'checkpoint.safetensors'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match='train-demo'):
        load_checkpoint(path)


def test_the_predictor_caches_without_mixing_things_up(family, trainer) -> None:
    from blabberseg_ros.prompts import PromptSet

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(2)]
    first, second = PromptSet(('grass',), ('road', 'tree')), PromptSet(('tree',), ('grass',))
    cached = family.predictor(trainer.averaged, torch.device('cpu'))
    for image in images:
        for prompts in (first, second, first):
            fresh = family.predictor(trainer.averaged, torch.device('cpu'))
            np.testing.assert_allclose(cached.probability(image, prompts),
                                       fresh.probability(image, prompts), atol=1e-6)
    both = sum(cached.probability(images[0], prompts) for prompts in (
        PromptSet(('grass',), ('tree',)), second))
    np.testing.assert_allclose(both, 1.0, atol=1e-5)


@pytest.mark.parametrize(('text', 'named'), [
    ('seeds: 3\n', 'seeds'), ('worlds: {trains: 3}\n', 'trains'), ('worlds: 3\n', 'worlds'),
    ('[1, 2', 'cannot be read'), ('family: unet\n', 'unet'),
    ('family: fpseg\nmodel: {encoder: {width: 3}}\n', 'width'),
    ('family: lseg\nmodel: {features: [4, 3], input_size_px: 100}\n', '100'),
    ('optimiser: {batch_size: 8, prompt_sets: 3}\n', 'train.yaml: batch_size 8'),
    ('family: lseg\noptimiser: {prompt_sets: 0}\n', 'prompt_sets 0'),
    ('loss: {stride: 2}\n', 'train.yaml: stride must be odd, not 2')])
def test_a_configuration_that_is_not_understood_is_refused(text, named, tmp_path) -> None:
    path = tmp_path / 'train.yaml'
    path.write_text(text)
    with pytest.raises(ParameterError, match=named):
        TrainConfig.from_yaml(path)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('train_*.yaml')), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_read(path) -> None:
    config = TrainConfig.from_yaml(path)
    assert config.optimiser.batch_size % config.optimiser.prompt_sets == 0
    assert config.model.family == config.family
    # What a checkpoint keeps gives the same run again.
    assert config_from_dict(json.loads(json.dumps(asdict(config))), 'here') == config


def test_the_card_warns_and_tells_what_was_measured() -> None:
    def written(metrics):
        return write_card('demo', 'CLIPSeg', 'tiny', 'none', TINY, metrics)

    score = {'safe_iou': 0.87654, 'unsafe_iou': 0.9, 'views': 7}

    def moved(*flipped: float) -> dict:
        return {'name': 'road', 'phrase': 'road', 'before': 0.9, 'after': 0.1, 'flips': [
            {'threshold': threshold, 'safe_before': 0.8, 'flipped': share}
            for threshold, share in zip((0.8, 0.5), flipped, strict=True)]}

    metrics = {'threshold': 0.5, 'safety': {'held_out': score}, 'obedience': [moved(.97, .95)],
               'unseen_phrases': [moved(.91, .87), moved(.93, .86)],
               'obedience_views': 5, 'measured_with': 'a ruler'}
    blank = written(None)
    assert '**For demonstration, never for flight.**' in blank
    assert 'Not measured yet' in blank
    card = written(metrics)
    assert '0.877' in card
    assert '5 views of both kinds of test worlds' in card
    assert '| 97.0 % | 91.0 % | 95.0 % | 86.0 % |' in card
    assert with_tables(blank, metrics) == card
    continued = write_card(
        'demo', 'CLIPSeg', 'tiny', 'none', replace(TINY, earlier_steps=40), None)
    assert f'40 updates and then {TINY.optimiser.steps} updates of' in continued
    assert with_tables(card, metrics) == card
    # A family that reads no words has no unseen phrases.
    closed = written({**metrics, 'unseen_phrases': []})
    assert '| 97.0 % | 95.0 % |' in closed
    assert 'unseen' not in closed
