# SPDX-License-Identifier: Apache-2.0
"""Training of the demonstration LSeg."""

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.folding import folded
from blabberseg_ros.models.lseg import LSeg
from blabberseg_ros.models.lseg_config import LSegConfig
from blabberseg_ros.models.lseg_towers import VitTower
from blabberseg_ros.text import Tokenizer
from blabberseg_ros.training.auxiliary import MapReadOut, TextReadOut
from blabberseg_ros.training.config import TrainConfig
from blabberseg_ros.training.family import compiled
from blabberseg_ros.training.lexicon import training_texts
from blabberseg_ros.training.losses import Losses, Targets, prompt_losses
from blabberseg_ros.training.open_words import (
    OpenFamily,
    warm_token_embedding,
    write_demo_tokenizer,
)
from blabberseg_ros.training.prompt_batch import PromptBatches, shared_out
from blabberseg_ros.training.prompt_sampler import CLASS_COUNT
from blabberseg_ros.training.torch_predictor import LSegPredictor
from blabberseg_ros.training.tower import adopt_into_lseg, adopt_text_tower
from blabberseg_ros.training.upsampling import SparseUpsampling


class LSegLesson:
    """Random prompt sets, the three losses on their cosines, and a read-out on each tower."""

    def __init__(self, model: LSeg, config: TrainConfig, tokenizer: Tokenizer,
                 device: torch.device) -> None:
        """Take a network that lies on `device`."""
        self._model = model
        self._config = config
        self._device = device
        self._prompts = PromptBatches(tokenizer, device)
        self._upsampling = SparseUpsampling(align_corners=True)
        self._text = TextReadOut(config.model.embed_dim, CLASS_COUNT)
        self._map = MapReadOut(config.model.features, CLASS_COUNT)
        self.helpers = nn.ModuleList((self._text, self._map)).to(device)
        self.losses = compiled(self._losses, device)

    def draw(self, rng: random.Random) -> Sequence[Tensor]:
        """Draw prompt sets; see `PromptBatches.draw`."""
        return self._prompts.draw(rng, self._config.optimiser.prompt_sets)

    def _losses(self, pixels: Tensor, labels: Tensor, class_weights: Tensor,
                *asked: Tensor) -> Losses:
        """Compare the pixels with a prompt set for each image."""
        config = self._config.loss
        tokens, covers, positive, valid = asked
        # The text tower is small and its mask wants the precision; only the rest is rounded.
        embedding = self._model.encode_text(tokens.flatten(0, 1)).unflatten(0, valid.shape)
        texts = shared_out(functional.normalize(embedding, dim=-1), len(pixels))
        with torch.autocast(self._device.type, torch.bfloat16,
                            enabled=self._device.type == 'cuda'):
            codes = self._model.encode_checked(pixels)
            features = self._model.features(codes)
            cosines = torch.einsum('bpd,bdhw->bphw', texts.to(features.dtype), features)
            image_loss = self._map.loss(codes, labels, class_weights)
        # The network enlarges the cosines; only the pixels that are compared are worked out.
        logits = self._model.config.logit_scale * self._upsampling(
            cosines.float(), labels.shape[-1], config.compared)
        targets = Targets(*(shared_out(part, len(pixels)) for part in (covers, positive, valid)))
        losses = prompt_losses(logits, labels[..., config.compared, config.compared], targets,
                               class_weights, config)
        text_loss = self._text.loss(embedding, covers, valid)
        return losses.plus('text', config.text, text_loss).plus(
            'image', config.image, image_loss)


class LSegFamily(OpenFamily):
    """LSeg, trained with batch norms that are folded when it is finished."""

    name = 'lseg'

    @cached_property
    def tokenizer_json(self) -> Path:
        """Return a file of the tokenizer with the training's tokens alone.

        The other 48,000 would be 3 MB of zeros in the token embedding.
        """
        path = self.workspace / 'tokenizer.json'
        write_demo_tokenizer(path, training_texts())
        return path

    @staticmethod
    def create(architecture: LSegConfig) -> LSeg:
        """Return a network of this architecture."""
        return LSeg(architecture)

    def fresh(self, config: TrainConfig, continued: bool) -> LSeg:
        """Return a network with fresh weights; finished weights have no norms to go with them."""
        if config.model.vocab_size != self.tokenizer.size:
            raise ParameterError(f'the words of training need {self.tokenizer.size} tokens, not '
                                 f'{config.model.vocab_size}; give that as vocab_size')
        torch.manual_seed(config.seed)
        model = LSeg(config.model, norms=not continued)
        if not continued:
            warm_token_embedding(model.text.token_embedding, self.token_ids, config.seed)
        return model

    def adopt_tower(self, model: LSeg, teacher: ClipSeg, pixels: Tensor) -> None:
        """Give the network both towers of a trained CLIPSeg, if it has a ViT."""
        if not isinstance(model.vision, VitTower):
            return super().adopt_tower(model, teacher, pixels)
        adopt_into_lseg(model.vision, teacher, pixels)
        theirs = self.workspace / 'clip_tokenizer.json'
        write_demo_tokenizer(theirs)
        return adopt_text_tower(model.text, self.tokenizer, teacher, Tokenizer.from_file(theirs))

    def tower_weights(self, model: LSeg) -> list[nn.Parameter]:
        """Return those of the ViT, without the layers that make levels of it, and of the text."""
        return [*model.text.parameters(),
                *(weight for name, weight in model.vision.named_parameters()
                  if not name.startswith(('readout.', 'reassemble.')))]

    def finished(self, model: nn.Module) -> LSeg:
        """Return a copy without batch norms."""
        return folded(model)  # type: ignore[return-value]

    def lesson(self, model: LSeg, config: TrainConfig, device: torch.device) -> LSegLesson:
        """Prepare the training of a network."""
        return LSegLesson(model, config, self.tokenizer, device)

    def predictor(self, model: Any, device: torch.device) -> LSegPredictor:
        """Return the network as something that can be judged."""
        return LSegPredictor(model, self.tokenizer, device)

    def architecture(self, config: TrainConfig) -> str:
        """Return the sizes of the network for the card."""
        sizes = config.model
        tower = (f'ResNet {sizes.resnet_width} wide with {sizes.resnet_blocks} blocks'
                 if sizes.backbone == 'resnet' else
                 f'ViT {sizes.vision_width} wide with {sizes.vision_layers} blocks')
        return (f'{tower}, fusion {sizes.features} wide,\n  text tower {sizes.text_width} wide '
                f'with {sizes.text_layers} blocks')


FAMILY = LSegFamily
