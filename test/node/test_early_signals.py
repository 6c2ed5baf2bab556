# SPDX-License-Identifier: Apache-2.0
"""Signals that come while an executable imports what it needs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import DEADLINE_S, ROOT, until

from blabberseg_ros.demo.client import NOT_LANDED
from blabberseg_ros.demo.run import EXECUTABLES

# Of a flight that was broken off, once it has begun.
CODES = {'clipseg_node': {0}, 'aerial_camera': {0}, 'demo_client': {0, NOT_LANDED}}


def catches(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal; before, Python itself is starting."""
    status = Path(f'/proc/{pid}/status').read_text().splitlines()
    caught = int(next(line.split()[1] for line in status if line.startswith('SigCgt')), 16)
    return bool(caught & 1 << (number - 1))


@pytest.mark.parametrize('executable', CODES)
@pytest.mark.parametrize(('number', 'delay_s'), [
    (signal.SIGINT, 0.0), (signal.SIGTERM, 0.05), (signal.SIGINT, 0.2), (signal.SIGTERM, 0.5)])
def test_a_signal_during_the_imports_ends_it_cleanly(executable, number, delay_s, tmp_path):
    with (tmp_path / 'log').open('wb') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', EXECUTABLES, executable, '--ros-args',
             '-p', 'bundle:=no_such_bundle'],
            stdout=log, stderr=subprocess.STDOUT, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    try:
        # Python itself handles SIGINT from its start, SIGTERM it never does.
        until(lambda: catches(process.pid, signal.SIGTERM), what='the executable has begun')
        time.sleep(delay_s)  # into the imports
        process.send_signal(number)
        code = process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    output = (tmp_path / 'log').read_text()
    assert code in CODES[executable], output
    assert 'Traceback' not in output


def test_the_executables_import_nothing_before_the_signals_are_taken():
    script = ('import sys; before = set(sys.modules); import blabberseg_ros.nodes.executables; '
              'print(*{name.split(".")[0] for name in set(sys.modules) - before})')
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True)
    assert set(done.stdout.split()) - set(sys.stdlib_module_names) == {'blabberseg_ros'}
