# SPDX-License-Identifier: Apache-2.0
"""The classes that an FPSeg bundle knows, those that were added, and what a decoder is fed."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from blabberseg_ros.bundle import WEIGHTS, Bundle
from blabberseg_ros.errors import BundleError, PromptError
from blabberseg_ros.labels import LabelMatch, LabelMatcher, plain
from blabberseg_ros.models.fpseg_config import FpSegConfig
from blabberseg_ros.models.fpseg_prompts import ClassPrompt, check_names, read_prompts
from blabberseg_ros.resampling import read_only

# Added to the attention to a padding token: its weight is 0 in every precision, fp16 included.
_HIDDEN = -1e4
# Choices of classes whose arrays are kept.
_CHOICES = 8


class Classes:
    """Classes by name and by number; a number stays that of its class when others are added.

    Attributes:
        prompts: of the bundle's classes, then of the added ones.
    """

    def __init__(self, bundle: Bundle, config: FpSegConfig) -> None:
        """Read the classes of a bundle.

        Raises:
            BundleError: its weights hold other classes than its manifest.
        """
        self._bundle = bundle
        self._config = config
        self.prompts = _read_bundle(bundle, config)
        self._matcher = LabelMatcher(self.names, bundle.aliases)
        self._feeds: OrderedDict[tuple[int, ...], dict[str, np.ndarray]] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names, in the order of the numbers."""
        return tuple(prompt.name for prompt in self.prompts)

    def add(self, path: Path) -> tuple[str, ...]:
        """Add the classes of a file of prompts; return their names.

        Raises:
            BundleError: the file cannot be used, or has a class that there is already.
        """
        added = read_prompts(path)
        width, longest = self._config.width, self._config.prompt_size
        for prompt in added:
            tokens, own = prompt.tokens.shape
            if own != width:
                raise BundleError(f'{path}: the class {prompt.name!r} is {own} wide and the model '
                                  f'{width}; it was tuned for another one')
            if tokens > longest:
                raise BundleError(
                    f'{path}: the class {prompt.name!r} has {tokens} tokens and the graphs of '
                    f'{self._bundle.folder} take {longest}; tune it with fewer')
        check_names([*self.names, *(prompt.name for prompt in added)], str(path))
        self._refuse_aliases(added, path)
        self.prompts = (*self.prompts, *added)
        self._matcher = LabelMatcher(self.names, self._bundle.aliases)
        return tuple(prompt.name for prompt in added)

    def _refuse_aliases(self, added: Sequence[ClassPrompt], path: Path) -> None:
        """Refuse classes that would take words over which mean other classes so far."""
        aliases = {plain(word): labels for word, labels in (self._bundle.aliases or {}).items()}
        for prompt in added:
            if plain(prompt.name) in aliases:
                raise BundleError(
                    f'{path}: the class {prompt.name!r} would take over a word that stands for '
                    f'{", ".join(aliases[plain(prompt.name)])} in the aliases of '
                    f'{self._bundle.folder}; rename the class, or take the alias out')

    def match(self, text: str) -> LabelMatch:
        """Return the numbers of the classes that a text names.

        Raises:
            PromptError: a part of it names none, and might be a danger that nobody would look
                for; the message lists the classes that there are.
        """
        match = self._matcher.match(text)
        if match.rest:
            raise PromptError(
                f'the model has no class {match.rest[:80]!r}; it knows {", ".join(self.names)}. '
                'Use these names, or add the class from a file of prompts')
        return match

    def describe(self, text: str) -> str:
        """Say which classes a text stands for, unless it names them itself."""
        match = self.match(text)
        if self._matcher.is_plain(match):
            return ''
        return f'{text[:60]!r} stands for {", ".join(self.names[i] for i in match.labels)}'

    def feeds(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the decoder's inputs for some classes, in this order.

        The same classes get the same arrays, so that an engine need not copy them again. Classes
        with fewer tokens than the longest are padded.

        Returns:
            `tokens` float32 [n, P, C], `dense` float32 [n, C], `bias` float32 [n, P].
        """
        key = tuple(numbers)
        if key not in self._feeds:
            self._feeds[key] = self._stack(key)
            while len(self._feeds) > _CHOICES:
                self._feeds.popitem(last=False)
        self._feeds.move_to_end(key)
        return self._feeds[key]

    def _stack(self, numbers: tuple[int, ...]) -> dict[str, np.ndarray]:
        longest, width = self._config.prompt_size, self._config.width
        tokens = np.zeros((len(numbers), longest, width), np.float32)
        bias = np.full((len(numbers), longest), _HIDDEN, np.float32)
        for row, number in enumerate(numbers):
            own = self.prompts[number].tokens
            tokens[row, :len(own)] = own
            bias[row, :len(own)] = 0
        dense = np.stack([self.prompts[number].dense for number in numbers])
        return {'tokens': read_only(tokens), 'dense': read_only(dense), 'bias': read_only(bias)}


def _read_bundle(bundle: Bundle, config: FpSegConfig) -> tuple[ClassPrompt, ...]:
    """Read the classes out of a bundle's weights."""
    path = bundle.folder / WEIGHTS
    try:
        with safe_open(path, 'numpy') as file:
            tokens = file.get_tensor('prompt_encoder.prompt_embeddings').astype(np.float32)
            dense = file.get_tensor('prompt_encoder.no_mask_embed.weight').astype(np.float32)[0]
    except (OSError, SafetensorError) as error:
        raise BundleError(f'{path} holds no FPSeg classes ({error}); import the bundle '
                          'again') from error
    if tokens.shape != (len(config.class_names), config.prompt_size, config.width):
        raise BundleError(f'{path} holds classes of the shape {tokens.shape}, not those of the '
                          'manifest; import the bundle again')
    return tuple(ClassPrompt(name, entry, dense)
                 for name, entry in zip(config.class_names, tokens, strict=True))
