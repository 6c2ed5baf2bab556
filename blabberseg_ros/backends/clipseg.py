# SPDX-License-Identifier: Apache-2.0
"""CLIPSeg in the stages of BlabberSeg: what does not change is computed once.

The prompt code is the FiLM pair, 2 x r numbers a prompt; the image code holds the three reduced
activations, [3, T, r], which no prompt changes. A new prompt costs one run of the text tower, a
new frame one run of the image tower, and all prompts share one run of the decoder (groups of them
on a CPU).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blabberseg_ros.backends.text import TextBackend
from blabberseg_ros.backends.values import ImageCode, PromptCode
from blabberseg_ros.errors import NotFiniteError


class ClipSegBackend(TextBackend):
    """CLIPSeg on any engine, one graph a stage.

    The text tower is loaded when a prompt is new: a robot whose prompts are all in the cache never
    loads it.
    """

    family = 'clipseg'

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages."""
        return 'image_encoder', 'text_encoder', 'film', 'decoder', 'fusion'

    def encode_prompts(self, texts: Sequence[str]) -> list[PromptCode]:
        """Run the text tower and the FiLM layers on all texts at once."""
        tokens = self.tokens(texts)
        conditional = self.engine('text_encoder').infer({'tokens': tokens})['conditional']
        film = self.engine('film').infer({'conditional': conditional})
        mul, add = self.engine('film').to_host(film['mul'], film['add'])
        if not (np.isfinite(mul).all() and np.isfinite(add).all()):
            raise NotFiniteError(
                'the text tower answered NaN or infinity; the prompts cannot be used. Check the '
                'bundle with `blabberseg doctor`, or use fp32')
        return [PromptCode((('mul', mul[index]), ('add', add[index])))
                for index in range(len(texts))]

    def decode(self, image: ImageCode, prompts: Sequence[PromptCode]) -> Any:
        """Run the decoder once for all prompts."""
        return self.engine('decoder').infer(self.code_feeds(image, prompts))['logits']


BACKEND = ClipSegBackend
