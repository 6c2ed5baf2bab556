# SPDX-License-Identifier: Apache-2.0
"""Training of the demonstration CLIPSeg."""

import random
from collections.abc import Sequence

import torch
from open_clip.transformer import Attention
from torch import Tensor, nn

from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.text import Tokenizer
from blabberseg_ros.training.auxiliary import ReadOuts
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.family import compiled
from blabberseg_ros.training.losses import Losses, Targets, prompt_losses
from blabberseg_ros.training.open_words import OpenFamily, warm_token_embedding
from blabberseg_ros.training.prompt_batch import PromptBatches, shared_out
from blabberseg_ros.training.prompt_sampler import CLASS_COUNT
from blabberseg_ros.training.torch_predictor import ClipSegPredictor
from blabberseg_ros.training.upsampling import use_products


class ClipSegLesson:
    """Random prompt sets, the three losses on their logits, and a read-out on each tower."""

    def __init__(self, model: ClipSeg, config: TrainConfig, tokenizer: Tokenizer,
                 device: torch.device) -> None:
        """Take a network that lies on `device`."""
        self._model = model
        self._config = config
        self._device = device
        self._prompts = PromptBatches(tokenizer, device)
        self.helpers = ReadOuts(config.model, CLASS_COUNT).to(device)
        self.losses = compiled(self._losses, device)

    def draw(self, rng: random.Random) -> Sequence[Tensor]:
        """Draw prompt sets; see `PromptBatches.draw`."""
        return self._prompts.draw(rng, self._config.optimiser.prompt_sets)

    def _losses(self, pixels: Tensor, labels: Tensor, class_weights: Tensor,
                *asked: Tensor) -> Losses:
        """Decode a prompt set for each image and compare with what the prompts stand for."""
        config = self._config.loss
        tokens, covers, positive, valid = asked
        # The text tower is small and its mask wants the precision; only the rest is rounded.
        conditional = self._model.encode_text(tokens.flatten(0, 1)).unflatten(0, valid.shape)
        mul, add = (shared_out(pairs, len(pixels)) for pairs in self._model.film(conditional))
        with torch.autocast(self._device.type, torch.bfloat16,
                            enabled=self._device.type == 'cuda'):
            codes = self._model.encode_images(pixels)
            logits = self._model.decode_batch(codes, mul, add)
            image_loss = self.helpers.image_loss(codes, labels, class_weights)
        targets = Targets(*(shared_out(part, len(pixels)) for part in (covers, positive, valid)))
        some = (..., config.compared, config.compared)
        losses = prompt_losses(logits[some], labels[some], targets, class_weights, config)
        text_loss = self.helpers.text_loss(conditional, covers, valid)
        return losses.plus('text', config.text, text_loss).plus(
            'image', config.image, image_loss)


class ClipSegFamily(OpenFamily):
    """CLIPSeg."""

    name = 'clipseg'

    @staticmethod
    def create(architecture: ClipSegConfig) -> ClipSeg:
        """Return a network of this architecture."""
        return ClipSeg(architecture)

    def fresh(self, config: TrainConfig, continued: bool) -> ClipSeg:
        """Return a network with fresh weights, the same for the same seed."""
        model = build_model(config)
        if not continued:
            warm_token_embedding(model.token_embedding, self.token_ids, config.seed)
        return model

    def lesson(self, model: ClipSeg, config: TrainConfig, device: torch.device) -> ClipSegLesson:
        """Prepare the training of a network."""
        return ClipSegLesson(model, config, self.tokenizer, device)

    def predictor(self, model: ClipSeg, device: torch.device) -> ClipSegPredictor:
        """Return the network as something that can be judged."""
        return ClipSegPredictor(model, self.tokenizer, device)

    def architecture(self, config: TrainConfig) -> str:
        """Return the sizes of the network for the card."""
        sizes = config.model
        return (f'rd{sizes.reduce_dim}, {sizes.head} head, image tower {sizes.vision_width} wide '
                f'with {sizes.vision_layers} blocks,\n  text tower {sizes.text_width} wide with '
                f'{sizes.text_layers} blocks, decoder {sizes.reduce_dim} wide')


def build_model(config: TrainConfig) -> ClipSeg:
    """Return a network with fresh weights, the same for the same seed; no word means anything."""
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
    nn.init.zeros_(model.token_embedding.weight)
    # The decoder starts as if there were no prompt.
    nn.init.ones_(model.film_mul.bias)
    use_products(model)
    return model


FAMILY = ClipSegFamily
