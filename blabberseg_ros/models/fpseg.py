# SPDX-License-Identifier: Apache-2.0
"""FPSeg: SAM with learned prompts, one set of tokens a class.

The encoder sees an image once; the decoder then answers for any choice of classes. Names are those
of the published checkpoints.

Source: Krabbe et al., FPSeg (github.com/JanKrabbe/FPSeg); Zhang et al., MobileSAM (2023).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.fpseg_config import FpSegConfig, TinyVitConfig
from blabberseg_ros.models.fpseg_prompts import ClassPrompt, check_names
from blabberseg_ros.models.mask_decoder import MaskDecoder, PromptEncoder
from blabberseg_ros.models.sam_vit import SamVit
from blabberseg_ros.models.tiny_vit import TinyVit


class FpSeg(nn.Module):
    """Encoder, classes and decoder.

    Attributes:
        config: sizes and class names.
        half_methods: what may run in half precision.
    """

    half_methods: ClassVar[tuple[str, ...]] = ('encode_images', 'decode')

    def __init__(self, config: FpSegConfig, *, norms: bool = True) -> None:
        """Create the network with torch's initial weights.

        Args:
            config: sizes and class names.
            norms: whether TinyViT's convolutions have batch norms, as in training and in
                checkpoints; a bundle holds them folded.
        """
        super().__init__()
        self.config = config
        self.image_encoder: TinyVit | SamVit
        if isinstance(config.encoder, TinyVitConfig):
            self.image_encoder = TinyVit(config.encoder, config.width,
                                         with_bias=config.attention_bias == 'live',
                                         norms=norms)
        else:
            self.image_encoder = SamVit(config.encoder, config.width)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode a batch of images.

        Args:
            pixels: float [B, 3, S, S], normalised with the configuration's mean and std; zero
                where a letterbox pads.

        Returns:
            Embeddings, float [B, width, S / 16, S / 16].
        """
        return self.image_encoder(pixels)

    def decode(self, embedding: Tensor, tokens: Tensor, dense: Tensor | None = None,
               bias: Tensor | None = None) -> Tensor:
        """Look for one class in each image, or for several in one.

        Args:
            embedding: float [B, width, g, g], or [1, width, g, g] of one image for all rows.
            tokens: float [B, P, width], of the class that each row looks for.
            dense: float [B, width], of these classes; None for the model's own.
            bias: float [B, P], very negative for tokens that are padding; None if none are.

        Returns:
            Logits, float [B, 4 g, 4 g].
        """
        if dense is None:
            dense = self.prompt_encoder.no_mask_embed.weight.expand(tokens.shape[0], -1)
        position = self.prompt_encoder.position(embedding.shape[-1])
        image = embedding.flatten(2).transpose(1, 2)
        return self.mask_decoder(image, position, tokens, dense, bias)

    def decode_batch(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Look for several classes in each of several images.

        Args:
            embeddings: float [B, width, g, g].
            tokens: float [B, n, P, width].

        Returns:
            Logits, float [B, n, 4 g, 4 g].
        """
        classes = tokens.shape[1]
        logits = self.decode(embeddings.repeat_interleave(classes, dim=0), tokens.flatten(0, 1))
        return logits.unflatten(0, (-1, classes))

    def forward(self, pixels: Tensor) -> Tensor:
        """Look for all of the model's classes in images [B, 3, S, S]: [B, N, S / 4, S / 4]."""
        tokens = self.prompt_encoder.prompt_embeddings
        return torch.stack([self.decode(embedding[None], tokens)
                            for embedding in self.encode_images(pixels)])

    def class_prompts(self) -> tuple[ClassPrompt, ...]:
        """Return the model's classes as they are kept in files."""
        dense = self.prompt_encoder.no_mask_embed.weight.detach().cpu().numpy()[0]
        tokens = self.prompt_encoder.prompt_embeddings.detach().cpu().numpy()
        return tuple(ClassPrompt(name, entry.copy(), dense.copy())
                     for name, entry in zip(self.config.class_names, tokens, strict=True))

    def set_class_prompts(self, prompts: Sequence[ClassPrompt]) -> None:
        """Replace the model's classes; their number and size may change.

        Args:
            prompts: with the same number of tokens each, tuned together.

        Raises:
            BundleError: they do not fit this network or each other.
        """
        check_names([prompt.name for prompt in prompts], 'the classes')
        if len({prompt.tokens.shape for prompt in prompts}) > 1:
            raise BundleError('the classes differ in their number of tokens; a network that is '
                              'trained takes classes of one size')
        first = prompts[0]
        if first.dense.shape != (self.config.width,):
            raise BundleError(f'the prompts are {first.dense.size} wide and the network '
                              f'{self.config.width}; they were tuned for another one')
        if any((prompt.dense != first.dense).any() for prompt in prompts):
            raise BundleError('the classes were tuned with different no_mask_embed vectors; a '
                              'network that is trained has one')
        encoder = self.prompt_encoder
        tokens = torch.stack([torch.from_numpy(prompt.tokens) for prompt in prompts])
        encoder.prompt_embeddings = nn.Parameter(
            tokens.to(encoder.prompt_embeddings), encoder.prompt_embeddings.requires_grad)
        with torch.no_grad():
            encoder.no_mask_embed.weight.copy_(torch.from_numpy(first.dense)[None])
        self.config = replace(self.config, prompt_size=tokens.shape[1],
                              class_names=tuple(prompt.name for prompt in prompts))
