# SPDX-License-Identifier: Apache-2.0
"""What the launch file gives to the heatmap node and to DOVESEI's lander.

`launch` is not on PyPI: the file runs against stand-ins that only note what they are given, and
what it would put on the node's command line goes through rcl.
"""

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import rclpy

from blabberseg_ros.backends.registry import FAMILIES
from blabberseg_ros.nodes.parameters import HEATMAP_TABLE, NODE_NAME

ROOT = Path(__file__).resolve().parents[3]
STAND_INS = {
    'launch': ('Condition', 'LaunchDescription'),
    'launch.actions': ('DeclareLaunchArgument', 'GroupAction', 'Shutdown'),
    'launch.conditions': ('IfCondition',),
    'launch.substitutions': ('LaunchConfiguration', 'PathJoinSubstitution'),
    'launch_ros': (),
    'launch_ros.actions': ('Node', 'SetParameter', 'SetParametersFromFile'),
    'launch_ros.parameter_descriptions': ('ParameterValue',),
    'launch_ros.substitutions': ('FindPackageShare',),
}


class StandIn:
    """Notes its arguments."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs


@pytest.fixture
def description(monkeypatch):
    """Return the actions of the launch file, nested as they are there."""
    for name, members in STAND_INS.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, type(member, (StandIn,), {}))
        monkeypatch.setitem(sys.modules, name, module)
    path = ROOT / 'launch' / 'aerialview.launch.py'
    return runpy.run_path(str(path))['generate_launch_description']().args[0]


def kind(action):
    return type(action).__name__


def text_of(value, given):
    """Return what substitutions stand for."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ''.join(text_of(part, given) for part in value)
    if kind(value) == 'PathJoinSubstitution':
        return '/'.join(text_of(part, given) for part in value.args[0])
    if kind(value) == 'FindPackageShare':
        return str(ROOT)
    if kind(value) == 'LaunchConfiguration':
        return text_of(given[value.args[0]], given)
    assert kind(value) == 'ParameterValue'
    return text_of(value.args[0], given)


def with_defaults(description, given):
    """Return name to value of all launch arguments."""
    defaults = {action.args[0]: action.kwargs['default_value'] for action in description
                if kind(action) == 'DeclareLaunchArgument'}
    assert set(given) <= set(defaults)
    return {**defaults, **given}


def heatmap_arguments(description, given):
    """Return the ROS arguments of the heatmap node: those of the group, then its own."""
    group = next(action for action in description if kind(action) == 'GroupAction')
    arguments = []
    for action in group.args[0]:
        condition = action.kwargs.get('condition')
        if condition is not None and not condition.kwargs['predicate'](
                SimpleNamespace(launch_configurations=given)):
            continue
        if kind(action) == 'SetParametersFromFile':
            arguments += ['--params-file', text_of(action.args[0], given)]
        elif kind(action) == 'SetParameter':
            name, value = action.args
            arguments += ['-p', f'{name}:={text_of(value, given)}']
        else:
            assert action.kwargs['name'] == NODE_NAME
            for name, value in action.kwargs['parameters'][0].items():
                arguments += ['-p', f'{name}:={text_of(value, given)}']
    return arguments


def values_of_the_node(description, **given):
    """Return the parameters that the heatmap node ends up with."""
    arguments = heatmap_arguments(description, with_defaults(description, given))
    context = rclpy.Context()
    rclpy.init(args=['--ros-args', *arguments], context=context)
    try:
        node = rclpy.create_node(NODE_NAME, context=context)
        values = HEATMAP_TABLE.declare(node)
        node.destroy_node()
    finally:
        context.shutdown()
    return values


@pytest.mark.parametrize('family', FAMILIES)
def test_a_familys_own_file_loads_that_family(description, family):
    path = str(ROOT / 'config' / f'{family}_node.yaml')
    values = values_of_the_node(description, params_file=path)
    assert values.backend == ('auto' if family == 'clipseg' else family)
    assert values.bundle == 'auto'


def test_the_file_decides_about_the_model_where_no_argument_is_given(description, tmp_path):
    path = tmp_path / 'own.yaml'
    path.write_text(f'{NODE_NAME}:\n  ros__parameters:\n    bundle: mine\n    backend: fpseg\n'
                    '    classes_file: /a/b\n    decode_budget_ms: 5.0\n    stream: "off"\n'
                    '    max_rate_hz: 7.0\n')
    values = values_of_the_node(description, params_file=str(path))
    assert (values.bundle, values.backend, values.classes_file) == ('mine', 'fpseg', '/a/b')
    assert (values.decode_budget_ms, values.stream, values.max_rate_hz) == (5.0, 'off', 7.0)
    assert values.min_threshold == 0.3, "the flight is the launch file's own"


def test_an_argument_that_is_given_wins_over_the_file(description):
    values = values_of_the_node(
        description, params_file=str(ROOT / 'config' / 'segformer_node.yaml'), backend='fpseg',
        bundle='123', decode_budget_ms='8', stream='off')
    assert (values.backend, values.bundle, values.stream) == ('fpseg', '123', 'off')
    assert values.decode_budget_ms == 8.0


@pytest.mark.parametrize(('given', 'words'), [
    ({}, ['', 'savefile=']), ({'debug': 'debug', 'savefile': 'one'}, ['debug', 'savefile=one'])])
def test_the_lander_is_given_its_words(description, given, words):
    lander, = (action for action in description
               if kind(action) == 'Node' and action.kwargs['name'] == 'landing_module')
    given = with_defaults(description, given)
    assert [text_of(word, given) for word in lander.kwargs['arguments']] == words
