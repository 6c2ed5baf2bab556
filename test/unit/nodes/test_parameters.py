# SPDX-License-Identifier: Apache-2.0
"""The table of parameters, and what is made from it."""

import math

import pytest
import yaml
from rclpy.parameter import Parameter

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.nodes.parameters import (
    HEATMAP_TABLE,
    NODE_NAME,
    HeatmapParameters,
    markdown_table,
)
from blabberseg_ros.prompts import default_prompts

DEFAULTS = HeatmapParameters()


def test_defaults_are_doveseis():
    assert DEFAULTS.img_topic == '/carla/flying_sensor/rgb_down/image'
    assert DEFAULTS.prompts == default_prompts()
    assert DEFAULTS.fusion == FusionOptions()
    assert DEFAULTS.min_period_s == 0.0


@pytest.mark.parametrize(('change', 'expected'), [
    ({'max_rate_hz': 5}, 5.0), ({'safety_threshold': 1}, 1.0), ({'blur_kernel_size': 1}, 1),
    ({'stream': 'off'}, 'off'), ({'positive_prompts': ['a', 'b']}, ('a', 'b')),
    ({'bundle': '/some/where'}, '/some/where'),
])
def test_good_values_are_taken(change, expected):
    changed = HEATMAP_TABLE.changed(DEFAULTS, change)
    value = getattr(changed, next(iter(change)))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize('change', [
    {'safety_threshold': -0.1}, {'safety_threshold': 1.1}, {'safety_threshold': math.nan},
    {'safety_threshold': '0.5'}, {'safety_threshold': True}, {'blur_kernel_size': 0},
    {'blur_kernel_size': 128}, {'blur_kernel_size': 3.0}, {'stream': 'sometimes'},
    {'on_failure': ''}, {'stamp': 1}, {'max_rate_hz': math.inf}, {'autostart': 'false'},
    {'positive_prompts': []}, {'positive_prompts': 'grass'}, {'positive_prompts': [1]},
    {'negative_prompts': [' ']}, {'prompt_template': 'no place'}, {'bundle': ' '},
    {'img_topic': ''}, {'backend': 'unknown'}, {'request_timeout_s': None},
])
def test_bad_values_are_refused_by_name(change):
    with pytest.raises(ParameterError):
        HEATMAP_TABLE.changed(DEFAULTS, change)


def test_refused_request_keeps_all_old_values():
    values, result = HEATMAP_TABLE.apply(
        DEFAULTS, [Parameter('safety_threshold', value=0.5), Parameter('stream', value='no')])
    assert values is DEFAULTS
    assert not result.successful
    assert 'stream' in result.reason
    assert 'auto, always, off' in result.reason


def test_foreign_parameters_are_left_to_others():
    values, result = HEATMAP_TABLE.apply(DEFAULTS, [Parameter('use_sim_time', value=True)])
    assert result.successful
    assert values == DEFAULTS


@pytest.mark.parametrize(('unconfigured', 'successful'), [(True, True), (False, False)])
def test_some_change_only_while_unconfigured(unconfigured, successful):
    values, result = HEATMAP_TABLE.apply(
        DEFAULTS, [Parameter('bundle', value='other')], unconfigured)
    assert result.successful is successful
    assert values.bundle == ('other' if successful else 'auto')


def test_every_parameter_is_described():
    for name, bounds in HEATMAP_TABLE.bounds.items():
        assert bounds.description.endswith('.'), name
        assert (bounds.minimum is None) == (bounds.maximum is None), name


def test_markdown_table_has_a_row_for_each():
    rows = markdown_table().splitlines()
    assert len(rows) == len(HEATMAP_TABLE.bounds) + 2
    assert {row.count('|') - row.count(r'\|') for row in rows} == {7}
    for name, row in zip(HEATMAP_TABLE.bounds, rows[2:], strict=True):
        assert row.startswith(f'| `{name}` |')


def test_yaml_is_the_defaults():
    text = HEATMAP_TABLE.yaml(NODE_NAME)
    values = yaml.safe_load(text)[NODE_NAME]['ros__parameters']
    assert list(values) == list(HEATMAP_TABLE.bounds)
    assert HEATMAP_TABLE.changed(DEFAULTS, values) == DEFAULTS
    assert all(len(line) <= 99 for line in text.splitlines())
