# SPDX-License-Identifier: Apache-2.0
"""Networks in torch, in full precision, as predictors that can be judged."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.text import Tokenizer
from blabberseg_ros.training.labels import CLASS_NAMES, as_labels

# What a text tower makes of one prompt.
TextCode = tuple[Tensor, ...]


class OpenPredictor(ABC):
    """A network that reads words.

    The logits of the last image are kept for each prompt, so that sets of prompts that share most
    of them cost little.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, device: torch.device) -> None:
        """Take a network that lies on `device`."""
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._image: np.ndarray | None = None
        self._code: Any = None
        self._texts: dict[str, TextCode] = {}
        self._logits: dict[str, Tensor] = {}

    @abstractmethod
    def _encode(self, pixels: Tensor) -> Any:
        """Return the code of an image, float [1, 3, S, S]."""

    @abstractmethod
    def _read(self, tokens: Tensor) -> Sequence[TextCode]:
        """Return a code for each text, int [U, 77]."""

    @abstractmethod
    def _decode(self, code: Any, texts: Sequence[TextCode]) -> Tensor:
        """Return logits [P, S, S]."""

    @torch.no_grad()
    def probability(self, image: np.ndarray, prompts: PromptSet) -> np.ndarray:
        """Return the probability of safe ground, float32 [H, W].

        Raises:
            ValueError: the image is not of the network's own size.
        """
        if image is not self._image:
            self._image, self._logits = image, {}
            self._code = self._encode(normalised(image, self._model.config, self._device))
        new = [text for text in dict.fromkeys(prompts.texts) if text not in self._logits]
        if new:
            self._know(new)
            logits = self._decode(self._code, [self._texts[text] for text in new])
            self._logits |= dict(zip(new, logits, strict=True))
        logits = torch.stack([self._logits[text] for text in prompts.texts])
        positive = torch.tensor(prompts.is_positive, device=self._device)
        return logits.softmax(0)[positive].sum(0).cpu().numpy()

    def _know(self, texts: Sequence[str]) -> None:
        """Read the texts that were never read before."""
        new = [text for text in texts if text not in self._texts]
        if new:
            tokens = np.stack([self._tokenizer.encode(text).ids for text in new])
            codes = self._read(torch.tensor(tokens, device=self._device))
            self._texts |= dict(zip(new, codes, strict=True))


class ClipSegPredictor(OpenPredictor):
    """CLIPSeg."""

    _model: ClipSeg

    def _encode(self, pixels: Tensor) -> Tensor:
        return self._model.encode_image(pixels)

    def _read(self, tokens: Tensor) -> Sequence[TextCode]:
        return list(zip(*self._model.film(self._model.encode_text(tokens)), strict=True))

    def _decode(self, code: Tensor, texts: Sequence[TextCode]) -> Tensor:
        mul, add = (torch.stack(part) for part in zip(*texts, strict=True))
        return self._model.decode(code, mul, add)


class LSegPredictor(OpenPredictor):
    """LSeg."""

    def _encode(self, pixels: Tensor) -> Tensor:
        return self._model.encode_images(pixels)

    def _read(self, tokens: Tensor) -> Sequence[TextCode]:
        return [(embedding,) for embedding in self._model.encode_text(tokens)]

    def _decode(self, code: Tensor, texts: Sequence[TextCode]) -> Tensor:
        return self._model.decode_batch(code, torch.stack([text for text, in texts])[None])[0]


class ClosedPredictor:
    """A network that knows the classes and no words.

    Prompts are read as the labels that they stand for, so this judges the network and not the
    matching of words.
    """

    def __init__(self, model: Any, device: torch.device,
                 share: Callable[[Tensor, list[int], list[int]], Tensor]) -> None:
        """Take a network that lies on `device`.

        Args:
            model: gives logits [1, classes, h, w].
            device: of the network.
            share: the positive classes' share of the probability, [h', w'], from logits
                [classes, h, w] and the indices of the positive and negative classes.
        """
        self._model = model
        self._device = device
        self._share = share
        self._image: np.ndarray | None = None
        self._logits = torch.empty(0)

    @torch.no_grad()
    def probability(self, image: np.ndarray, prompts: PromptSet) -> np.ndarray:
        """Return the probability of safe ground, float32 [H, W]."""
        if image is not self._image:
            self._image = image
            self._logits = self._model(normalised(image, self._model.config, self._device))[0]
        labels = as_labels(prompts)
        positive, negative = ([CLASS_NAMES.index(name) for name in names]
                              for names in (labels.positive, labels.negative))
        share = self._share(self._logits, positive, negative)
        return enlarged(share[None], image.shape[0])[0].cpu().numpy()


def segformer_share(logits: Tensor, positive: list[int], negative: list[int]) -> Tensor:
    """Return the sum over the positive classes of a softmax over all of them, at full size."""
    del negative  # what is not asked for takes its share all the same
    return enlarged(logits, 4 * logits.shape[-1]).softmax(0)[positive].sum(0)


def fpseg_share(logits: Tensor, positive: list[int], negative: list[int]) -> Tensor:
    """Return the positive share of a softmax over the asked classes and a background of 0."""
    background = torch.zeros_like(logits[:1])
    asked = torch.cat((logits[positive], logits[negative], background))
    return asked.softmax(0)[:len(positive)].sum(0)


def enlarged(maps: Tensor, side: int) -> Tensor:
    """Resize maps [N, h, h] bilinearly to [N, side, side]."""
    return functional.interpolate(maps[None], (side, side), mode='bilinear')[0]


def normalised(image: np.ndarray, config: Any, device: torch.device) -> Tensor:
    """Return a picture uint8 [S, S, 3] as float [1, 3, S, S].

    Raises:
        ValueError: the image is not of the network's own size.
    """
    side = config.input_size_px
    if image.shape[:2] != (side, side):
        raise ValueError(f'the image is {image.shape[:2]}, not {side} px square')
    pixels = torch.tensor(image, device=device).permute(2, 0, 1).float() / 255.0
    mean, std = (torch.tensor(values, device=device)[:, None, None]
                 for values in (config.mean, config.std))
    return ((pixels - mean) / std)[None]
