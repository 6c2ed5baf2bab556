# SPDX-License-Identifier: Apache-2.0
"""The question which prompt lies below, and the set that makes it unsafe."""

import numpy as np

from blabberseg_ros.demo.planner import Spot, Viewpoint
from blabberseg_ros.demo.prompt_switch import PromptSwitch
from blabberseg_ros.prompts import PromptSet

PROMPTS = PromptSet(('grass', 'field', 'car park'), ('roof', 'water'), 'photo of {}')
VIEW = Viewpoint(10.0, 20.0, 50.0, 0.6757)
SPOT = Spot(25.0, 10.0, 5.0)


def mask_with_spot(safe: bool) -> np.ndarray:
    """Return a mask that says so at the spot, and the opposite everywhere else."""
    mask = np.full((352, 352), 0 if safe else 255, np.uint8)
    per_m = VIEW.focal * 352 / VIEW.height_m
    column, row = round(176 + 15 * per_m), round(176 + 10 * per_m)
    mask[row - 18:row + 18, column - 18:column + 18] = 255 if safe else 0
    return mask


def test_each_positive_prompt_is_asked_for_alone():
    switch = PromptSwitch(PROMPTS, VIEW, SPOT)
    asked = []
    while (question := switch.question) is not None:
        assert switch.verdict is None
        asked.append(question)
        switch.answer(np.zeros((352, 352), np.uint8))
    assert [question.positive for question in asked] == [('grass',), ('field',), ('car park',)]
    assert asked[1].negative == ('roof', 'water', 'grass', 'car park')
    assert {question.template for question in asked} == {'photo of {}'}


def test_what_lies_at_the_spot_becomes_unsafe():
    switch = PromptSwitch(PROMPTS, VIEW, SPOT)
    for safe in (False, True, False):
        switch.answer(mask_with_spot(safe))
    assert switch.verdict == PromptSet(
        ('grass', 'car park'), ('roof', 'water', 'field'), 'photo of {}')


def test_answers_without_a_mask_count_for_nothing():
    switch = PromptSwitch(PROMPTS, VIEW, SPOT)
    for mask in (np.zeros((0, 0), np.uint8), mask_with_spot(True), np.zeros((0, 0), np.uint8)):
        switch.answer(mask)
    assert switch.verdict.negative[-1] == 'field'
