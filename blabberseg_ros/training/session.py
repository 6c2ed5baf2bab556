# SPDX-License-Identifier: Apache-2.0
"""A training session from the first world to the bundle."""

import json
import math
import tarfile
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blabberseg_ros.atomic import write_atomically, write_text
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.training.checkpoint import rounded_to_half, save_checkpoint
from blabberseg_ros.training.config import OPEN_FAMILIES, TrainConfig
from blabberseg_ros.training.evaluation import (
    choose_threshold,
    histograms,
    read_real_frames,
    safety_score,
)
from blabberseg_ros.training.family import Family, bundle_name, family_class
from blabberseg_ros.training.judging import judge, summary
from blabberseg_ros.training.trainer import Progress, Trainer
from blabberseg_ros.training.views import LabelledView
from blabberseg_ros.training.worlds import WorldPool

CHECKPOINT, METRICS, LOG = 'checkpoint.safetensors', 'metrics.json', 'train.log'
_CHECKPOINT_EVERY_S = 90.0
_VALIDATE_EVERY_S = 60.0
# On a slow machine validation takes no more than about this share of the time.
_VALIDATION_SHARE = 0.1
# A run that is this much over its planned time (it waited for worlds, say) is ended.
_OVERTIME = 1.06


class Session:
    """Trains, judges and exports; everything lands in one folder."""

    def __init__(self, config: TrainConfig, out: Path, device: torch.device, workers: int,
                 real_frames: Path | None = None, start: nn.Module | None = None,
                 world_cache: Path | None = None, tower: ClipSeg | None = None) -> None:
        """Remember what to do.

        Args:
            config: decides the result.
            out: folder for the checkpoint, the figures, the log and the bundle.
            device: to train on.
            workers: processes that generate worlds.
            real_frames: folder of hand-labelled frames to report on, if there is one.
            start: network to continue from; None for fresh weights.
            world_cache: folder of worlds shared with other runs, if any.
            tower: trained CLIPSeg whose image tower to start with; None for the network's own.
        """
        self._config = config
        self._out = out
        self._device = device
        self._workers = workers
        self._real_frames = real_frames
        self._start = start
        self._world_cache = world_cache
        self._tower = tower
        self._started = time.monotonic()
        self._saved_at = self._started
        self._validate_at = self._started + _VALIDATE_EVERY_S
        self._last_call_s = math.inf
        out.mkdir(parents=True, exist_ok=True)
        (out / LOG).unlink(missing_ok=True)

    def run(self, minutes: float | None) -> None:
        """Do it all.

        Args:
            minutes: from now to the end of training; the number of updates is planned so. None:
                the configuration's number, however long it takes.
        """
        deadline_s = None if minutes is None else self._started + 60.0 * minutes
        if minutes is not None:
            self._last_call_s = self._started + 60.0 * minutes * _OVERTIME
        with tempfile.TemporaryDirectory() as temporary, \
                WorldPool(self._config.worlds, self._workers, self._world_cache) as pool:
            workspace = Path(temporary)
            family = family_class(self._config.family)(workspace)
            validation = pool.views('validation', self._config.worlds.validation)
            feed = pool.maps('train', self._config.worlds.train)
            trainer = Trainer(self._config, family, feed, self._device, self._start,
                              self._tower)
            if trainer.fresh:
                self._say(f'not in the start, so fresh: {", ".join(trainer.fresh)}')
            trainer.run(lambda progress: self._report(progress, trainer, family, validation),
                        self._say, deadline_s)
            model = rounded_to_half(family.finished(trainer.averaged))
            self._save(model, trainer.config)
            metrics = self._judge(model, family, pool, validation)
            name = bundle_name(family.name)
            family.export(model, trainer.config, metrics, workspace / name)
            _pack(workspace / name, self._out / f'{name}.tar')
            self._say(f'done: {self._out}')

    def _report(self, progress: Progress, trainer: Trainer, family: Family,
                validation: 'list[Future[list[LabelledView]]]') -> bool:
        """Validate and save from time to time; nothing here changes the training."""
        now = time.monotonic()
        if progress.is_last:
            return True
        if now > self._last_call_s:
            self._say(f'out of time after {progress.step} updates, before the planned end; what '
                      'was learnt is kept')
            return False
        if now > self._validate_at and all(f.done() for f in validation):
            views = [view for future in validation for view in future.result()]
            predictor = family.predictor(family.finished(progress.model), self._device)
            found = histograms(predictor, views)
            score = safety_score(found, choose_threshold(found))
            self._say(f'validation: IoU safe {score.safe_iou:.3f} unsafe {score.unsafe_iou:.3f} '
                      f'above {score.threshold:.2f}; right: '
                      + ' '.join(f'{name} {value:.2f}' for name, value in score.recall.items()))
            done = time.monotonic()
            self._validate_at = done + max(_VALIDATE_EVERY_S, (done - now) / _VALIDATION_SHARE)
        if now - self._saved_at > _CHECKPOINT_EVERY_S:
            self._saved_at = now
            self._save(family.finished(progress.model), trainer.config)
        return True

    def _judge(self, model: nn.Module, family: Family, pool: WorldPool,
               validation: 'list[Future[list[LabelledView]]]') -> dict[str, Any]:
        worlds = self._config.worlds
        waiting = {'validation': validation, 'test': pool.views('test', worlds.test),
                   'held_out': pool.views('held_out', worlds.test)}
        views = {kind: [view for future in futures for view in future.result()]
                 for kind, futures in waiting.items()}
        if self._real_frames is not None:
            views['real'] = read_real_frames(self._real_frames)
        metrics = judge(family.predictor(model, self._device), views,
                        f'PyTorch {torch.__version__} on {_device_name(self._device)}',
                        reads_words=family.name in OPEN_FAMILIES)
        write_text(self._out / METRICS, json.dumps(metrics, indent=1) + '\n')
        self._say(summary(metrics))
        return metrics

    def _save(self, model: nn.Module, config: TrainConfig) -> None:
        save_checkpoint(model, config, self._out / CHECKPOINT)
        self._say(f'saved {self._out / CHECKPOINT}')

    def _say(self, line: str) -> None:
        text = f'[{time.monotonic() - self._started:6.1f} s] {line}'
        print(text, flush=True)
        with open(self._out / LOG, 'a', encoding='utf-8') as stream:
            stream.write(text + '\n')


def _pack(folder: Path, path: Path) -> None:
    def write(temporary: Path) -> None:
        with tarfile.open(temporary, 'w') as archive:
            archive.add(folder, folder.name)

    write_atomically(path, write)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
