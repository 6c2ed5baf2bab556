# SPDX-License-Identifier: Apache-2.0
"""Progress of a long build: fractions, log lines, a bar, an interrupt."""

import io
import logging
import sys
import threading
import time

import pytest

from blabberseg_ros.engines import build_progress
from blabberseg_ros.engines.build_progress import Progress, run_with_progress
from blabberseg_ros.errors import EngineError


def test_nested_phases_add_up():
    progress = Progress('work')
    assert progress.fraction == 0
    progress.start('all', None, 4)
    assert progress.step('all', 0)
    assert progress.fraction == 0.25
    progress.start('part', 'all', 2)
    progress.step('part', 0)
    assert progress.fraction == 0.375
    assert progress.phase == 'part'
    progress.finish('part')
    assert progress.fraction == 0.375, 'it never falls'
    progress.finish('all')
    assert progress.phase == ''


def test_a_long_build_logs_lines(monkeypatch, caplog):
    monkeypatch.setattr(build_progress, 'LOG_PERIOD_S', 0.05)
    progress = Progress('building x')
    progress.start('phase y', None, 2)
    progress.step('phase y', 0)

    def work():
        deadline = time.monotonic() + 20
        while len(caplog.records) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return 'done'

    with caplog.at_level(logging.INFO):
        assert run_with_progress(work, progress) == 'done'
    assert len(caplog.records) >= 2
    assert 'building x: 50 %' in caplog.text
    assert 'phase y' in caplog.text


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    progress = Progress('building x')
    progress.start('phase y', None, 2)
    progress.step('phase y', 0)

    def work():
        deadline = time.monotonic() + 20
        while '50%' not in terminal.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)

    run_with_progress(work, progress)
    assert 'building x' in terminal.getvalue()
    assert '50%' in terminal.getvalue()


def test_an_error_of_the_work_reaches_the_caller():
    def work():
        raise EngineError('inside')

    with pytest.raises(EngineError, match='inside'):
        run_with_progress(work, Progress('x'))


def test_an_interrupt_ends_the_work_first(monkeypatch):
    ended = threading.Event()
    progress = Progress('x')

    def work():
        assert progress.cancelled.wait(20)
        ended.set()

    def interrupt(done, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_progress, '_show_lines', interrupt)
    monkeypatch.setattr(build_progress, '_show_bar', interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_with_progress(work, progress)
    assert ended.is_set()
