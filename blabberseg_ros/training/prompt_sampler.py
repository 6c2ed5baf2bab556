# SPDX-License-Identifier: Apache-2.0
"""Random prompt sets for training, with the classes that each prompt stands for."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blabberseg_ros.prompts import DEFAULT_TEMPLATE
from blabberseg_ros.sim.classes import CLASSES, SAFE
from blabberseg_ros.training.lexicon import (
    DEFAULT_COVERAGE,
    PLACEHOLDER,
    SHARED_NOUNS,
    TERMS,
    TRAINING_TEMPLATES,
    is_held_out,
)

CLASS_IDS: dict[str, int] = {name: index for index, name in CLASSES.items() if index != 0}
CLASS_COUNT = max(CLASSES) + 1
SAFE_NAMES = tuple(name for name, index in CLASS_IDS.items() if index in SAFE)
MAX_PROMPTS = 13
_MIXED_NOUNS = 12

_LINKS = ('and', 'or', 'with', 'of', 'in', 'on', 'of a', 'of the', 'in a', 'with a')
_FRAMES = ('a {}', 'an {}', 'the {}', 'some {}', '{} from above')


@dataclass(frozen=True)
class PromptDraw:
    """A prompt set with its ground truth.

    Attributes:
        texts: sentences with the template filled in, at most `MAX_PROMPTS`.
        covers: bool [P, CLASS_COUNT]; whether a prompt stands for a class. Column 0 is false.
        is_positive: bool [P].
    """

    texts: tuple[str, ...]
    covers: np.ndarray
    is_positive: np.ndarray


def coverage(names: Sequence[Sequence[str]]) -> np.ndarray:
    """Return bool [P, CLASS_COUNT] from the class names of each prompt."""
    covers = np.zeros((len(names), CLASS_COUNT), bool)
    for row, prompt_names in zip(covers, names, strict=True):
        row[[CLASS_IDS[name] for name in prompt_names]] = True
    return covers


def sample_phrase(rng: random.Random, name: str, most_nouns: int = 5) -> str:
    """Return a random phrase for a class, never one that is held out.

    Args:
        rng: source of chance.
        name: of the class.
        most_nouns: in a list of them, at least 2.
    """
    while True:
        phrase = _compose(rng, name, most_nouns)
        if not is_held_out(phrase):
            return phrase


def sample_prompts(rng: random.Random) -> PromptDraw:
    """Return a random prompt set: DOVESEI's, one prompt a class, or mixtures of classes."""
    kind = rng.random()
    if kind < 0.35:
        return _default_like(rng)
    if kind < 0.75:
        return _one_per_class(rng)
    return _mixtures(rng)


def _compose(rng: random.Random, name: str, most_nouns: int) -> str:
    terms = TERMS[name]
    kind = rng.random()
    if kind < 0.15:
        return terms.canonical
    if kind < 0.55:
        return _noun(rng, name, 0.4)
    if kind < 0.8:
        count = rng.randint(2, most_nouns)
        return ', '.join(_noun(rng, name, 0.2) for _ in range(count))
    if kind < 0.9:
        return f'{_noun(rng, name, 0.3)} {rng.choice(_LINKS)} {_noun(rng, name, 0.3)}'
    return rng.choice(_FRAMES).replace(PLACEHOLDER, _noun(rng, name, 0.4))


def _noun(rng: random.Random, name: str, adjective_share: float) -> str:
    terms = TERMS[name]
    noun = rng.choice(terms.nouns)
    if rng.random() < adjective_share:
        noun = f'{rng.choice(terms.adjectives)} {noun}'
    return noun


def _default_like(rng: random.Random) -> PromptDraw:
    """DOVESEI's thirteen prompts, at times shuffled, thinned out, or with another template."""
    prompts = list(DEFAULT_COVERAGE)
    names = list(DEFAULT_COVERAGE.values())
    if rng.random() < 0.3:
        prompts = [_shuffled(rng, prompt) for prompt in prompts]
    template = DEFAULT_TEMPLATE if rng.random() < 0.7 else _template(rng)
    safe = SAFE_NAMES if rng.random() < 0.7 else _random_names(rng)
    return _draw(prompts, names, safe, template)


def _one_per_class(rng: random.Random) -> PromptDraw:
    """One prompt for each class, a few classes twice, at times some not at all."""
    names = list(TERMS)
    if rng.random() < 0.3:
        names = [name for name in names if rng.random() < 0.8] or names
    names += rng.choices(list(TERMS), k=rng.randint(0, 2))
    prompts = [sample_phrase(rng, name) for name in names]
    safe = SAFE_NAMES if rng.random() < 0.4 else _random_names(rng)
    return _draw(prompts, [(name,) for name in names], safe, _template(rng))


def _mixtures(rng: random.Random) -> PromptDraw:
    """Split the classes into a few groups and write each group as one list."""
    order = rng.sample(list(TERMS), len(TERMS))
    groups = rng.randint(2, 7)
    prompts, names = [], []
    for group in range(groups):
        members = tuple(order[group::groups])
        # Longer lists would not fit the text tower.
        most_nouns = max(min(5, _MIXED_NOUNS // len(members)), 2)
        prompts.append(', '.join(sample_phrase(rng, name, most_nouns) for name in members))
        names.append(members)
    if rng.random() < 0.5:
        shared = rng.choice(list(SHARED_NOUNS))
        prompts.append(shared)
        names.append(SHARED_NOUNS[shared])
    return _draw(prompts, names, _random_names(rng), _template(rng))


def _draw(prompts: Sequence[str], names: Sequence[Sequence[str]], safe: Sequence[str],
          template: str) -> PromptDraw:
    """Fill the template in; a prompt is positive when most of its classes are safe."""
    texts = tuple(template.replace(PLACEHOLDER, prompt) for prompt in prompts)
    positive = [2 * sum(name in safe for name in group) > len(group) for group in names]
    return PromptDraw(texts, coverage(names), np.array(positive))


def _shuffled(rng: random.Random, prompt: str) -> str:
    items = prompt.split(', ')
    return ', '.join(rng.sample(items, rng.randint((len(items) + 1) // 2, len(items))))


def _random_names(rng: random.Random) -> tuple[str, ...]:
    return tuple(name for name in TERMS if rng.random() < 0.5)


def _template(rng: random.Random) -> str:
    return rng.choice(TRAINING_TEMPLATES)
