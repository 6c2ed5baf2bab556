# SPDX-License-Identifier: Apache-2.0
"""Random prompt sets and their ground truth."""

import random

import numpy as np
import pytest

from blabberseg_ros.prompts import default_prompts
from blabberseg_ros.text import Tokenizer
from blabberseg_ros.training.prompt_batch import PromptTokens
from blabberseg_ros.training.prompt_sampler import (
    CLASS_COUNT,
    CLASS_IDS,
    MAX_PROMPTS,
    SAFE_NAMES,
    coverage,
    sample_prompts,
)


@pytest.fixture(scope='module')
def draws():
    rng = random.Random(5)
    return [sample_prompts(rng) for _ in range(200)]


def test_coverage_marks_the_named_classes() -> None:
    covers = coverage([('grass',), ('soil', 'paved')])
    assert covers.shape == (2, CLASS_COUNT)
    assert np.flatnonzero(covers[0]).tolist() == [CLASS_IDS['grass']]
    assert np.flatnonzero(covers[1]).tolist() == [CLASS_IDS['soil'], CLASS_IDS['paved']]


def test_draws_are_well_formed(draws) -> None:
    for draw in draws:
        assert 2 <= len(draw.texts) <= MAX_PROMPTS
        assert draw.covers.shape == (len(draw.texts), CLASS_COUNT)
        assert draw.is_positive.shape == (len(draw.texts),)
        assert draw.covers.any(1).all()
        assert not draw.covers[:, 0].any()


def test_the_default_set_itself_is_drawn_with_its_own_polarity(draws) -> None:
    wanted = default_prompts()
    same = [draw for draw in draws if draw.texts == wanted.texts]
    assert len(same) > 10
    assert any(tuple(draw.is_positive) == wanted.is_positive for draw in same)
    assert any(tuple(draw.is_positive) != wanted.is_positive for draw in same)


def test_a_text_stands_for_the_same_classes_wherever_it_comes_up(draws) -> None:
    seen: dict[str, bytes] = {}
    for draw in draws:
        for text, covers in zip(draw.texts, draw.covers, strict=True):
            assert seen.setdefault(text, covers.tobytes()) == covers.tobytes(), text


def test_safe_classes_are_those_of_the_world() -> None:
    assert set(SAFE_NAMES) == {'grass', 'soil', 'paved', 'field'}


def test_the_same_seed_draws_the_same() -> None:
    first, second = (sample_prompts(random.Random('7 3')) for _ in range(2))
    assert first.texts == second.texts


def test_quick_tokens_equal_those_of_the_tokenizer(draws, random_bundle) -> None:
    tokenizer = Tokenizer.from_file(random_bundle / 'tokenizer.json')
    texts = sorted({text for draw in draws for text in draw.texts})
    expected = np.stack([tokenizer.encode(text).ids for text in texts])
    np.testing.assert_array_equal(PromptTokens(tokenizer)(texts), expected)
    assert (expected[:, -1] == 0).all()  # none was cut
