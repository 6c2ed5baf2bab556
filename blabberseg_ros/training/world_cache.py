# SPDX-License-Identifier: Apache-2.0
"""Arrays in a folder that several processes share: each is made once, by whoever comes first."""

import fcntl
import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from blabberseg_ros.atomic import write_atomically

Arrays = Mapping[str, np.ndarray]


class WorldCache:
    """A folder of named sets of arrays; training runs that share it share the work.

    A file appears whole or not at all. A lock that its maker holds tells the others that it is
    being made; the system frees the lock of a process that dies.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder; it is made when the first file is written."""
        self._folder = folder

    def has(self, key: str) -> bool:
        """Return whether the arrays of that name are there."""
        return self._file(key).is_file()

    def read_or_make(self, key: str, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of that name; make them, or wait for whoever does."""
        found = self._read(key)
        if found is None:
            with self._lock(key, wait=True):
                found = self._read(key)
                if found is None:
                    found = make()
                    self._write(key, found)
        return found

    def make_unless_begun(self, key: str, make: Callable[[], Arrays]) -> None:
        """Make the arrays of that name unless they are there or somebody is making them."""
        if self.has(key):
            return
        with self._lock(key, wait=False) as locked:
            if locked and not self.has(key):
                self._write(key, make())

    def _file(self, key: str) -> Path:
        return self._folder / f'{key}.npz'

    def _read(self, key: str) -> Arrays | None:
        """Return the arrays, or None if they are not there or damaged (zip keeps checksums)."""
        try:
            with np.load(self._file(key), allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def _write(self, key: str, arrays: Arrays) -> None:
        def write(temporary: Path) -> None:
            with open(temporary, 'wb') as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]

        write_atomically(self._file(key), write)

    @contextmanager
    def _lock(self, key: str, wait: bool) -> Iterator[bool]:
        """Hold the lock of a name; answer False if somebody else has it and we do not wait."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / f'{key}.lock', 'ab') as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


def fingerprint(sources: Path, values: object) -> str:
    """Return a name for everything that decides what is made: the sources and some values."""
    digest = hashlib.sha256(repr(values).encode())
    for path in sorted(sources.glob('*.py')):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
