# SPDX-License-Identifier: Apache-2.0
"""What each family adds to training, on tiny networks and worlds of coloured squares."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blabberseg_ros.prompts import PromptSet, default_prompts
from blabberseg_ros.training.checkpoint import load_checkpoint, rounded_to_half, save_checkpoint
from blabberseg_ros.training.evaluation import CLASS_IDS, class_prompts
from blabberseg_ros.training.family import family_class
from blabberseg_ros.training.labels import CLASS_NAMES
from blabberseg_ros.training.trainer import Trainer

FAMILIES = ('segformer', 'lseg', 'fpseg')


@pytest.fixture(scope='module', params=FAMILIES)
def run(request, tmp_path_factory, square_worlds, tiny_config):
    """Train; return the family, the trainer, the losses and the weights at the start."""
    family = family_class(request.param)(tmp_path_factory.mktemp('family'))
    trainer = Trainer(
        tiny_config(request.param), family, square_worlds(), torch.device('cpu'))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    lesson, totals = trainer._lesson, []

    class Recorded:
        helpers = lesson.helpers
        draw = lesson.draw

        def losses(self, *arguments):
            losses = lesson.losses(*arguments)
            totals.append(losses.total.item())
            return losses

    trainer._lesson = Recorded()
    trainer.run(lambda progress: True, lambda line: None)
    return family, trainer, totals, before


def test_the_network_learns(run) -> None:
    _, trainer, totals, _ = run
    assert len(totals) == trainer.config.optimiser.steps
    assert np.mean(totals[-5:]) < 0.9 * np.mean(totals[:3])


def test_every_part_of_the_network_moves(run) -> None:
    _, trainer, _, before = run
    names = dict(trainer.model.named_parameters())
    for name, weight in trainer.model.state_dict().items():
        assert torch.isfinite(weight).all(), name
        # A bias of all keys moves all scores alike: it has no gradient.
        if (name in names or 'running' in name) and 'k_proj.bias' not in name:
            assert not torch.equal(weight, before[name]), name


def test_the_average_follows_the_running_statistics_too(run) -> None:
    _, trainer, _, before = run
    current = trainer.model.state_dict()
    for name, average in trainer.averaged.state_dict().items():
        if average.is_floating_point() and average.ndim == 1:
            assert (average - current[name]).norm() <= (before[name] - current[name]).norm(), name


def test_a_finished_network_is_what_a_checkpoint_keeps(run, square_worlds, tmp_path) -> None:
    family, trainer, _, _ = run
    finished = rounded_to_half(family.finished(trainer.averaged))
    save_checkpoint(finished, trainer.config, tmp_path / 'checkpoint.safetensors')
    model, config = load_checkpoint(tmp_path / 'checkpoint.safetensors')
    assert config == trainer.config
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected, found, plain = (
        family.predictor(network, torch.device('cpu')).probability(image, default_prompts())
        for network in (finished, model, family.finished(trainer.averaged)))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found, plain, atol=0.02)
    again = Trainer(replace(config, optimiser=replace(config.optimiser, steps=5)), family,
                    square_worlds(), torch.device('cpu'), model)
    assert again.fresh == ()


def test_the_predictor_answers_by_what_is_asked(run, square_worlds) -> None:
    family, trainer, _, _ = run
    predictor = family.predictor(family.finished(trainer.averaged), torch.device('cpu'))
    world = square_worlds().next()
    image = np.ascontiguousarray(world.rgb[:64, :64])
    for name in sorted({CLASS_NAMES[label - 1] for label in np.unique(world.labels[:64, :64])}):
        before, after = (predictor.probability(image, class_prompts(name, name, positive))
                         for positive in (True, False))
        where = world.labels[:64, :64] == CLASS_IDS[name]
        assert before.dtype == np.float32
        assert before.shape == (64, 64)
        assert before.min() >= 0
        assert before.max() <= 1 + 1e-6
        assert before[where].mean() > after[where].mean()


def test_fpseg_calls_nothing_safe_that_was_not_asked_for(run, square_worlds) -> None:
    family, trainer, _, _ = run
    if family.name != 'fpseg':
        # Only its classes are independent of each other.
        return
    predictor = family.predictor(trainer.averaged, torch.device('cpu'))
    world = square_worlds().next()
    labels = world.labels[:64, :64]
    image = np.ascontiguousarray(world.rgb[:64, :64])
    probability = predictor.probability(image, PromptSet(('grass',), ('water',)))
    others = ~np.isin(labels, (CLASS_IDS['grass'], CLASS_IDS['water']))
    assert probability[others].mean() < 0.5
