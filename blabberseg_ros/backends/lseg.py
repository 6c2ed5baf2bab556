# SPDX-License-Identifier: Apache-2.0
"""LSeg in stages: a vector a prompt, a map of vectors a frame, their cosines.

The prompt code is the text's unit vector. The image code is the map from which every pixel's
vector follows, at a quarter of the resolution, and the lengths of these vectors.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blabberseg_ros.backends.text import TextBackend
from blabberseg_ros.backends.values import ImageCode, PromptCode
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.errors import NotFiniteError
from blabberseg_ros.models.lseg_config import check_input_size
from blabberseg_ros.resampling import triangle_matrices


class LSegBackend(TextBackend):
    """LSeg on any engine, one graph a stage."""

    family = 'lseg'

    def __init__(self, bundle: Bundle, kind: EngineKind) -> None:
        """Make the engines; nothing is loaded before `activate`."""
        super().__init__(bundle, kind)
        self._side_px = bundle.manifest.input_size_px

    @property
    def map_size_px(self) -> int:
        """Return the side of the square that frames are stretched to."""
        return self._side_px

    def use_size(self, side_px: int) -> None:
        """Stretch frames to another square from now on; the weights and engines stay.

        Raises:
            BundleError: the side is no multiple of 32 px.
        """
        check_input_size(side_px)
        self._side_px = side_px

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages."""
        return 'image_encoder', 'text_encoder', 'decoder', 'features', 'fusion'

    def encode_prompts(self, texts: Sequence[str]) -> list[PromptCode]:
        """Run the text tower on all texts at once."""
        engine = self.engine('text_encoder')
        outputs = engine.infer({'tokens': self.tokens(texts)})
        embedding, = engine.to_host(outputs['embedding'])
        if not np.isfinite(embedding).all():
            raise NotFiniteError(
                'the text tower answered NaN or infinity; the prompts cannot be used. Check the '
                'bundle with `blabberseg doctor`, or use fp32')
        return [PromptCode((('embedding', row),)) for row in embedding]

    def encode_image(self, image: np.ndarray) -> ImageCode:
        """Return the code of an image stretched to the model's square."""
        return self.encode_image_at(image, self._side_px, self._side_px)

    def encode_image_at(self, image: np.ndarray, height: int, width: int) -> ImageCode:
        """Return the code of an image, uint8 [H, W, 3], stretched to any size.

        Raises:
            BundleError: a side is no multiple of 32 px.
            EngineError: the network fails.
        """
        check_input_size(height, width)
        rows, cols = triangle_matrices(image.shape[0], image.shape[1], height, width)
        return self.engine('image_encoder').infer({'image': image, 'rows': rows, 'cols': cols})

    def decode(self, image: ImageCode, prompts: Sequence[PromptCode]) -> Any:
        """Run the decoder once for all prompts."""
        return self.engine('decoder').infer(self.code_feeds(image, prompts))['logits']

    def code_feeds(self, image: ImageCode, prompts: Sequence[PromptCode]) -> dict[str, Any]:
        """Return what the decoder is fed: both parts of the image code, and the vectors."""
        return {**super().code_feeds(None, prompts), **image}

    def features(self, image: ImageCode) -> np.ndarray:
        """Return the unit vector of every second pixel, float32 [D, H/2, W/2], on the host.

        Args:
            image: from `encode_image` or `encode_image_at`.

        Raises:
            EngineError: the network fails.
            NotFiniteError: it answers NaN or infinity.
        """
        engine = self.engine('features')
        features, = engine.to_host(engine.infer(dict(image))['features'])
        if not np.isfinite(features).all():
            raise NotFiniteError('the network answered NaN or infinity for this image; use fp32')
        return features


BACKEND = LSegBackend
