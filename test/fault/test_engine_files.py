# SPDX-License-Identifier: Apache-2.0
"""Plans that are damaged, foreign or half-written, and builders that are killed.

Real processes and TensorRT-RTX's builder and deserialiser; the latter in a child process, because
a library that is given a bad file may take its process with it.
"""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.store import PLAN, RECORD, PlanStore
from blabberseg_ros.engines.tensorrt import obtain_plan
from blabberseg_ros.engines.tensorrt_builder import TENSORRT_RTX, load_library
from blabberseg_ros.engines.tensorrt_options import BuildOptions

SCRIPT = Path(__file__).with_name('plan_builder.py')
ROOT = Path(__file__).resolve().parent.parent.parent
STAGE = 'film'
LIMIT_S = 60.0


class Builder:
    """A process of plan_builder.py."""

    def __init__(self, bundle, store, point):
        environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
        self.process = subprocess.Popen(
            [sys.executable, SCRIPT, bundle, store.folder, point], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.output = ''

    def wait_for(self, word):
        deadline = time.monotonic() + LIMIT_S
        while word not in self.output:
            ready, _, _ = select.select([self.process.stdout], [], [],
                                        max(deadline - time.monotonic(), 0))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b''
            assert data, f'{word!r} did not come: {self.output}'
            self.output += data.decode(errors='replace')

    def end(self):
        """Wait for the end; return the exit code."""
        output, _ = self.process.communicate(timeout=LIMIT_S)
        self.output += output.decode(errors='replace')
        return self.process.returncode

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def store(tmp_path):
    return PlanStore(tmp_path / 'plans')


@pytest.fixture
def start(random_bundle, store):
    """Start builders that do not outlive the test."""
    builders = []

    def start_builder(point):
        builders.append(Builder(random_bundle, store, point))
        return builders[-1]

    yield start_builder
    for builder in builders:
        builder.stop()


@pytest.fixture(scope='module')
def rtx():
    return load_library(TENSORRT_RTX)


def obtain(random_bundle, rtx, store):
    return obtain_plan(load_bundle(random_bundle), STAGE, rtx, BuildOptions(), store)


def files(store):
    return sorted(path.name for path in store.folder.iterdir())


@pytest.mark.parametrize('point', ['building', 'writing', 'recording'])
def test_a_builder_that_is_killed_leaves_nothing_wrong(start, random_bundle, rtx, store, point):
    builder = start(point)
    builder.wait_for('reached')
    assert files(store), 'the lock at least'
    builder.process.kill()
    assert builder.end() == -signal.SIGKILL
    assert not any(verdict.ok for verdict in store.verify()), 'no plan that was not finished'
    again = obtain(random_bundle, rtx, store)
    assert again.built
    assert [verdict.ok for verdict in store.verify()] == [True]
    assert not obtain(random_bundle, rtx, store).built
    store.prune()
    name = again.plan.path.stem
    assert files(store) == sorted([name + PLAN, name + RECORD])


@pytest.mark.parametrize('point', ['building', 'writing', 'recording'])
def test_what_a_killed_builder_left_can_be_pruned(start, store, point):
    builder = start(point)
    builder.wait_for('reached')
    assert store.prune() == [], 'not while it is being built'
    builder.process.kill()
    builder.end()
    assert store.prune()
    assert files(store) == []


def test_an_interrupted_builder_cleans_up(start, store):
    builder = start('building')
    builder.wait_for('reached')
    builder.process.send_signal(signal.SIGINT)
    assert builder.end() == 130, builder.output
    assert 'interrupted' in builder.output
    assert files(store) == []


def test_two_processes_build_one_plan(start, store):
    first = start('waiting')
    first.wait_for('reached')
    second = start('none')
    second.wait_for('waiting for it')
    (store.folder.parent / 'go').touch()
    assert first.end() == 0
    assert second.end() == 0
    built, found = (builder.output.split()[-2:] for builder in (first, second))
    assert (built[0], found[0]) == ('built', 'found')
    assert built[1] == found[1]
    assert len(files(store)) == 2


def test_the_second_process_builds_if_the_first_is_killed(start, store):
    first = start('building')
    first.wait_for('reached')
    second = start('none')
    second.wait_for('waiting for it')
    first.process.kill()
    first.end()
    assert second.end() == 0
    assert second.output.split()[-2] == 'built'


# Deserialise each file named on the command line as the runner does; tell what came of it.
DESERIALISE = """
import sys
from pathlib import Path
from blabberseg_ros.engines.tensorrt_builder import load_library, make_logger
from blabberseg_ros.engines.tensorrt_runner import deserialise
from blabberseg_ros.errors import EngineError
library = load_library('tensorrt_rtx')
for path in sys.argv[1:]:
    try:
        deserialise(library, Path(path).read_bytes(), make_logger(library.module))
        print('loaded', path)
    except EngineError as error:
        print('refused', path, error)
"""


def bad_plans(plan):
    """Return name to bytes of plans that the store would never hand over."""
    length = len(plan)
    bad = {'empty': b'', 'one byte': plan[:1], 'text': b'not a plan' * 50,
           'ELF': b'\x7fELF' + bytes(300), 'zeros': bytes(length), 'ones': b'\xff' * length,
           'longer': plan + b'\0', 'doubled': plan + plan}
    for part in (16, 64, 500, length // 2, length - 1):
        bad[f'cut at {part}'] = plan[:part]
    for position in (0, 1, 4, 8, 16, 24, 32, 40, 48, 64, 96, 128, length // 3, length - 1):
        flipped = bytearray(plan)
        flipped[position] ^= 0x80
        bad[f'flipped {position}'] = bytes(flipped)
    return bad


def test_the_library_refuses_bad_plans_with_our_error(random_bundle, rtx, store, tmp_path):
    plan = obtain(random_bundle, rtx, store).plan.data
    paths = []
    for name, data in bad_plans(plan).items():
        paths.append(tmp_path / f'{name}.plan')
        paths[-1].write_bytes(data)
    child = subprocess.run(
        [sys.executable, '-c', DESERIALISE, *paths], capture_output=True, text=True,
        timeout=LIMIT_S, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=False)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == len(paths)
    for line, path in zip(lines, paths, strict=True):
        # A flipped bit in the weights is still a plan to the library; only the store can tell.
        if not path.name.startswith('flipped'):
            assert line.startswith(f'refused {path} tensorrt_rtx'), line
            assert 'engines prune' in line


def test_no_bad_plan_reaches_the_library(random_bundle, rtx, store):
    good = obtain(random_bundle, rtx, store).plan
    for name, data in bad_plans(good.data).items():
        good.path.write_bytes(data)
        assert [verdict.ok for verdict in store.verify()] == [False], name
    again = obtain(random_bundle, rtx, store)
    assert again.built
    assert 'damaged' in again.reason
    assert not obtain(random_bundle, rtx, store).built


def test_a_plan_with_the_record_of_another_is_built_again(random_bundle, rtx, store):
    good = obtain(random_bundle, rtx, store).plan
    other = obtain_plan(load_bundle(random_bundle), 'fusion', rtx, BuildOptions(), store).plan
    good.path.write_bytes(other.data)
    good.path.with_suffix(RECORD).write_bytes(other.path.with_suffix(RECORD).read_bytes())
    again = obtain(random_bundle, rtx, store)
    assert again.built
    assert 'its stage is fusion, not film' in again.reason
