# SPDX-License-Identifier: Apache-2.0
"""Prompt sets: what is taken, what is refused, and by which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blabberseg_ros.errors import PromptError
from blabberseg_ros.prompts import MAX_PROMPTS, PromptSet, default_prompts


def test_default_is_doveseis():
    prompts = default_prompts()
    assert (len(prompts.negative), len(prompts.positive)) == (10, 3)
    assert prompts.texts[0] == ('aerial view, drone footage photo of building, house, '
                                'apartment-building, warehouse, shed, garage, shade, shadows, '
                                'low resolution')
    assert prompts.is_positive == (False,) * 10 + (True,) * 3


def test_wire_format_splits_on_semicolons_only():
    prompts = PromptSet.from_wire('grass, lawn;;sand', 'roof; ;water;', 'photo of {}')
    assert prompts.texts == ('photo of roof', 'photo of water', 'photo of grass, lawn',
                             'photo of sand')


@pytest.mark.parametrize(('positive', 'negative', 'word'), [
    ('', 'roof', 'positive'), ('grass', '', 'negative'), (';;', 'roof', 'positive'),
    (' ; ', 'roof', 'positive'), ('grass', ';' * 10_000, 'negative')])
def test_an_empty_side_is_refused_by_name(positive, negative, word):
    with pytest.raises(PromptError, match=f'no {word} prompt'):
        PromptSet.from_wire(positive, negative, '{}')


@pytest.mark.parametrize('template', [
    'no placeholder', '{} and {}', '{name}', '{0}', '', '{', '{{}} {}'])
def test_a_template_without_exactly_one_placeholder_is_refused(template):
    with pytest.raises(PromptError, match='template'):
        PromptSet(('grass',), ('roof',), template)


@pytest.mark.parametrize('template', ['{} {name}', '{} {0.__class__}', '} {} {', '{}%s'])
def test_nothing_but_the_placeholder_is_formatted(template):
    prompts = PromptSet(('grass',), ('roof',), template)
    assert prompts.texts[1] == template.replace('{}', 'grass')


@pytest.mark.parametrize('text', [
    '<start_of_text>', 'a <END_OF_TEXT> b', '&lt;end_of_text&gt;', '&amp;lt;end_of_text&amp;gt;'])
def test_control_strings_are_refused_by_name(text):
    with pytest.raises(PromptError, match='_of_text>'):
        PromptSet(('grass', text), ('roof',))


def test_too_many_prompts_are_refused():
    PromptSet(('grass',) * (MAX_PROMPTS - 1), ('roof',))
    with pytest.raises(PromptError, match=str(MAX_PROMPTS + 1)):
        PromptSet(('grass',) * MAX_PROMPTS, ('roof',))


@given(st.text(), st.text(), st.text())
def test_any_text_gives_a_set_or_a_prompt_error(positive, negative, template):
    try:
        prompts = PromptSet.from_wire(positive, negative, template)
    except PromptError:
        return
    assert len(prompts.texts) == len(prompts.is_positive) == len(prompts)


def test_yaml_round_trip(tmp_path):
    path = tmp_path / 'prompts.yaml'
    path.write_text('positive: [grass, "a; b"]\nnegative: [roof]\ntemplate: "photo of {}"\n')
    assert PromptSet.from_yaml(path) == PromptSet(('grass', 'a; b'), ('roof',), 'photo of {}')


@pytest.mark.parametrize('content', [
    'positive: grass\nnegative: [roof]', 'positive: [1]\nnegative: [roof]', '[]', 'a: [b',
    'positive: [grass]\nnegative: [roof]\nunknown: 1',
    'positive: [g]\nnegative: [r]\ntemplate: 3'])
def test_a_yaml_file_of_another_kind_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / 'prompts.yaml'
    path.write_text(content)
    with pytest.raises(PromptError, match=r'prompts\.yaml'):
        PromptSet.from_yaml(path)


def test_a_missing_yaml_file_is_named(tmp_path):
    with pytest.raises(PromptError, match=r'absent\.yaml'):
        PromptSet.from_yaml(tmp_path / 'absent.yaml')
