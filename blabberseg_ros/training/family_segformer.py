# SPDX-License-Identifier: Apache-2.0
"""Training of the demonstration Segformer."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.segformer import Segformer, Stage
from blabberseg_ros.models.segformer_config import SegformerConfig
from blabberseg_ros.training.closed_lesson import ClosedFamily, ClosedLesson
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.family import compiled
from blabberseg_ros.training.losses import Losses
from blabberseg_ros.training.torch_predictor import ClosedPredictor, segformer_share
from blabberseg_ros.training.tower import adopt_into_segformer, patch_tokens

# A cell of its grid is as large as a patch of CLIP.
_ADOPTING_STAGE = 2


class SegformerLesson(ClosedLesson):
    """Cross entropy of the labels."""

    def __init__(self, model: Segformer, config: TrainConfig, device: torch.device,
                 teacher: ClipSeg | None) -> None:
        """Take a network that lies on `device`, and whose image tower it adopted, if any."""
        super().__init__(config, device, background=False)
        self._model = model
        self._teacher = teacher
        self.losses = compiled(self._losses, device)

    def _losses(self, pixels: Tensor, labels: Tensor, class_weights: Tensor) -> Losses:
        """Label each image and compare."""
        if self._teacher is None:
            with self.autocast():
                logits = self._model(pixels)
            return self.compare(logits, labels, class_weights)
        with self.autocast():
            features, given = self._features(pixels)
            logits = self._model.head(features)
            tower_loss = functional.mse_loss(given.float(), patch_tokens(self._teacher, pixels))
        return self.compare(logits, labels, class_weights).plus(
            'tower', self._config.loss.tower, tower_loss)

    def _features(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the stages' features, and what the adopted blocks were given.

        While these are frozen nothing is learnt through them, which saves most of an update.
        """
        first, second, adopting, last = cast(Iterable[Stage], self._model.stages)
        fine = first(pixels)
        middle = second(fine)
        given = adopting.embedding(middle)
        is_frozen = not next(adopting.blocks.parameters()).requires_grad
        coarse = adopting.transform(given.detach() if is_frozen else given)
        return [fine, middle, coarse, last(coarse)], given


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

    def adopt_tower(self, model: Segformer, teacher: ClipSeg, pixels: Tensor) -> None:
        """Give the third stage, whose cells are CLIP's patches, the blocks of a CLIPSeg."""
        adopt_into_segformer(_adopting_stage(model), teacher)

    def tower_weights(self, model: Segformer) -> list[nn.Parameter]:
        """Return those of the adopted blocks."""
        return list(_adopting_stage(model).blocks.parameters())

    def lesson(self, model: Segformer, config: TrainConfig,
               device: torch.device) -> SegformerLesson:
        """Prepare the training of a network."""
        return SegformerLesson(model, config, device, self.teacher)

    def predictor(self, model: Any, device: torch.device) -> ClosedPredictor:
        """Return the network as something that can be judged."""
        return ClosedPredictor(model, device, segformer_share)

    def architecture(self, config: TrainConfig) -> str:
        """Return the sizes of the network for the card."""
        sizes = config.model
        return f'four stages {sizes.hidden} wide with {sizes.depths} blocks'


def _adopting_stage(model: Segformer) -> Stage:
    return cast(Stage, model.stages[_ADOPTING_STAGE])


FAMILY = SegformerFamily
