# SPDX-License-Identifier: Apache-2.0
"""`blabberseg build` and `blabberseg engines`."""

import argparse

import pytest

from blabberseg_ros.cli import build as build_command
from blabberseg_ros.cli import engines as engines_command
from blabberseg_ros.engines.store import PlanStore
from blabberseg_ros.engines.tensorrt_builder import TENSORRT_RTX
from blabberseg_ros.errors import ParameterError


def command(*arguments):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    build_command.add_parser(subparsers)
    engines_command.add_parser(subparsers)
    parsed_arguments = parser.parse_args([str(argument) for argument in arguments])
    return parsed_arguments.run(parsed_arguments)


def test_plans_are_built_listed_verified_and_pruned(random_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    arguments = ('build', '--bundle', random_bundle, '--builder', TENSORRT_RTX, '--stage', 'film',
                 '--stage', 'fusion', '--prompts', 1, 2, 4)
    assert command(*arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count('built in') == 2
    assert 'not run by this package' in printed.replace('\n', ' ')
    assert command(*arguments) == 0
    assert capsys.readouterr().out.count('kept') == 2
    assert command('engines', 'list') == 0
    listed = capsys.readouterr().out
    assert 'random film fp32, tensorrt_rtx' in listed
    assert 'parity: not measured' in listed
    assert command('engines', 'verify') == 0
    plan = next(PlanStore().folder.glob('*film*.plan'))
    plan.write_bytes(plan.read_bytes()[:-1])
    assert command('engines', 'verify') == 1
    assert 'DAMAGED' in capsys.readouterr().out
    assert command('engines', 'prune') == 0
    assert 'removed' in capsys.readouterr().out
    assert [verdict.ok for verdict in PlanStore().verify()] == [True]
    assert command('engines', 'prune', '--all') == 0
    assert list(PlanStore().folder.iterdir()) == []


def test_a_plan_that_is_not_in_the_store_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(ParameterError, match='no plan'):
        command('engines', 'verify', '../../other')


@pytest.mark.parametrize(('arguments', 'message'), [
    (('--stage', 'no_such'), 'has no stage'), (('--image-sizes', '640'), 'write it as 640x480'),
    (('--prompts', 5, 4, 3), 'minimum'), (('--precision', 'int8'), 'int8 is not built')])
def test_wrong_arguments_of_build_are_refused(random_bundle, tmp_path, monkeypatch, arguments,
                                              message):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(ParameterError, match=message):
        command('build', '--bundle', random_bundle, '--builder', TENSORRT_RTX, *arguments)
