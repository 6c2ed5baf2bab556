# SPDX-License-Identifier: Apache-2.0
"""Nodes in processes of their own: started, watched, and always ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

# After SIGINT, SIGTERM and SIGTERM again, each with this much time, comes SIGKILL.
PATIENCE_S = 4.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGTERM)


class NodeProcess:
    """One node of this package, run by this Python.

    Args:
        name: the node's name.
        module: that is run with `python -m`.
        parameters: of the node.
        folder: for its parameter file and its log.
        executable: argument of the module, if it takes one.
    """

    def __init__(self, name: str, module: str, parameters: Mapping[str, Any],
                 folder: Path, executable: str = '') -> None:
        """Start it."""
        self.name = name
        self.log = folder / f'{name}.log'
        # A file, because values on the command line would be read as YAML once more.
        file = folder / f'{name}.yaml'
        file.write_text(yaml.safe_dump({name: {'ros__parameters': dict(parameters)}}),
                        encoding='utf-8')
        with self.log.open('wb') as log:
            self._process = subprocess.Popen(
                [sys.executable, '-m', module, *filter(None, (executable,)),
                 '--ros-args', '--params-file', str(file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONUNBUFFERED': '1'})

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def last_lines(self, count: int = 5) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(encoding='utf-8', errors='replace').splitlines()
        return '\n'.join(f'    {line}' for line in lines[-count:])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.exit_code is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it without asking."""
        self._process.kill()
        self._process.wait()


def end(processes: Sequence[NodeProcess]) -> dict[str, int]:
    """End processes: politely, then firmly, then for good.

    A node can sleep through one signal, so that asking once is not enough.

    Returns:
        Name to exit code; 0 for one that ended cleanly.
    """
    for number in SIGNALS:
        for process in processes:
            process.signal(number)
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            if all(process.exit_code is not None for process in processes):
                break
            time.sleep(0.02)
    for process in processes:
        if process.exit_code is None:
            process.kill()
    return {process.name: process.exit_code or 0 for process in processes}
