# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or absent, whatever happens while they are written."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

_BLOCK_BYTES = 1 << 20
_MODE = 0o644


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it.

    A crash, a full disk or a power cut leaves the old file (or none), never half of the new one.

    Args:
        path: where the file shall be; its folder is made.
        write: called with the temporary path, which it fills.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers apart; the last rename wins with a whole file.
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb+') as stream:
            os.fsync(stream.fileno())
            # Some writers make their files private; a bundle may be read by any user.
            os.fchmod(stream.fileno(), _MODE)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
