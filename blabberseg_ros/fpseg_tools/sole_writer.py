# SPDX-License-Identifier: Apache-2.0
"""A folder that one process at a time writes to."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blabberseg_ros.errors import ParameterError


@contextmanager
def sole_writer(folder: Path, leftovers: str = '.*.tmp') -> Iterator[None]:
    """Keep other writers out, and clear away what a killed one left.

    Args:
        folder: that is there already.
        leftovers: pattern of the unfinished files (see `atomic`) that nobody else writes.

    Raises:
        ParameterError: another process writes here.
    """
    with open(folder / '.lock', 'w', encoding='utf-8') as stream:
        try:
            # The kernel frees it when the process dies, however it dies.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ParameterError(f'another process is writing to {folder}; wait for it, or give '
                                 'another folder') from error
        for leftover in folder.glob(leftovers):
            leftover.unlink()
        yield
