# SPDX-License-Identifier: Apache-2.0
"""What is replaced: LSeg as it was published, run as LSeg-TensorRT runs it.

Every layer lies where the paper's code has it, the vectors of all pixels are made at full
resolution, and all of them are copied to the host. Written from the published behaviour.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blabberseg_ros.bundle import TOKENIZER, Bundle
from blabberseg_ros.models.load_lseg import load_lseg
from blabberseg_ros.models.lseg import LSeg, upsampled
from blabberseg_ros.text import Tokenizer


class PlainLSeg:
    """LSeg in eager torch, fp32, with the feature map on the host."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        """Load the network on `cpu` or `cuda`."""
        self._device = device
        self._model = load_lseg(bundle).to(device)
        self._tokenizer = Tokenizer.from_file(bundle.folder / TOKENIZER)
        shape = (3, 1, 1)
        self._mean = torch.tensor(self._model.config.mean).view(shape)
        self._std = torch.tensor(self._model.config.std).view(shape)

    def encode_image(self, image: np.ndarray, side_px: int) -> np.ndarray:
        """Return the vectors of all pixels, float32 [D, side, side]; see `encode_on_device`."""
        return self.encode_on_device(image, side_px).cpu().numpy()

    @torch.inference_mode()
    def encode_on_device(self, image: np.ndarray, side_px: int) -> Tensor:
        """Compute the vectors of all pixels of an image stretched to a square.

        Args:
            image: uint8 [h, w, 3], RGB.
            side_px: of the square, a multiple of 32.

        Returns:
            float32 [D, side, side] where the network is.
        """
        levels = torch.from_numpy(cv2.resize(image, (side_px, side_px))).permute(2, 0, 1)
        pixels = ((levels.float() / 255 - self._mean) / self._std)[None].to(self._device)
        vectors = self._model.config.logit_scale * plain_features(self._model, pixels)
        return upsampled(vectors, side_px, side_px)[0]

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return the unit vectors of texts, float32 [P, D]; nothing is kept for the next call."""
        ids = np.stack([self._tokenizer.encode(text).ids for text in texts])
        embedding = self._model.encode_text(torch.from_numpy(ids).to(self._device))
        return functional.normalize(embedding, dim=-1).cpu().numpy()


def plain_features(model: LSeg, pixels: Tensor) -> Tensor:
    """Return unit vectors [B, D, H/2, W/2] with every layer where it was published.

    Args:
        model: the network.
        pixels: float [B, 3, H, W], normalised.
    """
    x: Tensor | None = None
    levels = model.vision(pixels)
    for step, level in zip(reversed(model.steps), reversed(levels), strict=True):
        own = step.adapt(level)
        x = own if x is None or step.join is None else x + step.join(own)
        x = step.refine(x)
        # Twice the size, which is that of the next level.
        x = step.project(upsampled(x, 2 * x.shape[-2], 2 * x.shape[-1]))
    if x is None:
        raise ValueError('the image tower gave no level')
    return functional.normalize(model.head(x), dim=1)
