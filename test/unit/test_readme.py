# SPDX-License-Identifier: Apache-2.0
"""What the README and the docs say of parameters and commands is what the code has."""

import re

import pytest

from blabberseg_ros.cli.main import build_parser
from blabberseg_ros.demo.client_parameters import CLIENT_TABLE
from blabberseg_ros.nodes.camera_parameters import CAMERA_TABLE
from blabberseg_ros.nodes.images import ENCODINGS
from blabberseg_ros.nodes.parameters import HEATMAP_TABLE


@pytest.mark.parametrize(('page', 'table'), [
    ('README.md', HEATMAP_TABLE), ('docs/camera_and_demo.md', CAMERA_TABLE),
    ('docs/camera_and_demo.md', CLIENT_TABLE)])
def test_parameter_tables_are_those_of_the_nodes(root_dir, page, table):
    assert table.markdown().strip() in (root_dir / page).read_text(encoding='utf-8'), (
        f'{page} holds an old parameter table; paste the output of ParameterTable.markdown()')


def test_every_command_that_is_named_exists(root_dir):
    text = (root_dir / 'README.md').read_text(encoding='utf-8')
    known = next(action.choices for action in build_parser()._actions
                 if getattr(action, 'choices', None) and 'segment' in action.choices)
    named = set(re.findall(r'blabberseg ([a-z][a-z-]+)', text))
    assert named
    assert named <= set(known)


def test_every_encoding_is_listed(root_dir):
    text = (root_dir / 'README.md').read_text(encoding='utf-8')
    assert [name for name in ENCODINGS if f'`{name}`' not in text] == []


def test_every_linked_file_exists(root_dir):
    for page in ('README.md', 'docs/camera_and_demo.md', 'THIRD_PARTY.md'):
        text = (root_dir / page).read_text(encoding='utf-8')
        for target in re.findall(r'\]\(([^)#]+)\)', text):
            if '://' not in target:
                assert (root_dir / page).parent.joinpath(target).exists(), f'{page}: {target}'
