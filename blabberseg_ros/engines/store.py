# SPDX-License-Identifier: Apache-2.0
"""Where built plans are kept, and what is checked before one is used.

    NAME.plan    the plan as the library wrote it, so that other tools can read it
    NAME.json    what it was built from and for, and its SHA-256; written last
    MODEL.options    how the plans of a model shall be built, as `blabberseg build` was told last
    .NAME.lock   held while a process builds this plan

A plan is a program. The checksum finds damage, not malice, which is why nobody else may write to
the folder, and why a plan is never read from anywhere else. It is compared before a byte reaches
the library: TensorRT's own check may call a truncated plan valid, and a plan of another version or
GPU can end the process.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from blabberseg_ros.atomic import sync_folder, write_bytes, write_text
from blabberseg_ros.bundle import user_cache_folder
from blabberseg_ros.engines.plan_record import PlanKey, PlanRecord, read_record
from blabberseg_ros.errors import EngineError

_LOG = logging.getLogger(__name__)
PLAN, RECORD, SET_ASIDE, OPTIONS = '.plan', '.json', '.damaged', '.options'
_MAX_RECORD_BYTES = 1 << 20
_LOCK_POLL_S = 0.05
_LOG_PERIOD_S = 5.0
# Lock files, and what a writer that was killed has left (atomic.py).
_LEFTOVER = re.compile(r'\.(.+?)(?:\.lock|\.(?:plan|json)\.\d+\.tmp)')
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class StoredPlan:
    """A plan that was checked: where it lies, its bytes, and what is known of it."""

    path: Path
    data: bytes
    record: PlanRecord


@dataclass(frozen=True)
class Obtained:
    """A plan that can be used, whether it was built now, and why."""

    plan: StoredPlan
    built: bool
    reason: str


@dataclass(frozen=True)
class Verdict:
    """A plan file in the store: its record if that can be read, and what is wrong with it."""

    name: str
    record: PlanRecord | None
    problem: str

    @property
    def ok(self) -> bool:
        """Return whether the plan is whole and described."""
        return not self.problem


class PlanStore:
    """The folder of built plans, shared by all processes of a user."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use a folder; it is made when a plan is written.

        Args:
            folder: of the plans; None means `plans` in the user's cache folder.
        """
        self.folder = folder if folder is not None else user_cache_folder() / 'plans'

    def obtain(self, key: PlanKey, build: Callable[[], bytes]) -> Obtained:
        """Return the plan for a key, built now if there is none that can be used.

        Args:
            key: what is wanted.
            build: makes the plan; called by one process at a time.

        Raises:
            EngineError: the build fails, or the folder cannot be used.
        """
        self._prepare_folder()
        plan, reason = self._find(key)
        if plan is not None:
            return Obtained(plan, False, reason)
        with self._locked(key.name):
            # Another may have built it since the first look, whether or not we had to wait.
            plan, reason = self._find(key)
            if plan is not None:
                return Obtained(plan, False, 'built by another process meanwhile')
            with _writing(self.folder):
                damaged = self._clear(key.name)
            _LOG.log(logging.WARNING if damaged else logging.INFO, 'building %s: %s', key.name,
                     reason)
            started = time.monotonic()
            data = build()
            return Obtained(self._write(key, data, time.monotonic() - started), True, reason)

    def record_parity(self, key: PlanKey, figures: Mapping[str, float]) -> None:
        """Keep the figures of a comparison with the reference beside the plan.

        Raises:
            EngineError: there is no such plan.
        """
        record = self._read_record(key.name)
        with _writing(self.folder):
            self._write_record(replace(record, parity=dict(figures)))

    def write_options(self, name: str, text: str) -> None:
        """Keep how the plans of a model shall be built.

        Raises:
            EngineError: the folder cannot be used.
        """
        self._prepare_folder()
        with _writing(self.folder):
            write_text(self._path(name, OPTIONS), text)

    def read_options(self, name: str) -> bytes | None:
        """Return what `write_options` kept; None if there is nothing."""
        path = self._path(name, OPTIONS)
        return _read_regular(path, _MAX_RECORD_BYTES) if path.exists() else None

    def verify(self) -> list[Verdict]:
        """Check every plan in the store against its record."""
        return [self._verdict(name) for name in self._names(PLAN)]

    def prune(self, everything: bool = False) -> list[str]:
        """Remove what is of no use: leftovers of builds that were killed, and damaged plans.

        Args:
            everything: remove the whole plans as well.

        Returns:
            Names of the files that were removed. Plans that a process builds right now stay.
        """
        removed = []
        names = {*self._names(PLAN), *self._names(RECORD), *self._names(PLAN + SET_ASIDE)}
        names |= {match[1] for path in self._files() if (match := _LEFTOVER.fullmatch(path.name))}
        for name in sorted(name for name in names if not name.startswith('.')):
            stale_lock = self.folder / f'.{name}.lock'
            locks = [stale_lock.name] if stale_lock.exists() else []
            with self._locked(name, wait=False) as mine:
                if mine:
                    keep = not everything and self._verdict(name).ok
                    removed += self._remove(name, keep) + locks
        return removed

    def _find(self, key: PlanKey) -> tuple[StoredPlan | None, str]:
        """Return the plan if it can be used, and the reason why (not)."""
        if not os.path.lexists(self._path(key.name, PLAN)):
            return None, self._why_none(key)
        try:
            record = self._read_record(key.name)
            if reasons := key.differences(record.key):
                return None, '; '.join(reasons)
            return self._read_plan(key.name, record), 'found and checked'
        except EngineError as error:
            return None, str(error)

    def _why_none(self, key: PlanKey) -> str:
        """Say how the nearest plan of the same stage differs; it tells of an upgrade."""
        nearest: list[str] = []
        for name in self._names(RECORD):
            with contextlib.suppress(EngineError):
                found = self._read_record(name).key
                if (found.bundle, found.stage, found.builder) == (
                        key.bundle, key.stage, key.builder):
                    reasons = key.differences(found)
                    nearest = reasons if not nearest or len(reasons) < len(nearest) else nearest
        return f'the nearest does not fit: {"; ".join(nearest)}' if nearest else 'there is none'

    def _verdict(self, name: str) -> Verdict:
        try:
            record = self._read_record(name)
        except EngineError as error:
            return Verdict(name, None, str(error))
        try:
            if record.key.name != name:
                raise EngineError('the record describes another plan')
            self._read_plan(name, record)
        except EngineError as error:
            return Verdict(name, record, str(error))
        return Verdict(name, record, '')

    def _read_plan(self, name: str, record: PlanRecord) -> StoredPlan:
        path = self._path(name, PLAN)
        data = _read_regular(path, record.bytes)
        # The bytes that were hashed are those that the library gets: no second look at the file.
        if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
            raise EngineError(
                f'the plan {path} is damaged: it is not the file of {record.bytes} bytes that was '
                'written')
        return StoredPlan(path, data, record)

    def _read_record(self, name: str) -> PlanRecord:
        path = self._path(name, RECORD)
        try:
            return read_record(_read_regular(path, _MAX_RECORD_BYTES))
        except EngineError as error:
            raise EngineError(f'the record {path} cannot be used: {error}') from error

    def _write(self, key: PlanKey, data: bytes, build_s: float) -> StoredPlan:
        record = PlanRecord(key, hashlib.sha256(data).hexdigest(), len(data),
                            datetime.now(timezone.utc).isoformat(timespec='seconds'),
                            round(build_s, 2))
        path = self._path(key.name, PLAN)
        with _writing(self.folder):
            write_bytes(path, data)
            self._write_record(record)
        return StoredPlan(path, data, record)

    def _write_record(self, record: PlanRecord) -> None:
        write_text(self._path(record.key.name, RECORD), record.to_json())

    def _clear(self, name: str) -> bool:
        """Make room for a new plan; return whether there was one, which is kept aside, once."""
        for path in self._files():
            if re.fullmatch(rf'\.{re.escape(name)}\.(plan|json)\.\d+\.tmp', path.name):
                path.unlink(missing_ok=True)
        self._path(name, RECORD).unlink(missing_ok=True)
        plan = self._path(name, PLAN)
        was_there = os.path.lexists(plan)
        if was_there:
            os.replace(plan, self._path(name, PLAN + SET_ASIDE))
        sync_folder(self.folder)
        return was_there

    def _remove(self, name: str, keep: bool) -> list[str]:
        """Remove the files of a plan, the whole plan only if it is not to be kept."""
        temporary = re.compile(rf'\.{re.escape(name)}\.(plan|json)\.\d+\.tmp')
        doomed = [path for path in self._files() if temporary.fullmatch(path.name)]
        doomed.append(self._path(name, PLAN + SET_ASIDE))
        if not keep:
            # The record first: a plan without one is never used.
            doomed += [self._path(name, RECORD), self._path(name, PLAN)]
        doomed = [path for path in doomed if os.path.lexists(path)]
        for path in doomed:
            path.unlink()
        return [path.name for path in doomed]

    @contextlib.contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a plan; a killed process leaves none, the kernel drops it.

        Yields:
            Whether it is held; always, unless `wait` is off.
        """
        path = self.folder / f'.{name}.lock'
        started = time.monotonic()
        next_line_s, waited = _LOG_PERIOD_S, False
        while (descriptor := _try_lock(path)) is None:
            if not wait:
                yield False
                return
            if not waited:
                _LOG.info('another process builds %s; waiting for it', name)
            waited = True
            if time.monotonic() - started >= next_line_s:
                _LOG.info('waiting for another process to build %s: %.0f s', name, next_line_s)
                next_line_s += _LOG_PERIOD_S
            time.sleep(_LOCK_POLL_S)
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def _prepare_folder(self) -> None:
        """Make the folder, or refuse one that others may write to.

        Raises:
            EngineError: it cannot be used.
        """
        with _writing(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.folder.stat()
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise EngineError(
                f'other users may write to {self.folder}, and a plan is a program that they could '
                f'put there; check the folder, then chmod go-w {self.folder}')
        # Who owns a folder may write to it whatever its mode says; root may in any case.
        if status.st_uid not in (os.geteuid(), 0):
            raise EngineError(
                f'{self.folder} belongs to another user (id {status.st_uid}), and a plan is a '
                'program that they could put there; use a folder of your own, by XDG_CACHE_HOME')

    def _path(self, name: str, suffix: str) -> Path:
        """Return the path of a file of the store.

        Raises:
            EngineError: the name points out of the store.
        """
        if not name or name != Path(name).name or name.startswith('.') or '\0' in name:
            raise EngineError(
                f'{name!r} is not the name of a plan in {self.folder}; plans elsewhere are never '
                'read. `blabberseg engines list` shows the names')
        return self.folder / (name + suffix)

    def _names(self, suffix: str) -> list[str]:
        return sorted(path.name[:-len(suffix)] for path in self._files()
                      if path.name.endswith(suffix) and not path.name.startswith('.'))

    def _files(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir()
                      if path.is_symlink() or not path.is_dir())


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(
            f'plans cannot be written to {folder} ({error}); make room, or set XDG_CACHE_HOME to '
            'a folder that can be written') from error


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None if another process holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EngineError(f'{path} cannot be made ({error}); check the folder') from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before has removed the file: then this lock is one that nobody sees.
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _read_regular(path: Path, max_bytes: int) -> bytes:
    """Read a file that is neither a link out of the store nor a pipe, nor longer than expected.

    Raises:
        EngineError: it is, or it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, 'rb') as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise EngineError(f'{path} is not a regular file')
            if status.st_size > max_bytes:
                raise EngineError(f'{path} is damaged: it has {status.st_size} bytes, more than '
                                  f'{max_bytes}')
            return stream.read(status.st_size)
    except OSError as error:
        raise EngineError(f'{path} cannot be read ({error})') from error
