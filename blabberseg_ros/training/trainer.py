# SPDX-License-Identifier: Apache-2.0
"""The training loop: worlds in, a checkpoint out."""

import copy
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.training.augment import Augmentation
from blabberseg_ros.training.config import OptimiserConfig, TrainConfig, worlds_needed
from blabberseg_ros.training.family import Family, StepLosses, compiled
from blabberseg_ros.training.losses import class_weights
from blabberseg_ros.training.prompt_sampler import CLASS_COUNT
from blabberseg_ros.training.replay import Replay
from blabberseg_ros.training.world_store import WorldStore
from blabberseg_ros.training.worlds import Feed

_REPORT_EVERY_STEPS = 100
# The first updates are slow: memory is taken, kernels are chosen, worlds are waited for.
_WARM_AT_STEP = 20
_PLAN_MARGIN = 0.95


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: updates done.
        model: the averaged network, to be finished and then judged or saved.
        is_last: whether the run ends here.
    """

    step: int
    model: nn.Module
    is_last: bool


def adopt(model: nn.Module, start: nn.Module) -> tuple[str, ...]:
    """Copy every weight of `start` that fits; return the names of those that do not."""
    theirs = start.state_dict()
    fitting = {name: theirs[name] for name, value in model.state_dict().items()
               if name in theirs and theirs[name].shape == value.shape}
    return tuple(model.load_state_dict(fitting, strict=False).missing_keys)


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Return the rate of an update: a linear rise, then half a cosine down to a hundredth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


class Trainer:
    """One training run."""

    def __init__(self, config: TrainConfig, family: Family, feed: Feed, device: torch.device,
                 start: nn.Module | None = None, tower: ClipSeg | None = None) -> None:
        """Make the network and reserve room for the worlds.

        Args:
            config: decides everything.
            family: of the network.
            feed: training worlds in order.
            device: to train on.
            start: network to continue from; None for fresh weights. Where its layers have
                another size than the configuration's they start fresh (see `fresh`).
            tower: trained CLIPSeg whose image tower the network starts with, where its family
                can, or started with if it continues; None for its own.

        Raises:
            ParameterError: the tower does not fit the network.
        """
        self._config = config
        self._family = family
        self._feed = feed
        self._device = device
        self.model = family.fresh(config, start is not None).to(device).train()
        self.fresh: tuple[str, ...] = () if start is None else adopt(self.model, start)
        side_px = round(config.worlds.size_m / config.worlds.resolution_m)
        self._store = WorldStore(config.worlds.train, side_px, CLASS_COUNT, device)
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None]
                                 for values in (config.model.mean, config.model.std))
        self._augment = Augmentation(CLASS_COUNT, config.crops.strength).to(device)
        self._draw = compiled(self._cut_and_augment, device)
        # What changes from update to update has its place on the device, for the replay.
        self._weights = torch.zeros(CLASS_COUNT, device=device)
        self._worlds = torch.zeros((), dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        self._asked: list[Tensor] = []
        self._replay = Replay(self._learn, device)
        torch.manual_seed(config.seed + config.earlier_steps)
        if tower is not None:
            family.teacher = tower.to(device)
        if tower is not None and start is None:
            self._take_worlds(worlds_needed(0, config))
            self._worlds.fill_(self._store.filled)
            pixels, _ = self._draw()
            family.adopt_tower(self.model, tower, pixels)
        self._lesson = family.lesson(self.model, config, device)
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._statistics = _statistics(self.averaged), _statistics(self.model)
        self._optimiser = _optimiser(
            nn.ModuleList((self.model, self._lesson.helpers)), config.optimiser, self._rate)

    @property
    def config(self) -> TrainConfig:
        """Return the configuration, with the number of steps that was planned."""
        return self._config

    def run(self, report: Callable[[Progress], bool], say: Callable[[str], None],
            deadline_s: float | None = None) -> None:
        """Do all updates.

        Args:
            report: called after each update; the run ends early when it answers False.
            say: prints a line.
            deadline_s: `time.monotonic()` at which to be done. The number of steps is then
                planned from the speed of the first ones; a later run with that number and no
                deadline does the same again. None: the configuration's number.
        """
        started, waited_s, step = time.monotonic(), 0.0, 0
        # Until the warm-up ends, no rate depends on the number of steps: it is planned then, from
        # the speed of the second half.
        plan_at = max(self._config.optimiser.warmup_steps, 2)
        half_s = half_waited_s = 0.0
        while step < self._config.optimiser.steps:
            needed = worlds_needed(step, self._config)
            waited_s += self._take_worlds(needed)
            if step == 0:
                self._weights.copy_(
                    class_weights(self._store.counts, self._config.loss.balance))
                say('class weights ' + ' '.join(f'{w:.2f}' for w in self._weights.tolist()))
            losses = self._update(step, needed)
            step += 1
            elapsed_s = time.monotonic() - started
            if deadline_s is not None and step == plan_at:
                _wait_for(self._device)
                took_s = time.monotonic() - half_s - (waited_s - half_waited_s)
                self._plan((step - plan_at // 2) / took_s, step, deadline_s)
                say(f'planned {self._config.optimiser.steps} steps')
            if step == plan_at // 2:
                _wait_for(self._device)
                half_s, half_waited_s = time.monotonic(), waited_s
            if step % _REPORT_EVERY_STEPS == 0 or step in (1, _WARM_AT_STEP):
                self._check(losses, step)
                say(f'step {step}/{self._config.optimiser.steps}  {losses.line}  '
                    f'{step / (elapsed_s - waited_s):.2f} steps/s  {self._store.filled} worlds, '
                    f'waited {waited_s:.0f} s  {elapsed_s:.0f} s')
            is_last = step == self._config.optimiser.steps
            if not report(Progress(step, self.averaged, is_last)):
                return

    def _plan(self, steps_per_s: float, done: int, deadline_s: float) -> None:
        """Set the number of steps so that the run ends at the deadline."""
        left = max(deadline_s - time.monotonic(), 0.0) * steps_per_s * _PLAN_MARGIN
        steps = done + int(left)
        self._config = replace(
            self._config, optimiser=replace(self._config.optimiser, steps=steps))

    @staticmethod
    def _check(losses: StepLosses, step: int) -> None:
        if not math.isfinite(losses.total.item()):
            raise ParameterError(
                f'the loss is no longer a number at step {step}; the weights are lost. Use a '
                'lower learning_rate or a longer warm-up')

    def _take_worlds(self, needed: int) -> float:
        """Store worlds that are there, and wait until there are enough; return the wait."""
        started = time.monotonic()
        while self._store.filled < needed:
            self._store.add(self._feed.next())
        waited = time.monotonic() - started
        if self._store.filled < self._config.worlds.train and self._feed.is_ready:
            self._store.add(self._feed.next())
        return waited

    def _update(self, step: int, worlds: int) -> StepLosses:
        """Do one update of the network and of its average."""
        config = self._config
        frozen_steps = config.optimiser.frozen_steps
        if self._family.teacher is not None and step in (0, frozen_steps):
            for weight in self._family.tower_weights(self.model):
                weight.requires_grad_(step >= frozen_steps)
            self._replay.forget()
        asked = self._lesson.draw(random.Random(f'{config.seed} {config.earlier_steps + step}'))
        if not self._asked:
            self._asked = [values.clone() for values in asked]
        for kept, values in zip(self._asked, asked, strict=True):
            kept.copy_(values)
        self._worlds.fill_(worlds)
        self._rate.fill_(learning_rate(step, config.optimiser))
        losses = self._replay()
        self._average(step)
        return losses

    def _learn(self) -> StepLosses:
        """Move the network's weights; see `Replay` for what this may not do."""
        pixels, labels = self._draw()
        losses = self._lesson.losses(pixels, labels, self._weights, *self._asked)
        self._optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        nn.utils.clip_grad_norm_(
            self.model.parameters(), self._config.optimiser.gradient_clip)
        self._optimiser.step()
        return losses

    @torch.no_grad()
    def _cut_and_augment(self) -> tuple[Tensor, Tensor]:
        """Return a batch of normalised images and their labels."""
        config = self._config
        crops = self._store.crop(
            config.optimiser.batch_size, self._worlds, config.model.input_size_px,
            config.worlds.resolution_m, config.crops)
        rgb = self._augment(crops.rgb, crops.labels)
        return (rgb - self._mean) / self._std, crops.labels

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the averaged weights towards the current ones, faster in the beginning."""
        share = max(1.0 - self._config.optimiser.ema_decay, 4.0 / (step + 4.0))
        torch._foreach_lerp_(
            list(self.averaged.parameters()), list(self.model.parameters()), share)
        averaged, current = self._statistics
        if averaged:
            torch._foreach_lerp_(averaged, current, share)


def _statistics(model: nn.Module) -> list[Tensor]:
    """Return the running means and variances of the batch norms."""
    return [value for name, value in model.named_buffers()
            if name.endswith(('running_mean', 'running_var'))]


def _wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was asked for, so that a clock tells the truth."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _optimiser(model: nn.Module, config: OptimiserConfig, rate: Tensor) -> torch.optim.AdamW:
    """Return AdamW whose rate lies in a tensor; vectors and embeddings are not decayed."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        (free if weight.ndim < 2 or 'embedding' in name else decayed).append(weight)
    return torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': config.weight_decay},
         {'params': free, 'weight_decay': 0.0}],
        lr=rate, betas=(0.9, 0.98), fused=rate.is_cuda, capturable=rate.is_cuda)
