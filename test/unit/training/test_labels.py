# SPDX-License-Identifier: Apache-2.0
"""Prompts as classes, for families that read no words."""

import pytest

from blabberseg_ros.errors import PromptError
from blabberseg_ros.labels import LabelMatcher
from blabberseg_ros.prompts import PromptSet, default_prompts
from blabberseg_ros.sim.classes import CLASSES, SAFE
from blabberseg_ros.training.evaluation import CLASS_IDS, class_prompts
from blabberseg_ros.training.labels import CLASS_NAMES, as_labels, label_aliases
from blabberseg_ros.training.lexicon import TERMS


def test_labels_are_the_classes_in_the_order_of_their_ids() -> None:
    assert [CLASS_IDS[name] for name in CLASS_NAMES] == list(range(1, len(CLASS_NAMES) + 1))


def test_the_default_prompts_are_the_classes_by_their_safety() -> None:
    labels = as_labels(default_prompts())
    assert {CLASS_IDS[name] for name in labels.positive} == set(SAFE)
    assert {CLASS_IDS[name] for name in labels.negative} == set(CLASSES) - set(SAFE)
    assert labels.template == '{}'


@pytest.mark.parametrize('name', TERMS)
def test_every_class_is_known_by_its_plain_name(name) -> None:
    labels = as_labels(class_prompts(name, TERMS[name].canonical, False))
    assert name in labels.negative
    assert set(labels.positive) | set(labels.negative) == set(CLASS_NAMES)


def test_what_is_both_is_negative_and_what_is_nothing_is_refused() -> None:
    assert as_labels(PromptSet(('park', 'field'), ('meadow',))).positive == ('field',)
    with pytest.raises(PromptError, match='zeppelin'):
        as_labels(PromptSet(('grass',), ('zeppelin',)))


def test_aliases_are_what_a_bundle_takes() -> None:
    matcher = LabelMatcher(CLASS_NAMES, label_aliases())
    assert [CLASS_NAMES[index] for index in matcher.match('Swimming pools').labels] == ['water']
    assert not set(label_aliases()) & set(CLASS_NAMES)
