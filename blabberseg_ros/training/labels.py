# SPDX-License-Identifier: Apache-2.0
"""The classes of the world as labels, for families that know no words. Needs no torch."""

from collections.abc import Sequence
from functools import lru_cache

from blabberseg_ros.errors import PromptError
from blabberseg_ros.labels import LabelMatcher
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.sim.classes import CLASSES
from blabberseg_ros.training.lexicon import DEFAULT_COVERAGE, PLACEHOLDER, SHARED_NOUNS, TERMS

# Label k is the class of id k + 1: the world has no pixel without a class.
CLASS_NAMES = tuple(CLASSES[index] for index in sorted(CLASSES) if index)


def label_aliases() -> dict[str, tuple[str, ...]]:
    """Return what people call the labels: each word or phrase with the labels that it stands for.

    These are the phrases that the families which read words are trained with, and DOVESEI's
    prompts. A label's own name is no alias.
    """
    found: dict[str, dict[str, None]] = {}
    for name, terms in TERMS.items():
        for phrase in (terms.canonical, *terms.nouns):
            found.setdefault(phrase, {})[name] = None
    for phrase, names in (*SHARED_NOUNS.items(), *DEFAULT_COVERAGE.items()):
        found.setdefault(phrase, {}).update(dict.fromkeys(names))
    return {phrase: tuple(names) for phrase, names in found.items() if phrase not in TERMS}


def as_labels(prompts: PromptSet) -> PromptSet:
    """Return the labels that a prompt set stands for; one of both kinds is negative.

    Raises:
        PromptError: a prompt is neither a label nor an alias, or nothing is left of one kind.
    """
    negative = _named(prompts.negative)
    positive = [name for name in _named(prompts.positive) if name not in negative]
    return PromptSet(tuple(positive), tuple(negative), PLACEHOLDER)


def _named(phrases: Sequence[str]) -> list[str]:
    matches = [_matcher().match(phrase) for phrase in phrases]
    for match in matches:
        if not match.labels:
            raise PromptError(f'{match.text!r} names no class of the world; use one of '
                              f'{", ".join(CLASS_NAMES)}')
    return [CLASS_NAMES[index] for index in dict.fromkeys(
        index for match in matches for index in match.labels)]


@lru_cache(maxsize=1)
def _matcher() -> LabelMatcher:
    return LabelMatcher(CLASS_NAMES, label_aliases())
