# SPDX-License-Identifier: Apache-2.0
"""Changing the prompts of a live node, by service and by parameter."""

import numpy as np
import pytest
from harness import NAME, mask_of, scene, until
from live_nodes import READING
from rcl_interfaces.srv import DescribeParameters

from blabberseg_ros.backends.registry import FAMILIES
from blabberseg_ros.nodes.parameters import HEATMAP_TABLE
from blabberseg_ros.prompts import DEFAULT_NEGATIVE, DEFAULT_POSITIVE, DEFAULT_TEMPLATE, PromptSet


@pytest.fixture(autouse=True)
def _default_prompts(live):
    yield
    assert live.set_prompts(list(DEFAULT_POSITIVE), list(DEFAULT_NEGATIVE),
                            DEFAULT_TEMPLATE).success


def in_use(live):
    prompts = live.get_prompts()
    return PromptSet(tuple(prompts.positive), tuple(prompts.negative), prompts.prompt_template)


def test_defaults_are_doveseis(live):
    assert in_use(live) == PromptSet(DEFAULT_POSITIVE, DEFAULT_NEGATIVE, DEFAULT_TEMPLATE)
    assert live.get_prompts().since.sec > 0


def test_set_prompts_changes_the_answers(live, segmenter):
    before_ns = live.node.get_clock().now().nanoseconds
    response = live.set_prompts(['heather'], ['ice', 'snow'], 'drone photo of {}')
    assert response.success, response.message
    assert response.encode_ms > 0
    since_ns = response.since.sec * 10**9 + response.since.nanosec
    assert before_ns <= since_ns <= live.node.get_clock().now().nanoseconds
    expected = PromptSet(('heather',), ('ice', 'snow'), 'drone photo of {}')
    assert in_use(live) == expected
    assert live.get_prompts().since == response.since
    direct = segmenter.segment(scene(), expected)
    np.testing.assert_array_equal(mask_of(live.heatmap()), direct.mask)
    # The parameters follow.
    until(lambda: live.get_parameter('positive_prompts') == ['heather'])
    assert live.get_parameter('prompt_template') == 'drone photo of {}'


def test_empty_template_keeps_the_present_one(live):
    assert live.set_prompts(['reed'], ['wave']).success
    assert in_use(live).template == DEFAULT_TEMPLATE


def test_known_prompts_cost_no_encoding(live):
    assert live.set_prompts(['fern'], ['pond']).success
    before = live.counters()
    assert live.set_prompts(['fern'], ['pond']).success
    assert live.counters()['text_encoder_runs'] == before['text_encoder_runs']


@pytest.mark.parametrize('family', READING, scope='session')
def test_a_long_prompt_is_cut_and_named(live):
    long = 'meadow ' * 100
    response = live.set_prompts([long.strip(), 'lawn'], ['rock'])
    assert response.success
    assert list(response.truncated) == [long.strip()]
    assert 'cut at character' in response.message


@pytest.mark.parametrize(
    'family', [family for family in FAMILIES if family not in READING], scope='session')
def test_a_name_without_a_class_is_refused_with_the_list(live):
    before = live.get_prompts()
    response = live.set_prompts(['grass', 'moon dust'], ['water'])
    assert response.success is False
    assert "'moon dust'" in response.message
    assert 'building, tree, water' in response.message
    assert live.get_prompts() == before


@pytest.mark.parametrize(('positive', 'negative', 'template', 'reason'), [
    ([], ['water'], '', 'no positive prompt'),
    (['grass'], [], '', 'no negative prompt'),
    (['grass', '  '], ['water'], '', 'blank'),
    (['grass'], ['water'], 'no placeholder', '{}'),
    (['grass'], ['water'], '{} and {}', '{}'),
    (['<end_of_text>'], ['water'], '', 'control'),
    (['grass'], [f'thing {index}' for index in range(256)], '', '256'),
])
def test_bad_prompts_are_refused_with_a_reason(live, positive, negative, template, reason):
    before = live.get_prompts()
    response = live.set_prompts(positive, negative, template)
    assert response.success is False
    assert reason in response.message
    assert live.get_prompts() == before


def test_three_parameters_change_together(live):
    result = live.set_parameters(
        positive_prompts=['salt flat'], negative_prompts=['gorge', 'reef'],
        prompt_template='view of {}')
    assert result.successful, result.reason
    until(lambda: in_use(live) == PromptSet(('salt flat',), ('gorge', 'reef'), 'view of {}'))


def test_a_bad_one_of_three_changes_none(live):
    before = in_use(live)
    result = live.set_parameters(positive_prompts=['dune'], prompt_template='{} {}')
    assert not result.successful
    assert '{}' in result.reason
    assert in_use(live) == before
    assert live.get_parameter('positive_prompts') == list(before.positive)


def test_whichever_comes_last_wins(live):
    assert live.set_parameters(positive_prompts=['first']).successful
    assert live.set_prompts(['second'], ['other']).success
    # The parameters show it by the time of the answer, so that one of them can be changed.
    assert live.get_parameter('positive_prompts') == ['second']
    assert in_use(live).positive == ('second',)
    assert live.set_parameters(positive_prompts=['third']).successful
    until(lambda: in_use(live) == PromptSet(('third',), ('other',), DEFAULT_TEMPLATE))
    until(lambda: live.get_parameter('positive_prompts') == ['third'])


def test_every_parameter_is_described(live):
    names = list(HEATMAP_TABLE.bounds)
    described = live.call(DescribeParameters, f'{NAME}/describe_parameters',
                          DescribeParameters.Request(names=names)).descriptors
    assert [item.name for item in described] == names
    for item in described:
        bounds = HEATMAP_TABLE.bounds[item.name]
        assert item.description == bounds.description
        assert item.read_only == (bounds.changeable == 'at start')
