# SPDX-License-Identifier: Apache-2.0
"""Training of the demonstration FPSeg: encoder, decoder and prompts, all from nothing."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import MASK_SCALE, FpSegConfig
from blabberseg_ros.training.auxiliary import MapReadOut
from blabberseg_ros.training.closed_lesson import ClosedFamily, ClosedLesson
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.family import compiled
from blabberseg_ros.training.losses import Losses
from blabberseg_ros.training.prompt_sampler import CLASS_COUNT
from blabberseg_ros.training.torch_predictor import ClosedPredictor, fpseg_share


class FpSegLesson(ClosedLesson):
    """Every class of every image; binary losses, as FPSeg is tuned, and who wins a pixel.

    All classes share a decoder and at first give the same mask, from which the encoder learns
    nothing; a read-out teaches it directly.
    """

    def __init__(self, model: FpSeg, config: TrainConfig, device: torch.device) -> None:
        """Take a network that lies on `device`."""
        super().__init__(config, device, background=True)
        self._model = model
        self._encode = compiled(model.encode_images, device)
        self._decode = compiled(model.decode_batch, device)
        self._map = MapReadOut(config.model.width, CLASS_COUNT, parts=MASK_SCALE)
        self.helpers = self._map.to(device)

    def losses(self, pixels: Tensor, labels: Tensor, class_weights: Tensor,
               rng: random.Random) -> Losses:
        """Look for every class in each image and compare."""
        tokens = self._model.prompt_encoder.prompt_embeddings
        with self.autocast():
            embeddings = self._encode(pixels)
            logits = self._decode(embeddings, tokens.expand(len(pixels), *tokens.shape))
            image_loss = self._map.loss(embeddings, labels, class_weights)
        return self.compare(logits, labels, class_weights, rng).plus(
            'image', self._config.loss.image, image_loss)


class FpSegFamily(ClosedFamily):
    """FPSeg."""

    name = 'fpseg'

    @staticmethod
    def create(architecture: FpSegConfig) -> FpSeg:
        """Return a network of this architecture."""
        return FpSeg(architecture)

    def fresh(self, config: TrainConfig, continued: bool) -> FpSeg:
        """Return a network with fresh weights, the same for the same seed."""
        torch.manual_seed(config.seed)
        model = FpSeg(config.model)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        return model

    def lesson(self, model: FpSeg, config: TrainConfig, device: torch.device) -> FpSegLesson:
        """Prepare the training of a network."""
        return FpSegLesson(model, config, device)

    def predictor(self, model: Any, device: torch.device) -> ClosedPredictor:
        """Return the network as something that can be judged."""
        return ClosedPredictor(model, device, fpseg_share)

    def architecture(self, config: TrainConfig) -> str:
        """Return the sizes of the network for the card."""
        sizes = config.model
        return (f'TinyViT {sizes.encoder.embed_dims} wide with {sizes.encoder.depths} blocks, '
                f'decoder {sizes.width} wide,\n  {sizes.prompt_size} prompt tokens a class')


FAMILY = FpSegFamily
