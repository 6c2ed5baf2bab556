# SPDX-License-Identifier: Apache-2.0
"""Training of the demonstration FPSeg: encoder, decoder and prompts, all from nothing."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.folding import folded
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import MASK_SCALE, FpSegConfig, SamVitConfig
from blabberseg_ros.models.sam_vit import SamVit
from blabberseg_ros.training.auxiliary import MapReadOut
from blabberseg_ros.training.closed_lesson import ClosedFamily, ClosedLesson
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.labels import CLASS_NAMES
from blabberseg_ros.training.losses import Losses
from blabberseg_ros.training.prompt_sampler import CLASS_COUNT
from blabberseg_ros.training.torch_predictor import ClosedPredictor, fpseg_share
from blabberseg_ros.training.tower import adopt_into_sam
from blabberseg_ros.training.world_store import send

# Classes that an update asks for. Some are left out, as at run time.
_ASKED = 7


class FpSegLesson(ClosedLesson):
    """Some of the classes; binary losses, as FPSeg is tuned, and who wins a pixel.

    All classes share a decoder and at first give the same mask, from which the encoder learns
    nothing; a read-out teaches it directly.
    """

    def __init__(self, model: FpSeg, config: TrainConfig, device: torch.device) -> None:
        """Take a network that lies on `device`."""
        super().__init__(config, device, background=True)
        self._model = model
        self._map = MapReadOut(config.model.width, CLASS_COUNT, parts=MASK_SCALE)
        self.helpers = self._map.to(device)

    def draw(self, rng: random.Random) -> Sequence[Tensor]:
        """Ask for some classes, int64 [N]."""
        asked = rng.sample(range(len(CLASS_NAMES)), _ASKED)
        return (send(np.array(asked), self._device),)

    def losses(self, pixels: Tensor, labels: Tensor, class_weights: Tensor,
               *asked: Tensor) -> Losses:
        """Look for some classes in each image and compare."""
        classes, = asked
        tokens = self._model.prompt_encoder.prompt_embeddings[classes]
        with self.autocast():
            # Not compiled: the backward pass of attention with a learned bias fails in torch 2.11.
            embeddings = self._model.encode_images(pixels)
            logits = self._model.decode_batch(
                embeddings, tokens.expand(len(pixels), *tokens.shape))
            image_loss = self._map.loss(embeddings, labels, class_weights)
        return self.compare(logits, labels, class_weights, classes).plus(
            'image', self._config.loss.image, image_loss)


class FpSegFamily(ClosedFamily):
    """FPSeg, trained with batch norms that are folded when it is finished."""

    name = 'fpseg'

    @staticmethod
    def create(architecture: FpSegConfig) -> FpSeg:
        """Return a network of this architecture."""
        return FpSeg(architecture, norms=False)

    def fresh(self, config: TrainConfig, continued: bool) -> FpSeg:
        """Return a network with fresh weights; finished weights have no norms to go with them."""
        torch.manual_seed(config.seed)
        model = FpSeg(config.model, norms=not continued)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        return model

    def adopt_tower(self, model: FpSeg, teacher: ClipSeg, pixels: Tensor) -> None:
        """Give the network the image tower of a trained CLIPSeg, if it has a ViT."""
        if not isinstance(model.image_encoder, SamVit):
            return super().adopt_tower(model, teacher, pixels)
        return adopt_into_sam(model.image_encoder, teacher, pixels)

    def tower_weights(self, model: FpSeg) -> list[nn.Parameter]:
        """Return those of the encoder but for its neck."""
        return [weight for name, weight in model.image_encoder.named_parameters()
                if not name.startswith('neck.')]

    def finished(self, model: nn.Module) -> FpSeg:
        """Return a copy without batch norms."""
        return folded(model)  # type: ignore[return-value]

    def lesson(self, model: FpSeg, config: TrainConfig, device: torch.device) -> FpSegLesson:
        """Prepare the training of a network."""
        return FpSegLesson(model, config, device)

    def predictor(self, model: Any, device: torch.device) -> ClosedPredictor:
        """Return the network as something that can be judged."""
        return ClosedPredictor(model, device, fpseg_share)

    def architecture(self, config: TrainConfig) -> str:
        """Return the sizes of the network for the card."""
        sizes, encoder = config.model, config.model.encoder
        tower = (f'ViT {encoder.width} wide with {encoder.depth} blocks'
                 if isinstance(encoder, SamVitConfig) else
                 f'TinyViT {encoder.embed_dims} wide with {encoder.depths} blocks')
        return (f'{tower}, decoder {sizes.width} wide,\n  {sizes.prompt_size} prompt tokens a '
                'class')


FAMILY = FpSegFamily
