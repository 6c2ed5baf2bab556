# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar on a terminal, a log line every few seconds elsewhere."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_LOG = logging.getLogger(__name__)
LOG_PERIOD_S = 5.0
_POLL_S = 0.1

T = TypeVar('T')


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """How far nested phases have come; written by the working thread, read by the waiting one.

    Attributes:
        title: of the whole work.
        cancelled: set to ask the work to end early.
    """

    def __init__(self, title: str) -> None:
        """Start at nothing."""
        self.title = title
        self.cancelled = threading.Event()
        self._phases: dict[str, _Phase] = {}
        self._best = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Note that a phase begins."""
        self._phases[phase] = _Phase(parent, max(steps, 1))

    def step(self, phase: str, index: int) -> bool:
        """Note that a step of a phase is done; return False if the work shall end."""
        if phase in self._phases:
            self._phases[phase].done = index + 1
        return not self.cancelled.is_set()

    def finish(self, phase: str) -> None:
        """Note that a phase has ended."""
        self._phases.pop(phase, None)

    @property
    def phase(self) -> str:
        """Return the name of the innermost phase, or an empty text."""
        phases = list(self._phases)
        return phases[-1] if phases else ''

    @property
    def fraction(self) -> float:
        """Return the part that is done, 0..1; it never falls."""
        phases = dict(self._phases)
        share, done, parent = 1.0, 0.0, None
        while True:
            child = next((name for name, phase in phases.items() if phase.parent == parent), None)
            if child is None:
                break
            phase = phases.pop(child)
            done += share * min(phase.done / phase.steps, 1.0)
            share /= phase.steps
            parent = child
        self._best = max(self._best, min(done, 1.0))
        return self._best


def run_with_progress(work: Callable[[], T], progress: Progress) -> T:
    """Run `work` on a thread of its own and show its progress.

    The library's callbacks must not see an exception, and Ctrl-C is raised in the main thread: so
    the work gets its own thread, is asked to end when this one is interrupted, and is waited for.

    Args:
        work: reports to `progress` and ends early once that is cancelled.
        progress: of the work.

    Returns:
        What the work returns.

    Raises:
        Exception: whatever the work raises.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    # Not Thread.join: in Python 3.10 to 3.12, one that is interrupted takes the thread for ended.
    begin, done = threading.Event(), threading.Event()

    def run() -> None:
        begin.wait()
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name='build', daemon=True).start()
    try:
        # An interrupt before this line leaves a thread that waits, not one inside the library.
        begin.set()
        (_show_bar if sys.stderr.isatty() else _show_lines)(done, progress)
    except BaseException:
        while not done.is_set():
            # Leaving the library at work while the interpreter ends would crash it.
            with contextlib.suppress(KeyboardInterrupt):
                progress.cancelled.set()
                done.wait()
        raise
    if errors:
        raise errors[0]
    return results[0]


def _show_bar(done: threading.Event, progress: Progress) -> None:
    from tqdm import tqdm

    with tqdm(total=100, desc=progress.title, unit='%', leave=False,
              bar_format='{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}') as bar:
        while not done.wait(_POLL_S):
            bar.set_postfix_str(progress.phase, refresh=False)
            bar.update(int(100 * progress.fraction) - bar.n)
            bar.refresh()


def _show_lines(done: threading.Event, progress: Progress) -> None:
    started = time.monotonic()
    next_line_s = LOG_PERIOD_S
    while not done.wait(_POLL_S):
        elapsed_s = time.monotonic() - started
        if elapsed_s >= next_line_s:
            next_line_s += LOG_PERIOD_S
            _LOG.info('%s: %.0f %% after %.0f s (%s)', progress.title, 100 * progress.fraction,
                      elapsed_s, progress.phase or 'starting')
