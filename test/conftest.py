# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the rule about skips, reference data, and ROS traffic of their own."""

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from blabberseg_ros.backends.registry import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared'
# A test may be skipped for these reasons only; any other skip is a failure. Otherwise a broken
# installation would pass by skipping everything.
ALLOWED_SKIPS = ('shared data absent', 'gpu', 'no launch')
# Modules whose tests hold for every family, unchanged; all others have CLIPSeg's random bundle.
EVERY_FAMILY = ('test_service', 'test_prompts', 'test_bad_input', 'test_dovesei_cases',
                'test_dovesei_start', 'test_nan', 'test_prompt_changes')
# Families whose prompts are matched to labels.
LABELLED = ('segformer', 'fpseg')
# Words that tests send to any family. One without a text tower knows them as a user would teach
# it: by aliases.
TEST_WORDS = {
    **dict.fromkeys(('heather', 'reed', 'fern', 'mud', 'straw', 'rock', 'salt flat', 'dune',
                     'first', 'second', 'third', 'a', '🌱', '🌾', '{}', 'x' * 9_000,
                     *(f'new ground {index}' for index in range(8)),
                     *(f'flood {index}' for index in range(60))), ('grass', 'soil')),
    **dict.fromkeys(('ice', 'snow', 'wave', 'pond', 'lava', 'fire', 'gorge', 'reef', 'other', 'b',
                     '🌊🏠', '{0}', *(f'new danger {index}' for index in range(8)),
                     *(f'thing {index}' for index in range(255))), ('water', 'tree')),
}


def pytest_configure() -> None:
    """Keep ROS on this machine and away from other runs, for this process and its children."""
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(20 + os.getpid() % 80)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test its families.

    Every test that uses `random_bundle` is parametrised: pytest would hand a test without a
    parameter what the last family left in a fixture of the session.
    """
    chosen = any('family' in mark.args[0]
                 for mark in metafunc.definition.iter_markers('parametrize'))
    if 'random_bundle' not in metafunc.fixturenames or chosen:
        return
    path = Path(str(metafunc.module.__file__))
    every = path.parent.name in ('node', 'fault') and path.stem in EVERY_FAMILY
    metafunc.parametrize('family', FAMILIES if every else ['clipseg'], scope='session')


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
def family() -> str:
    """Return the model family of `random_bundle`; tests that hold for all are given each."""
    return 'clipseg'


@pytest.fixture(scope='session')
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return CLIP's tokenizer as bundles have it."""
    import open_clip

    from blabberseg_ros.text import write_tokenizer_json

    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
    write_tokenizer_json(Path(open_clip.__file__).parent / 'bpe_simple_vocab_16e6.txt.gz', path)
    return path


@pytest.fixture(scope='session')
def make_random_bundle(tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory
                       ) -> Callable[[str], Path]:
    """Return a maker of small bundles with random weights, one a family and session."""
    from blabberseg_ros.labels import read_aliases
    from blabberseg_ros.models.export import export_bundle
    from blabberseg_ros.models.families import random_network

    folder = tmp_path_factory.mktemp('bundles')

    def make(family: str) -> Path:
        path = folder / family
        if not path.is_dir():
            # Families with labels of their own know DOVESEI's words by these.
            aliases = read_aliases(ROOT / 'config' / 'aliases_demo.yaml')
            if family == 'fpseg':
                aliases = {**TEST_WORDS, **aliases}
            export_bundle(random_network(family), path, name='random', source='random weights',
                          licence='Apache-2.0', tokenizer_json=tokenizer_json, storage='fp16',
                          aliases=aliases if family in LABELLED else None)
        return path

    return make


@pytest.fixture(scope='session')
def random_bundle(family: str, make_random_bundle: Callable[[str], Path]) -> Path:
    """Return the family's small bundle with random weights, through the real export."""
    return make_random_bundle(family)
