# SPDX-License-Identifier: Apache-2.0
"""Segformer: a fixed list of labels, to which prompts are matched.

The image code holds the logits of all labels, so a new prompt costs nothing on a frame. A prompt
is compared as words: with the labels, with the aliases of the bundle, and at last by meaning if
the bundle has a text tower. One that has a part which stands for nothing is refused by name: it
might be a danger that is then not looked for. The probability of
safe ground is the sum over the labels of the positive prompts; all other labels count as unsafe,
also those that no prompt names and those that a negative prompt names as well.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from blabberseg_ros.backends.text import TextBackend
from blabberseg_ros.backends.values import ImageCode, LabelMap, PromptCode, PromptReading, Query
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.errors import NotFiniteError, PromptError
from blabberseg_ros.heatmap import positive_probability
from blabberseg_ros.labels import LabelMatcher
from blabberseg_ros.models.segformer_config import SegformerConfig
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.resampling import blur_and_resize_matrices, read_only

_LABELS = 'labels'


class SegformerBackend(TextBackend):
    """Segformer on any engine, one graph a stage."""

    family = 'segformer'
    # Labels are words; a sentence around them would hide them.
    reads_template = False
    rows_are_labels = True

    def __init__(self, bundle: Bundle, kind: EngineKind) -> None:
        """Make the engines and index the labels.

        Raises:
            BundleError: the labels or the aliases are not right.
        """
        self.config = SegformerConfig.from_dict(bundle.manifest.architecture)
        super().__init__(bundle, kind)
        self._matcher = LabelMatcher(self.config.labels, bundle.aliases)

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the names of the stages; a text tower is optional."""
        text = ('text_encoder',) if self.config.reads_text else ()
        return ('image_encoder', 'decoder', 'fusion', 'labels', *text)

    def rows(self, texts: Sequence[str]) -> int:
        """Return the number of labels; no prompt changes it."""
        return len(self.config.labels)

    def example_prompts(self, rows: int | None = None) -> PromptSet:
        """Return every second label as safe: any model of the family knows its own labels."""
        return PromptSet(self.config.labels[::2], self.config.labels[1::2])

    def read_prompt(self, text: str) -> PromptReading:
        """Say how a text is read, and refuse it if a part of it cannot stand for a label.

        Raises:
            PromptError: a part is no label and no alias, and there is no text tower.
        """
        rest = self._matcher.match(text).rest
        if not rest:
            return PromptReading(text, text)
        if self.config.reads_text:
            return replace(super().read_prompt(rest), text=text)
        raise PromptError(f'{rest[:80]!r} stands for none of the labels of '
                          f'{self.bundle.manifest.name}, which knows no other words: '
                          f'{self._known_words()}. Use these, or add an alias and write the '
                          'bundle again with `blabberseg export --aliases`')

    def encode_prompts(self, texts: Sequence[str]) -> list[PromptCode]:
        """Match texts to labels; what is neither label nor alias goes by its meaning.

        Returns:
            Codes with `labels`, float32 [L]: 1 for each label that the text stands for.
        """
        matches = [self._matcher.match(text) for text in texts]
        nearest = iter(self._nearest([match.rest for match in matches if match.rest]))
        found = [(*match.labels, *([next(nearest)] if match.rest else [])) for match in matches]
        return [PromptCode(((_LABELS, self._one_hot(labels)),)) for labels in found]

    def describe_match(self, text: str, code: PromptCode) -> str:
        """Say which labels a text stands for, unless it names them itself."""
        match = self._matcher.match(text)
        if match.labels and self._matcher.is_plain(match):
            return ''
        names = ', '.join(self.config.labels[index] for index in np.flatnonzero(code[_LABELS]))
        if not match.labels:
            return f'{text[:80]!r} is read as {names}, by meaning'
        by_meaning = f' ({match.rest[:80]} by meaning)' if match.rest else ''
        return f'{text[:80]!r} is read as {names}{by_meaning}'

    def decode(self, image: ImageCode, prompts: Sequence[PromptCode]) -> Any:
        """Return the logits of all labels, [L, S, S]; no prompt changes them."""
        return self.engine('decoder').infer(self.code_feeds(image, prompts))['logits']

    def decode_all(self, image: ImageCode, prompts: Sequence[PromptCode], query: Query) -> Any:
        """Decode once, however many prompts there are."""
        return self.decode(image, prompts)

    def code_feeds(self, image: ImageCode, prompts: Sequence[PromptCode]) -> dict[str, Any]:
        """Return the image code alone."""
        return {'code': image}

    def weights(self, prompts: Sequence[PromptCode],
                is_positive: tuple[bool, ...]) -> np.ndarray:
        """Return 1 for each label that positive prompts alone stand for, float32 [L]."""
        return _label_weights(tuple(prompt[_LABELS].tobytes() for prompt in prompts), is_positive)

    def reference_probability(self, logits: np.ndarray, prompts: Sequence[PromptCode],
                              is_positive: tuple[bool, ...]) -> np.ndarray:
        """Return the sum of the softmax over the safe labels, float32 [S, S]."""
        return positive_probability(logits, self.weights(prompts, is_positive) > 0)

    def label_map(self, image: ImageCode, size: tuple[int, int]) -> LabelMap:
        """Return the likeliest label of each pixel; the logits are resized, on the device."""
        if self.kind.device == 'cpu':
            # A tenth of the time of two matrix products, whose matrices are nearly empty.
            return LabelMap(resized_labels(self.to_host(image), size), self.config.labels)
        rows, cols = blur_and_resize_matrices(self.config.logits_side, *size, 1)
        engine = self.engine('labels')
        outputs = engine.infer({'code': image, 'rows': rows, 'cols': cols})
        return LabelMap(engine.to_host(outputs['labels'])[0], self.config.labels)

    def _nearest(self, texts: Sequence[str]) -> list[int]:
        """Return the label nearest in meaning to each text.

        Raises:
            PromptError: none is near.
        """
        if not texts:
            return []
        engine = self.engine('text_encoder')
        similarity, = engine.to_host(engine.infer({'tokens': self.tokens(texts)})['similarity'])
        if not np.isfinite(similarity).all():
            raise NotFiniteError(
                'the text tower answered NaN or infinity; the prompts cannot be used. Check the '
                'bundle with `blabberseg doctor`, or use fp32')
        for text, row in zip(texts, similarity, strict=True):
            if row.max() < self.config.min_similarity:
                raise PromptError(
                    f'the prompt {text[:80]!r} stands for none of the labels: the nearest, '
                    f'{self.config.labels[row.argmax()]}, has a similarity of {row.max():.2f}, '
                    f'and {self.config.min_similarity:g} is needed. The words known are '
                    f'{self._known_words()}')
        return [int(row.argmax()) for row in similarity]

    def _known_words(self) -> str:
        words = (*self.config.labels, *sorted(self.bundle.aliases or {}))
        return ', '.join(words[:40]) + (f' and {len(words) - 40} more' if len(words) > 40 else '')

    def _one_hot(self, labels: tuple[int, ...]) -> np.ndarray:
        code = np.zeros(len(self.config.labels), np.float32)
        code[list(labels)] = 1
        return code


def resized_labels(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the likeliest labels of logits that are resized on the host.

    Args:
        logits: float32 [L, s, s].
        size: (height, width) of the result.

    Returns:
        uint8 [H, W].
    """
    import cv2

    full = cv2.resize(np.ascontiguousarray(logits.transpose(1, 2, 0)), size[::-1])
    return full.argmax(-1).astype(np.uint8)


@lru_cache(maxsize=64)
def _label_weights(codes: tuple[bytes, ...], is_positive: tuple[bool, ...]) -> np.ndarray:
    """Return the labels of the positive prompts less those of the negative ones.

    NaN, from a damaged store, stays NaN: the answer is then refused, not guessed.
    """
    rows = np.stack([np.frombuffer(code, np.float32) for code in codes])
    positive = np.array(is_positive)
    safe = rows[positive].max(0) * (1 - rows[~positive].max(0))
    return read_only(np.where(np.isnan(rows).any(0), np.float32(np.nan), safe))


BACKEND = SegformerBackend
