# SPDX-License-Identifier: Apache-2.0
"""The prompt files for published label sets: every word of them is known there."""

from pathlib import Path

import pytest

from blabberseg_ros.fpseg_tools.classes import cityscapes_classes
from blabberseg_ros.labels import LabelMatcher
from blabberseg_ros.models.fpseg_config import CITYSCAPES_CLASSES
from blabberseg_ros.prompts import PromptSet, default_prompts

CITYSCAPES19 = cityscapes_classes().exclusive
# The names in the configurations of Hugging Face's Segformers, in their order.
ADE20K = tuple((Path(__file__).parent / 'ade20k_labels.txt').read_text('utf-8').splitlines())
FILES = {'cityscapes': CITYSCAPES_CLASSES, 'cityscapes19': CITYSCAPES19, 'ade20k': ADE20K}


def test_the_label_sets_are_whole():
    assert [len(names) for names in FILES.values()] == [33, 19, 150]
    assert len(set(ADE20K)) == 150


@pytest.mark.parametrize('name', FILES)
def test_prompts_name_labels_of_their_set(root_dir, name):
    prompts = PromptSet.from_yaml(root_dir / 'config' / f'prompts_{name}.yaml')
    matcher = LabelMatcher(FILES[name])
    sides = []
    for texts in (prompts.positive, prompts.negative):
        matches = [matcher.match(text) for text in texts]
        assert all(match.labels and not match.rest for match in matches), matches
        assert all(matcher.is_plain(match) for match in matches)
        named = [FILES[name][index] for match in matches for index in match.labels]
        assert len(set(named)) == len(named)
        sides.append(set(named))
    assert not sides[0] & sides[1]


def test_of_cityscapes_nothing_is_left_out(root_dir):
    """FPSeg looks for no class that is not asked for."""
    classes = cityscapes_classes()
    prompts = PromptSet.from_yaml(root_dir / 'config' / 'prompts_cityscapes.yaml')
    asked = [number for text in prompts.bare_texts for number in classes.ids_of(text)]
    assert sorted(asked) == list(range(7, 34))
    prompts = PromptSet.from_yaml(root_dir / 'config' / 'prompts_cityscapes19.yaml')
    assert sorted(', '.join(prompts.bare_texts).split(', ')) == sorted(CITYSCAPES19)


@pytest.mark.parametrize('name', FILES)
def test_doveseis_prompts_are_no_use_there(name):
    """Which is why these files are needed."""
    matcher = LabelMatcher(FILES[name])
    assert any(matcher.match(text).rest for text in default_prompts().bare_texts)
