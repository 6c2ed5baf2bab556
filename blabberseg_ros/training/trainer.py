# SPDX-License-Identifier: Apache-2.0
"""The training loop: worlds in, a checkpoint out."""

import copy
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from open_clip.transformer import Attention
from torch import Tensor, nn

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.text import CONTEXT_LENGTH, END_ID, START_ID, Tokenizer
from blabberseg_ros.training.augment import augment
from blabberseg_ros.training.auxiliary import ReadOuts
from blabberseg_ros.training.config import OptimiserConfig, TrainConfig
from blabberseg_ros.training.losses import Losses, Targets, class_weights, prompt_losses
from blabberseg_ros.training.prompt_sampler import (
    CLASS_COUNT,
    MAX_PROMPTS,
    PromptDraw,
    sample_prompts,
)
from blabberseg_ros.training.upsampling import use_products
from blabberseg_ros.training.world_store import WorldStore, send
from blabberseg_ros.training.worlds import MapFeed

_REPORT_EVERY_STEPS = 100
# The first updates are slow (memory is taken, kernels are chosen); the next ones are measured.
_WARM_AT_STEP, _PLAN_AT_STEP = 20, 150
_PLAN_MARGIN = 0.95


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: updates done.
        model: the averaged network, to be judged or saved.
        is_last: whether the run ends here.
    """

    step: int
    model: ClipSeg
    is_last: bool


class PromptTokens:
    """CLIP's tokens of our own training texts, quickly.

    Cleaning and splitting any text of the world takes a few hundred microseconds, and an update
    has hundreds of new texts. Ours are plain lower-case words with spaces and punctuation between
    them, and CLIP merges within words only: so each word is tokenised once.
    """

    _WORD = re.compile(r"'s|[a-z]+|[0-9]|[^\sa-z0-9]+")

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start empty."""
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return int32 [len(texts), 77]."""
        rows = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [START_ID]
            for word in self._WORD.findall(text):
                ids += self._ids(word)
            ids = [*ids[:CONTEXT_LENGTH - 1], END_ID]
            row[:len(ids)] = ids
        return rows

    def _ids(self, word: str) -> list[int]:
        if word not in self._known:
            ids = self._tokenizer.encode(word).ids.tolist()
            self._known[word] = ids[1:ids.index(END_ID)]
        return self._known[word]


@dataclass(frozen=True)
class PromptBatch:
    """Prompt sets of a batch on the device.

    Attributes:
        tokens: int32 [U, 77], each text once.
        covers: bool [U, C]; whether a text stands for a class.
        index: int64 [B, P], row of `tokens`.
        targets: what the prompts stand for.
    """

    tokens: Tensor
    covers: Tensor
    index: Tensor
    targets: Targets


def build_model(config: TrainConfig, device: torch.device) -> ClipSeg:
    """Return a network with fresh weights, the same for the same seed."""
    torch.manual_seed(config.seed)
    model = ClipSeg(config.model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, Attention):
            # open_clip's own scale is made for wide towers and is too large for these.
            for part in module.in_proj_weight.detach().chunk(3):
                nn.init.xavier_uniform_(part)
    # Rows of tokens that training never shows get no gradient: they stay zero, so a word that the
    # model does not know says nothing instead of something random, and the file compresses well.
    nn.init.zeros_(model.token_embedding.weight)
    # The decoder starts as if there were no prompt.
    nn.init.ones_(model.film_mul.bias)
    use_products(model)
    return model.to(device)


def warm_token_embedding(model: ClipSeg, ids: Sequence[int], seed: int) -> None:
    """Draw the embeddings of the tokens that training will show."""
    generator = torch.Generator().manual_seed(seed)
    weight = model.token_embedding.weight
    rows = 0.3 * torch.randn((len(ids), weight.shape[1]), generator=generator)
    with torch.no_grad():
        weight[torch.tensor(ids, device=weight.device)] = rows.to(weight.device)


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Return the rate of an update: a linear rise, then half a cosine down to a hundredth."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def worlds_needed(step: int, config: TrainConfig) -> int:
    """Return how many worlds an update draws from; it depends on the step alone."""
    worlds = config.worlds
    ramp = min(step / max(worlds.ramp_steps, 1), 1.0)
    return min(worlds.train, worlds.first + int(ramp * max(worlds.train - worlds.first, 0)))


class Trainer:
    """One training run."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, token_ids: Sequence[int],
                 feed: MapFeed, device: torch.device, start: ClipSeg | None = None) -> None:
        """Make the network and reserve room for the worlds.

        Args:
            config: decides everything.
            tokenizer: CLIP's.
            token_ids: of all words that training can show.
            feed: training worlds in order.
            device: to train on.
            start: network to continue from; None for fresh weights.
        """
        self._config = config
        self._tokens = PromptTokens(tokenizer)
        self._feed = feed
        self._device = device
        self.model = build_model(config, device)
        if start is None:
            warm_token_embedding(self.model, token_ids, config.seed)
        else:
            self.model.load_state_dict(start.state_dict())
        # Shapes never change; fused kernels save a third of the memory traffic on a GPU.
        compiled: Callable[[Any], Any] = torch.compile if device.type == 'cuda' else _unchanged
        self._encode = compiled(self.model.encode_images)
        self._decode = compiled(self.model.decode_batch)
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self._read_outs = ReadOuts(config.model, CLASS_COUNT).to(device)
        self._optimiser = _optimiser(
            nn.ModuleList((self.model, self._read_outs)), config.optimiser, device)
        side_px = round(config.worlds.size_m / config.worlds.resolution_m)
        self._store = WorldStore(config.worlds.train, side_px, CLASS_COUNT, device)
        self._generator = torch.Generator(device).manual_seed(config.seed + config.earlier_steps)
        self._weights: Tensor | None = None
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None]
                                 for values in (config.model.mean, config.model.std))

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
        warm_s = warm_waited_s = 0.0
        while step < self._config.optimiser.steps:
            needed = worlds_needed(step, self._config)
            waited_s += self._take_worlds(needed)
            if self._weights is None:
                self._weights = class_weights(
                    self._store.counts, self._config.loss.balance).to(self._device)
                say('class weights ' + ' '.join(f'{w:.2f}' for w in self._weights.tolist()))
            losses = self._update(step, needed, self._weights)
            step += 1
            elapsed_s = time.monotonic() - started
            if deadline_s is not None and step == _PLAN_AT_STEP:
                _wait_for(self._device)
                took_s = time.monotonic() - warm_s - (waited_s - warm_waited_s)
                self._plan((step - _WARM_AT_STEP) / took_s, step, deadline_s)
                say(f'planned {self._config.optimiser.steps} steps')
            if step == _WARM_AT_STEP:
                _wait_for(self._device)
                warm_s, warm_waited_s = time.monotonic(), waited_s
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
        steps = max(done + int(left), self._config.optimiser.warmup_steps + 1)
        self._config = replace(
            self._config, optimiser=replace(self._config.optimiser, steps=steps))

    @staticmethod
    def _check(losses: Losses, step: int) -> None:
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

    def _update(self, step: int, worlds: int, weights: Tensor) -> Losses:
        """Do one update of the network and of its average."""
        config = self._config
        optimiser = config.optimiser
        rng = random.Random(f'{config.seed} {config.earlier_steps + step}')
        draws = [sample_prompts(rng) for _ in range(optimiser.prompt_sets)]
        prompts = self._prompt_batch(
            [draws[number % len(draws)] for number in range(optimiser.batch_size)])
        with torch.no_grad():
            crops = self._store.crop(
                self._generator, optimiser.batch_size, worlds, config.model.input_size_px,
                config.worlds.resolution_m, config.crops)
            rgb = augment(crops.rgb, crops.labels, CLASS_COUNT, self._generator,
                          config.crops.strength)
            pixels = (rgb - self._mean) / self._std
        for group in self._optimiser.param_groups:
            group['lr'] = learning_rate(step, optimiser)

        # The text tower is small and its mask wants the precision; only the rest is rounded.
        conditional = self.model.encode_text(prompts.tokens)
        mul, add = self.model.film(conditional)
        with torch.autocast(self._device.type, torch.bfloat16,
                            enabled=self._device.type == 'cuda'):
            codes = self._encode(pixels)
            logits = self._decode(codes, mul[prompts.index], add[prompts.index])
            image_loss = self._read_outs.image_loss(codes, crops.labels, weights)
        rows, columns = (slice(rng.randrange(config.loss.stride), None, config.loss.stride)
                         for _ in range(2))
        losses = prompt_losses(logits[..., rows, columns], crops.labels[..., rows, columns],
                               prompts.targets, weights, config.loss)
        text_loss = self._read_outs.text_loss(conditional, prompts.covers)
        total = losses.total + config.loss.text * text_loss + config.loss.image * image_loss
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), optimiser.gradient_clip)
        self._optimiser.step()
        self._average(step)
        return losses

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the averaged weights towards the current ones, faster in the beginning."""
        share = max(1.0 - self._config.optimiser.ema_decay, 4.0 / (step + 4.0))
        torch._foreach_lerp_(
            list(self.averaged.parameters()), list(self.model.parameters()), share)

    def _prompt_batch(self, draws: Sequence[PromptDraw]) -> PromptBatch:
        texts = list(dict.fromkeys(text for draw in draws for text in draw.texts))
        row = {text: index for index, text in enumerate(texts)}
        shape = (len(draws), MAX_PROMPTS)
        text_covers = np.zeros((len(texts), CLASS_COUNT), bool)
        index = np.zeros(shape, np.int64)
        covers = np.zeros((*shape, CLASS_COUNT), bool)
        positive, valid = np.zeros(shape, bool), np.zeros(shape, bool)
        for number, draw in enumerate(draws):
            count = len(draw.texts)
            index[number, :count] = [row[text] for text in draw.texts]
            text_covers[index[number, :count]] = draw.covers
            covers[number, :count] = draw.covers
            positive[number, :count] = draw.is_positive
            valid[number, :count] = True
        sent = [send(values, self._device) for values in (
            self._tokens(texts), text_covers, index, covers, positive, valid)]
        return PromptBatch(sent[0], sent[1], sent[2], Targets(*sent[3:]))


def _unchanged(function: Any) -> Any:
    """Return the function as it is."""
    return function


def _wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was asked for, so that a clock tells the truth."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _optimiser(model: nn.Module, config: OptimiserConfig,
               device: torch.device) -> torch.optim.AdamW:
    """Return AdamW; vectors and embeddings are not decayed."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        (free if weight.ndim < 2 or 'embedding' in name else decayed).append(weight)
    return torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': config.weight_decay},
         {'params': free, 'weight_decay': 0.0}],
        lr=config.learning_rate, betas=(0.9, 0.98), fused=device.type == 'cuda')
