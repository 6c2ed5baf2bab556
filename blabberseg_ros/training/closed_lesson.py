# SPDX-License-Identifier: Apache-2.0
"""What families with a fixed list of classes share in training."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from blabberseg_ros.sim.classes import SAFE
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.evaluation import CLASS_IDS
from blabberseg_ros.training.family import Family
from blabberseg_ros.training.labels import CLASS_NAMES, label_aliases
from blabberseg_ros.training.losses import Losses, Targets, prompt_losses
from blabberseg_ros.training.prompt_sampler import CLASS_COUNT
from blabberseg_ros.training.upsampling import SparseUpsampling


class ClosedFamily(Family):
    """A family whose prompts are the names of its classes."""

    @property
    def language(self) -> str:
        """Return for the card what can be asked for."""
        return (f'it knows the {len(CLASS_NAMES)} classes {", ".join(CLASS_NAMES)},\n  and no '
                'words. Other names for them stand in `aliases.yaml`; what is not there is '
                'refused by name')

    def vocabulary_files(self) -> dict[str, Any]:
        """Return other names for the classes."""
        return {'aliases': label_aliases()}


class ClosedLesson:
    """One logit a class: each class is a prompt of its own, asked every time.

    The coverage loss is then the cross entropy of every pixel, the polarity loss that of safe
    against unsafe, and the separate loss the binary one of each class.
    """

    def __init__(self, config: TrainConfig, device: torch.device, background: bool) -> None:
        """Lay out what the logits stand for.

        Args:
            config: of the run.
            device: of the network.
            background: whether a logit of 0 joins the classes, which stands for none of them.
        """
        self._config = config
        self._device = device
        self._background = background
        self.helpers: nn.Module = nn.Module()
        covers = torch.zeros((len(CLASS_NAMES) + background, CLASS_COUNT), dtype=torch.bool)
        positive = torch.zeros(len(covers), dtype=torch.bool)
        for row, name in enumerate(CLASS_NAMES):
            covers[row, CLASS_IDS[name]] = True
            positive[row] = CLASS_IDS[name] in SAFE
        self._covers, self._positive = covers.to(device), positive.to(device)
        self._upsampling = SparseUpsampling(align_corners=False)

    def compare(self, logits: Tensor, labels: Tensor, class_weights: Tensor,
                rng: random.Random) -> Losses:
        """Compare logits [B, classes, h, h] with labels, int64 [B, S, S]."""
        config = self._config.loss
        if self._background:
            logits = torch.cat((logits, torch.zeros_like(logits[:, :1])), dim=1)
        rows, columns = (slice(rng.randrange(config.stride), None, config.stride)
                         for _ in range(2))
        logits = self._upsampling(logits.float(), labels.shape[-1], rows, columns)
        batch = len(labels)
        targets = Targets(*(values.expand(batch, *values.shape) for values in (
            self._covers, self._positive, torch.ones_like(self._positive))))
        return prompt_losses(
            logits, labels[..., rows, columns], targets, class_weights, config)

    def autocast(self) -> torch.autocast:
        """Return the precision in which the network runs: 16 bits on a GPU."""
        return torch.autocast(self._device.type, torch.bfloat16,
                              enabled=self._device.type == 'cuda')
