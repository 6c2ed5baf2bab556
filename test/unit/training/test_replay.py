# SPDX-License-Identifier: Apache-2.0
"""Updates that are captured once and replayed."""

from importlib import import_module

import numpy as np
import pytest
import torch

from blabberseg_ros.training import trainer as trainer_module
from blabberseg_ros.training.family import family_class
from blabberseg_ros.training.replay import Replay
from blabberseg_ros.training.trainer import Trainer

ON_GPU = pytest.param('cuda', marks=[
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='gpu: there is none here')])


@pytest.mark.parametrize('name', ['cpu', ON_GPU])
def test_each_call_sees_what_lies_in_the_tensors_and_draws_anew(name) -> None:
    device = torch.device(name)
    total, added = torch.zeros((), device=device), torch.zeros((), device=device)
    calls = []

    def step():
        calls.append(None)
        total.add_(added)
        return torch.rand(4, device=device)

    replay = Replay(step, device)
    drawn = []
    for number in range(10):
        added.fill_(number)
        drawn.append(replay().tolist())
    assert total.item() == sum(range(10))
    assert len({tuple(each) for each in drawn}) == 10
    assert len(calls) == (10 if name == 'cpu' else 4)
    replay.forget()
    replay()
    assert len(calls) == (11 if name == 'cpu' else 5)


@pytest.mark.parametrize('family_name', ['clipseg', 'lseg', 'segformer', 'fpseg'])
@pytest.mark.parametrize('name', [ON_GPU])
def test_a_family_learns_when_its_updates_are_replayed(
        family_name, name, tmp_path, square_worlds, tiny_config, monkeypatch) -> None:
    def plain(function, device):
        return function

    family = family_class(family_name)(tmp_path)
    for module in (trainer_module, import_module(type(family).__module__)):
        monkeypatch.setattr(module, 'compiled', plain, raising=False)
    trainer = Trainer(tiny_config(family_name), family, square_worlds(), torch.device(name))
    replay, totals = trainer._replay, []

    def recorded():
        losses = replay()
        totals.append(losses.total.item())
        return losses

    trainer._replay = recorded
    trainer.run(lambda progress: True, lambda line: None)
    assert np.isfinite(totals).all()
    assert np.mean(totals[-5:]) < 0.95 * np.mean(totals[:3])
