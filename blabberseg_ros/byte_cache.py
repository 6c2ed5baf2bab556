# SPDX-License-Identifier: Apache-2.0
"""A cache that is bounded by what it holds in bytes, not by how many things.

A client may ask for images of any size, each of which has matrices and copies of its own: sixty of
them took 4.5 GB where caches counted entries.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar('Item')


class ByteCache(Generic[Item]):
    """The items used last, as many as fit; one that would not fit alone is not kept.

    Attributes:
        max_bytes: that all items may have together.
        nbytes: that they have.
    """

    def __init__(self, max_bytes: int) -> None:
        """Start empty."""
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._items: OrderedDict[Hashable, tuple[Item, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def obtain(self, key: Hashable, make: Callable[[], Item],
               size: Callable[[Item], int]) -> Item:
        """Return the item of a key, made now and kept if there is none.

        Args:
            key: of the item.
            make: makes it.
            size: returns its length in bytes.
        """
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
        item = make()
        self._keep(key, item, size(item))
        return item

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._items.clear()
            self.nbytes = 0

    def _keep(self, key: Hashable, item: Item, nbytes: int) -> None:
        with self._lock:
            if nbytes > self.max_bytes or key in self._items:
                return
            self._items[key] = item, nbytes
            self.nbytes += nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._items.popitem(last=False)[1][1]
