# SPDX-License-Identifier: Apache-2.0
"""The network in torch, as a predictor that can be judged."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.text import Tokenizer


class TorchPredictor:
    """The network, in full precision.

    The logits of the last image are kept for each prompt, so that sets of prompts that share most
    of them cost little.
    """

    def __init__(self, model: ClipSeg, tokenizer: Tokenizer, device: torch.device) -> None:
        """Take a network that lies on `device`."""
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._image: np.ndarray | None = None
        self._code: Tensor | None = None
        self._film: dict[str, tuple[Tensor, Tensor]] = {}
        self._logits: dict[str, Tensor] = {}

    @torch.no_grad()
    def probability(self, image: np.ndarray, prompts: PromptSet) -> np.ndarray:
        """Return the probability of safe ground, float32 [H, W].

        Raises:
            ValueError: the image is not of the network's own size.
        """
        if image is not self._image or self._code is None:
            self._image, self._logits = image, {}
            self._code = self._model.encode_image(self._pixels(image))
        texts = dict.fromkeys(prompts.texts)
        self._decode(self._code, [text for text in texts if text not in self._logits])
        logits = torch.stack([self._logits[text] for text in prompts.texts])
        positive = torch.tensor(prompts.is_positive, device=self._device)
        return logits.softmax(0)[positive].sum(0).cpu().numpy()

    def _pixels(self, image: np.ndarray) -> Tensor:
        config = self._model.config
        side = config.input_size_px
        if image.shape[:2] != (side, side):
            raise ValueError(f'the image is {image.shape[:2]}, not {side} px square')
        pixels = torch.tensor(image, device=self._device).permute(2, 0, 1).float() / 255.0
        mean, std = (torch.tensor(values, device=self._device)[:, None, None]
                     for values in (config.mean, config.std))
        return ((pixels - mean) / std)[None]

    def _decode(self, code: Tensor, texts: Sequence[str]) -> None:
        if not texts:
            return
        new = [text for text in texts if text not in self._film]
        if new:
            tokens = np.stack([self._tokenizer.encode(text).ids for text in new])
            conditional = self._model.encode_text(torch.tensor(tokens, device=self._device))
            for text, mul, add in zip(new, *self._model.film(conditional), strict=True):
                self._film[text] = mul, add
        mul, add = (torch.stack([self._film[text][part] for text in texts]) for part in (0, 1))
        self._logits |= dict(zip(texts, self._model.decode(code, mul, add), strict=True))
