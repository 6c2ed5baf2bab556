# SPDX-License-Identifier: Apache-2.0
"""Who chooses the profile of Fast DDS."""

import re
import shutil
from collections import namedtuple
from xml.etree import ElementTree

import pytest

from blabberseg_ros.nodes.large_images import CHOICES, PROFILE, SEGMENT_BYTES, make_room_for_images

Usage = namedtuple('Usage', 'total used free')


@pytest.fixture
def free_bytes(monkeypatch, tmp_path):
    """Make shared memory of 64 MiB, which a test can change, and start in an empty folder."""
    free = [64 * 1024 * 1024]
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: Usage(free[0], 0, free[0]))
    monkeypatch.chdir(tmp_path)
    return free


@pytest.mark.parametrize(('distribution', 'name'), [
    ('', 'FASTDDS_DEFAULT_PROFILES_FILE'), ('kilted', 'FASTDDS_DEFAULT_PROFILES_FILE'),
    ('jazzy', 'FASTRTPS_DEFAULT_PROFILES_FILE'), ('humble', 'FASTRTPS_DEFAULT_PROFILES_FILE')])
def test_ours_is_taken_by_default(free_bytes, distribution, name):
    environment = {'ROS_DISTRO': distribution}
    assert make_room_for_images(environment)
    assert environment == {'ROS_DISTRO': distribution, name: str(PROFILE)}


@pytest.mark.parametrize('name', CHOICES)
def test_the_user_has_the_last_word(free_bytes, name):
    environment = {name: 'anything'}
    assert not make_room_for_images(environment)
    assert environment == {name: 'anything'}


def test_a_profile_in_the_working_directory_counts_as_well(free_bytes, tmp_path):
    (tmp_path / 'DEFAULT_FASTDDS_PROFILES.xml').write_text('<dds/>')
    assert not make_room_for_images({})


def test_it_is_left_where_shared_memory_is_short(free_bytes):
    free_bytes[0] = 2 * SEGMENT_BYTES - 1
    assert not make_room_for_images({})


def test_a_machine_without_shared_memory(tmp_path):
    assert not make_room_for_images({}, tmp_path / 'absent')


def test_the_profile_has_the_size_that_is_checked():
    root = ElementTree.parse(PROFILE).getroot()
    size = next(item.text for item in root.iter()
                if re.sub('{.*}', '', item.tag) == 'segment_size')
    assert int(size) == SEGMENT_BYTES
