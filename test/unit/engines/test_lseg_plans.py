# SPDX-License-Identifier: Apache-2.0
"""Plans built with TensorRT-RTX, kept in the store; LSeg's are for all sizes of its input."""

import re

import pytest

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.main import main
from blabberseg_ros.engines.graph_inputs import graph_inputs
from blabberseg_ros.engines.tensorrt_options import BuildOptions, Range, profiles_for


@pytest.fixture(scope='module')
def folder(make_random_bundle):
    return make_random_bundle('lseg')


def shapes_of(folder, stage, options=None):
    inputs = graph_inputs(load_bundle(folder).graph(stage))
    profile, = profiles_for(inputs, options or BuildOptions())
    return {entry.name: (entry.minimum, entry.optimum, entry.maximum) for entry in profile.inputs}


def test_one_profile_holds_every_size(folder):
    image = shapes_of(folder, 'image_encoder')
    assert [shape[0] for shape in image['rows']] == [256, 480, 1024]
    assert [shape[1] for shape in image['cols']] == [256, 480, 1024]
    decoder = shapes_of(folder, 'decoder')
    assert [shape[1:] for shape in decoder['code']] == [(64, 64), (120, 120), (256, 256)]
    assert decoder['length'] == ((128, 128), (240, 240), (512, 512))
    assert [shape[0] for shape in decoder['embedding']] == [1, 13, 64]
    assert [shape[1:] for shape in shapes_of(folder, 'fusion')['logits']] == [
        (256, 256), (480, 480), (1024, 1024)]


def test_the_range_of_sizes_can_be_chosen(folder):
    options = BuildOptions(input_sizes=Range(352, 352, 352))
    assert shapes_of(folder, 'features', options)['length'] == ((176, 176),) * 3


def test_plans_of_segformer_are_kept_as_well(make_random_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    command = ['build', '--builder', 'tensorrt_rtx', '--optimisation-level', '0', '--stage',
               'image_encoder', '--stage', 'fusion', '--bundle',
               str(make_random_bundle('segformer'))]
    for said in ('built in', 'kept'):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert set(re.findall(rf'^(\w+): {said}', shown, re.MULTILINE)) == {
            'image_encoder', 'fusion'}


def test_plans_are_built_once_and_kept(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    command = ['build', '--builder', 'tensorrt_rtx', '--bundle', str(folder),
               '--input-sizes', '64', '128', '160']
    assert main(command) == 0
    stages = set(re.findall(r'^(\w+): built in', capsys.readouterr().out, re.MULTILINE))
    assert {'image_encoder', 'text_encoder', 'decoder', 'features', 'fusion'} <= stages
    assert main(command) == 0
    assert set(re.findall(r'^(\w+): kept', capsys.readouterr().out, re.MULTILINE)) == stages
    command[-3:] = ['64', '128', '192']
    assert main([*command, '--stage', 'decoder']) == 0
    assert 'decoder: built in' in capsys.readouterr().out
