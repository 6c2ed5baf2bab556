# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the rule about skips, reference data, and ROS traffic of their own."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
# A test may be skipped for these reasons only; any other skip is a failure. Otherwise a broken
# installation would pass by skipping everything.
ALLOWED_SKIPS = ('shared data absent', 'gpu', 'no launch')


def pytest_configure() -> None:
    """Keep ROS on this machine and away from other runs, for this process and its children."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(20 + os.getpid() % 80)


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    """Fail tests that were skipped for a reason that is not allowed."""
    outcome = yield
    _fail_if_not_allowed(outcome.get_result())


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, Any, None]:
    """Fail modules that were skipped as a whole for a reason that is not allowed."""
    outcome = yield
    _fail_if_not_allowed(outcome.get_result())


def _fail_if_not_allowed(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped:
        return
    reason = getattr(report, 'wasxfail', None)
    if reason is None and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix('Skipped: ')
    if reason is not None and reason.startswith(ALLOWED_SKIPS):
        return
    where = ':'.join(str(part) for part in report.longrepr[:2]) if isinstance(
        report.longrepr, tuple) else report.nodeid
    report.outcome = 'failed'
    report.longrepr = (
        f'{where}: skipped because of "{reason}", which is not allowed here.\n'
        f'Only these are: {", ".join(ALLOWED_SKIPS)} (see test/conftest.py).')
    if hasattr(report, 'wasxfail'):
        del report.wasxfail


@pytest.fixture(scope='session')
def root_dir() -> Path:
    """Return the top folder of the repository."""
    return ROOT


@pytest.fixture(scope='session')
def shared_dir() -> Path:
    """Return the folder of reference data beside the repository; skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f'shared data absent: {SHARED}')
    return SHARED


@pytest.fixture(scope='session')
def ros_domain_id() -> int:
    """Return the ROS domain of this run, which child processes inherit."""
    return int(os.environ['ROS_DOMAIN_ID'])


@pytest.fixture(scope='session')
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small bundle with random weights, through the real export, made once a session."""
    import open_clip

    from blabberseg_ros.models.clipseg_config import ClipSegConfig
    from blabberseg_ros.models.export_clipseg import export_bundle
    from blabberseg_ros.models.random_clipseg import random_clipseg
    from blabberseg_ros.text import write_tokenizer_json

    folder = tmp_path_factory.mktemp('bundles')
    merges = Path(open_clip.__file__).parent / 'bpe_simple_vocab_16e6.txt.gz'
    write_tokenizer_json(merges, folder / 'tokenizer.json')
    config = ClipSegConfig(
        vision_width=96, vision_heads=3, vision_mlp=384, text_width=48, text_heads=3,
        text_layers=3, text_mlp=192, embed_dim=48, reduce_dim=16, decoder_ffn=64)
    export_bundle(random_clipseg(config), folder / 'random', name='random',
                  source='random weights', licence='Apache-2.0',
                  tokenizer_json=folder / 'tokenizer.json', storage='fp16')
    return folder / 'random'
