# SPDX-License-Identifier: Apache-2.0
"""What is replaced: Segformer in eager torch, with everything after it on the CPU by OpenCV.

This is how segformer_jetson_nano works in Python: resize by OpenCV, transformers' network in fp32,
logits to the host, and the rest there. Written from the published behaviour. Its C++ program
chooses the labels first and resizes the colours, which mixes classes at borders; here the logits
are resized, as its Python program and transformers do.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from blabberseg_ros.errors import EngineError
from blabberseg_ros.heatmap import FusionOptions, apply_threshold, find_threshold
from blabberseg_ros.models.segformer_config import SegformerConfig, variant_config

# The repository's model: B4 with the 35 labels of a street data set.
LABELS = tuple(f'label {index}' for index in range(35))
_LOGITS_STD = 2.0


class PlainSegformer:
    """transformers' Segformer in fp32, one operator after the other."""

    def __init__(self, folder: Path, device: str, size_px: int) -> None:
        """Load a Hugging Face folder on `cpu` or `cuda`.

        Raises:
            EngineError: transformers is not installed.
        """
        self._model: Any = _transformers().SegformerForSemanticSegmentation.from_pretrained(
            folder).to(device).eval()
        self._device, self._size_px = device, size_px
        config = variant_config('b4', LABELS)
        self._mean = np.array(config.mean, np.float32)
        self._std = np.array(config.std, np.float32)

    def preprocess(self, image: np.ndarray) -> torch.Tensor:
        """Return the network's input, float32 [1, 3, S, S] on the device."""
        square = cv2.resize(image, (self._size_px, self._size_px))
        pixels = (square.astype(np.float32) / 255 - self._mean) / self._std
        return torch.from_numpy(pixels.transpose(2, 0, 1)[None]).to(self._device)

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> np.ndarray:
        """Return the logits on the host, float32 [L, s, s]."""
        return self._model(pixel_values=pixels).logits[0].cpu().numpy()

    def label_map(self, logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return the likeliest label of each pixel, uint8 [H, W]."""
        return self._resized(logits, size).argmax(-1).astype(np.uint8)

    def mask(self, logits: np.ndarray, safe: np.ndarray, fusion: FusionOptions,
             size: tuple[int, int]) -> np.ndarray:
        """Return our landing mask, computed on the host.

        Args:
            logits: from `infer`.
            safe: bool [L].
            fusion: blur and threshold.
            size: (height, width) of the image.
        """
        square = self._resized(logits, (self._size_px, self._size_px))
        square -= square.max(-1, keepdims=True)
        np.exp(square, out=square)
        probability = square[..., safe].sum(-1) / square.sum(-1)
        probability = cv2.blur(probability, (fusion.blur_kernel_size,) * 2)
        probability = cv2.resize(probability, size[::-1])
        return apply_threshold(probability, find_threshold(probability, fusion),
                               fusion.on_failure)

    @staticmethod
    def _resized(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return logits [H, W, L], resized by OpenCV with half-pixel centres."""
        return cv2.resize(np.ascontiguousarray(logits.transpose(1, 2, 0)), size[::-1])


def write_random_folder(folder: Path, variant: str = 'b4', seed: int = 0) -> SegformerConfig:
    """Save a network of transformers with random weights, so that both sides run the same ones.

    Returns:
        Its sizes.

    Raises:
        EngineError: transformers is not installed.
    """
    transformers = _transformers()
    config = variant_config(variant, LABELS)
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(
        hidden_sizes=list(config.hidden), depths=list(config.depths),
        decoder_hidden_size=config.decoder_width, id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise / weight[0].numel() ** 0.5)
        pixels = torch.randn(1, 3, 64, 64, generator=generator)
        logits = model(pixel_values=pixels).logits
        last = model.decode_head.classifier
        last.weight.mul_(_LOGITS_STD / logits.std())
        last.bias.sub_((logits * _LOGITS_STD / logits.std()).mean((0, 2, 3)))
    model.save_pretrained(folder)
    return config


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise EngineError('transformers is not installed, which the plain Segformer needs; pip '
                          'install transformers') from error
    return transformers
