# SPDX-License-Identifier: Apache-2.0
"""How far a tool is: a bar on a terminal, a line now and then in a log."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar('Item')
_TERMINAL_INTERVAL_S, _LOG_INTERVAL_S = 0.1, 10.0


def bar(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Pass items on and show how many have come.

    Args:
        items: to pass on.
        title: what is done with them.
        total: how many will come; by default the length of `items`, if it has one.
    """
    yield from tqdm(items, desc=title, total=total, mininterval=_interval_s())


def counter(title: str, total: int, done: int = 0) -> 'tqdm[None]':
    """Return a bar that is moved by its `update`."""
    return tqdm(desc=title, total=total, initial=done, mininterval=_interval_s())


def _interval_s() -> float:
    return _TERMINAL_INTERVAL_S if sys.stderr.isatty() else _LOG_INTERVAL_S
