# SPDX-License-Identifier: Apache-2.0
"""The loop of tuning and of distillation: steps, tests, the best, and going on after a stop."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.fpseg_tools.progress import counter
from blabberseg_ros.fpseg_tools.run_state import Position, RunLog, load_state, save_state
from blabberseg_ros.fpseg_tools.sole_writer import sole_writer


@dataclass(frozen=True)
class Schedule:
    """When things happen.

    Attributes:
        epochs: in all.
        test_interval: epochs between tests; the last epoch is tested as well.
        log_interval: steps between records of the loss.
        save_interval: steps between states, which is what a killed run loses at most.
    """

    epochs: int
    test_interval: int
    log_interval: int
    save_interval: int


class Recipe(ABC):
    """What is trained, on what, and how it is judged.

    Batches depend on the step alone, so that a run that was stopped goes on to the same result.

    Attributes:
        figure: name of the figure in what `test` returns that decides which weights are kept.
        higher_is_better: of that figure.
    """

    figure: str
    higher_is_better: ClassVar[bool]

    @property
    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Return the number of updates of an epoch."""

    @property
    @abstractmethod
    def trained(self) -> Mapping[str, Tensor]:
        """Return all tensors that training changes, buffers included, by name."""

    @property
    @abstractmethod
    def optimiser(self) -> torch.optim.Optimizer:
        """Return the optimiser."""

    @abstractmethod
    def batches(self, epoch: int, first: int) -> Iterator[Any]:
        """Yield the batches of an epoch from number `first` on."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch."""

    @abstractmethod
    def test(self) -> Mapping[str, Any]:
        """Judge the present weights."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the present weights, to be used."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        steps: updates done, of all its parts.
        start: figure before the first update; None if this part did not start the run.
        best: best figure.
        best_step: updates done when it was reached.
    """

    steps: int
    start: float | None
    best: float
    best_step: int


def run(recipe: Recipe, schedule: Schedule, folder: Path, what: Mapping[str, Any],
        title: str) -> Outcome:
    """Train from where the folder's run stopped, to the end.

    Args:
        recipe: what to train.
        schedule: when things happen.
        folder: of the run; holds the log, the state, and what `recipe.save` writes.
        what: settings that decide the result.
        title: of the progress bar.

    Raises:
        ParameterError: the folder holds another run, another process writes there, or the loss is
            no longer a number.
    """
    with sole_writer(folder):
        return _train(recipe, schedule, folder, what, title)


def _train(recipe: Recipe, schedule: Schedule, folder: Path, what: Mapping[str, Any],
           title: str) -> Outcome:
    position = load_state(folder, what, recipe.trained, recipe.optimiser)
    log = RunLog(folder, position.step)
    start = None
    if position.step == 0:
        position = _test(recipe, position, folder, log)
        start = position.best
    last = schedule.epochs * recipe.steps_per_epoch
    with counter(title, last, position.step) as progress:
        while position.step < last:
            epoch, first = divmod(position.step, recipe.steps_per_epoch)
            for batch in recipe.batches(epoch, first):
                value = _update(recipe, batch)
                position = replace(position, step=position.step + 1)
                progress.update()
                if position.step % schedule.log_interval == 0 or position.step == last:
                    _check(value, position.step)
                    progress.set_postfix(loss=f'{value:.4f}', best=f'{position.best:.4f}')
                    log.add(position.step, {'epoch': epoch, 'loss': float(value)})
                position = _end_of_step(recipe, schedule, position, last, folder, log)
                if position.step % schedule.save_interval == 0 or position.step == last:
                    save_state(folder, position, what, recipe.trained, recipe.optimiser)
    if position.best is None:
        raise ParameterError(f'{folder} holds a run that was never tested; delete it')
    return Outcome(position.step, start, position.best, position.best_step)


def _update(recipe: Recipe, batch: Any) -> float:
    loss = recipe.loss(batch)
    recipe.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    recipe.optimiser.step()
    return loss.item()


def _check(value: float, step: int) -> None:
    if not math.isfinite(value):
        raise ParameterError(f'the loss is no longer a number at step {step}. Use lower learning '
                             'rates; the best checkpoint so far is kept')


def _end_of_step(recipe: Recipe, schedule: Schedule, position: Position, last: int, folder: Path,
                 log: RunLog) -> Position:
    """Test at the end of an epoch that asks for it."""
    epoch, inside = divmod(position.step, recipe.steps_per_epoch)
    if inside or (epoch % schedule.test_interval and position.step != last):
        return position
    return _test(recipe, position, folder, log)


def _test(recipe: Recipe, position: Position, folder: Path, log: RunLog) -> Position:
    """Judge the weights, and keep them if they are the best so far."""
    figures = recipe.test()
    value = float(figures[recipe.figure])
    if not math.isfinite(value):
        raise ParameterError(f'the test gave {recipe.figure} {value}: no class of the list occurs '
                             'in the test split, or the network answered NaN')
    log.add(position.step, {'test': dict(figures)})
    if position.best is not None and (value > position.best) is not recipe.higher_is_better:
        return position
    recipe.save(folder)
    return replace(position, best=value, best_step=position.step)
