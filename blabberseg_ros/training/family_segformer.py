# SPDX-License-Identifier: Apache-2.0
"""Training of the demonstration Segformer."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from blabberseg_ros.models.segformer import Segformer
from blabberseg_ros.models.segformer_config import SegformerConfig
from blabberseg_ros.training.closed_lesson import ClosedFamily, ClosedLesson
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.family import compiled
from blabberseg_ros.training.labels import CLASS_NAMES
from blabberseg_ros.training.losses import Losses
from blabberseg_ros.training.torch_predictor import ClosedPredictor, segformer_share


class SegformerLesson(ClosedLesson):
    """Cross entropy of the labels."""

    def __init__(self, model: Segformer, config: TrainConfig, device: torch.device) -> None:
        """Take a network that lies on `device`."""
        super().__init__(config, device, background=False)
        self._forward = compiled(model, device)

    def losses(self, pixels: Tensor, labels: Tensor, class_weights: Tensor,
               rng: random.Random) -> Losses:
        """Label each image and compare."""
        with self.autocast():
            logits = self._forward(pixels)
        return self.compare(logits, range(len(CLASS_NAMES)), labels, class_weights, rng)


class SegformerFamily(ClosedFamily):
    """Segformer."""

    name = 'segformer'

    @staticmethod
    def create(architecture: SegformerConfig) -> Segformer:
        """Return a network of this architecture."""
        return Segformer(architecture)

    def fresh(self, config: TrainConfig, continued: bool) -> Segformer:
        """Return a network with fresh weights, the same for the same seed."""
        torch.manual_seed(config.seed)
        model = Segformer(config.model)
        # As Segformer's authors do it; the head keeps torch's own.
        for module in model.stages.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() / module.groups
                nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return model

    def lesson(self, model: Segformer, config: TrainConfig,
               device: torch.device) -> SegformerLesson:
        """Prepare the training of a network."""
        return SegformerLesson(model, config, device)

    def predictor(self, model: Any, device: torch.device) -> ClosedPredictor:
        """Return the network as something that can be judged."""
        return ClosedPredictor(model, device, segformer_share)

    def architecture(self, config: TrainConfig) -> str:
        """Return the sizes of the network for the card."""
        sizes = config.model
        return f'four stages {sizes.hidden} wide with {sizes.depths} blocks'


FAMILY = SegformerFamily
