# SPDX-License-Identifier: Apache-2.0
"""The words of training, and those that it must never see."""

import random

from blabberseg_ros.prompts import DEFAULT_NEGATIVE, DEFAULT_POSITIVE
from blabberseg_ros.sim.classes import CLASSES
from blabberseg_ros.text import words_of
from blabberseg_ros.training.lexicon import (
    DEFAULT_COVERAGE,
    SHARED_NOUNS,
    TERMS,
    is_held_out,
    training_texts,
    training_vocabulary,
)
from blabberseg_ros.training.prompt_sampler import sample_phrase, sample_prompts


def test_every_class_has_terms_and_no_other() -> None:
    assert set(TERMS) == set(CLASSES.values())
    assert {name for names in SHARED_NOUNS.values() for name in names} <= set(TERMS)


def test_default_prompts_are_covered_in_their_order() -> None:
    assert tuple(DEFAULT_COVERAGE) == DEFAULT_NEGATIVE + DEFAULT_POSITIVE
    assert DEFAULT_COVERAGE[DEFAULT_NEGATIVE[4]] == ('person',)
    assert set(DEFAULT_COVERAGE[DEFAULT_POSITIVE[2]]) == {'paved', 'soil'}


def test_each_held_out_phrase_is_new_but_made_of_known_words() -> None:
    known = set(training_vocabulary())
    for terms in TERMS.values():
        assert len(set(terms.held_out)) == 3
        for phrase in terms.held_out:
            assert phrase not in training_texts()
            assert set(words_of(phrase)) <= known, phrase


def test_held_out_phrases_are_recognised_alone_and_in_lists() -> None:
    phrase = TERMS['water'].held_out[0]
    assert is_held_out(phrase)
    assert is_held_out(f'pond, {phrase}')
    assert not is_held_out('pond, lake')


def test_training_never_shows_a_held_out_phrase_and_only_words_of_the_vocabulary() -> None:
    rng = random.Random(0)
    held_out = [phrase for terms in TERMS.values() for phrase in terms.held_out]
    known = set(training_vocabulary())
    for _ in range(300):
        for text in sample_prompts(rng).texts:
            assert not any(phrase in text for phrase in held_out)
            assert set(words_of(text.lower())) <= known


def test_a_held_out_phrase_that_comes_up_by_chance_is_drawn_again(monkeypatch) -> None:
    drawn = iter([TERMS['tree'].held_out[1], f'oak, {TERMS["tree"].held_out[0]}', 'oak'])
    monkeypatch.setattr(
        'blabberseg_ros.training.prompt_sampler._compose',
        lambda rng, name, most_nouns: next(drawn))
    assert sample_phrase(random.Random(0), 'tree') == 'oak'
