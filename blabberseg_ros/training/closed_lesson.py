# SPDX-License-Identifier: Apache-2.0
"""What families with a fixed list of classes share in training."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.sim.classes import SAFE, UNKNOWN
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
        first, second = (', '.join(names) for names in (CLASS_NAMES[:6], CLASS_NAMES[6:]))
        return (f'it knows {len(CLASS_NAMES)} classes ({first},\n  {second}) and no words. Other '
                'names for them\n  stand in `aliases.yaml`; what is not there is refused by name')

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
            background: whether a logit of 0 joins the classes that were asked for; it stands for
                all others, and for unsafe ground.
        """
        self._config = config
        self._device = device
        self._background = background
        self.helpers: nn.Module = nn.Module()
        ids = [CLASS_IDS[name] for name in CLASS_NAMES]
        self._covers = functional.one_hot(torch.tensor(ids), CLASS_COUNT).bool().to(device)
        self._positive = torch.tensor([index in SAFE for index in ids], device=device)
        self._upsampling = SparseUpsampling(align_corners=False)

    def draw(self, rng: random.Random) -> Sequence[Tensor]:
        """Ask for every class."""
        return ()

    def compare(self, logits: Tensor, labels: Tensor, class_weights: Tensor,
                asked: Tensor | None = None) -> Losses:
        """Compare logits with the truth.

        Args:
            logits: float [B, N, h, h].
            labels: int64 [B, S, S], class ids.
            class_weights: float32 [C].
            asked: int64 [N], index of the class of each of the logits; None: all, in order.
        """
        config = self._config.loss
        covers, positive = self._covers, self._positive
        if asked is not None:
            covers, positive = covers[asked], positive[asked]
        if self._background:
            logits = torch.cat((logits, torch.zeros_like(logits[:, :1])), dim=1)
            others = ~covers.any(0, keepdim=True)
            others[:, UNKNOWN] = False
            covers = torch.cat((covers, others))
            positive = torch.cat((positive, positive.new_zeros(1)))
        targets = Targets(*(values.expand(len(labels), *values.shape)
                            for values in (covers, positive, torch.ones_like(positive))))
        logits = self._upsampling(logits.float(), labels.shape[-1], config.compared)
        return prompt_losses(logits, labels[..., config.compared, config.compared], targets,
                             class_weights, config)

    def autocast(self) -> torch.autocast:
        """Return the precision in which the network runs: 16 bits on a GPU."""
        return torch.autocast(self._device.type, torch.bfloat16,
                              enabled=self._device.type == 'cuda')
