# SPDX-License-Identifier: Apache-2.0
"""`blabberseg import` tells where weights are to be had, without the packages that import them."""

import subprocess
import sys

import pytest

from blabberseg_ros.backends.registry import FAMILIES
from blabberseg_ros.models.sources import SOURCES


@pytest.mark.parametrize('option', ['--help', '--sources'])
def test_sources_are_told_without_torch(option):
    code = ("import sys; sys.modules.update(dict.fromkeys(('torch', 'open_clip', 'numpy'))); "
            f"from blabberseg_ros.cli.main import main; sys.exit(main(['import', {option!r}]))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          check=False)
    assert (done.returncode, done.stderr) == (0, '')
    assert set(SOURCES) == set(FAMILIES)
    for text in SOURCES.values():
        assert text in done.stdout
    assert 'SHA-256 d00ca85d6b859f9d07b7cfb8ef26fe9771cb275b34c9368f2ecf603139307f55' in (
        done.stdout)
