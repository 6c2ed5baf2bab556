# SPDX-License-Identifier: Apache-2.0
"""Training examples: an embedding, a class and the mask that is wanted, read ahead by threads."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

from blabberseg_ros.backends.fpseg_fit import fitted_size
from blabberseg_ros.fpseg_tools.cityscapes import Frame, read_labels
from blabberseg_ros.fpseg_tools.embedding_store import EmbeddingStore

Job = TypeVar('Job')
Item = TypeVar('Item')


@dataclass(frozen=True)
class Example:
    """One frame and one class.

    Attributes:
        embedding: [C, g, g], as it is stored.
        class_index: of the class that is looked for.
        mask: bool [T, T], where the class is.
        inside: bool [T, T], where the image is; None without a letterbox.
    """

    embedding: np.ndarray
    class_index: int
    mask: np.ndarray
    inside: np.ndarray | None = None


class ExampleSource:
    """Reads examples; safe to call from several threads."""

    def __init__(self, frames: Sequence[Frame], store: EmbeddingStore, membership: np.ndarray,
                 target_size_px: int, cache_mib: int) -> None:
        """Remember where things lie.

        Args:
            frames: with label maps.
            store: has their embeddings.
            membership: bool [N, 256], from `ClassList.membership`.
            target_size_px: side of the masks.
            cache_mib: memory for label maps that were read once.
        """
        self._frames = frames
        self._store = store
        self._membership = membership
        self._size_px = target_size_px
        self._room = (cache_mib << 20) // max(target_size_px ** 2, 1)
        self._kept: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._lock = threading.Lock()

    def read(self, frame: int, class_index: int) -> Example:
        """Return the example of a frame and a class."""
        labels, inside = self._labels(frame)
        mask = self._membership[class_index][labels]
        if inside is not None:
            mask &= inside
        return Example(self._store.read(self._frames[frame].stem), class_index, mask, inside)

    def _labels(self, frame: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a label map at the masks' size, and where the image is in it."""
        known = self._kept.get(frame)
        if known is not None:
            return known
        large = read_labels(self._frames[frame].labels)
        height, width = fitted_size(large.shape[0], large.shape[1], self._size_px,
                                     self._store.header.fit)
        labels = np.zeros((self._size_px, self._size_px), np.uint8)
        labels[:height, :width] = cv2.resize(
            large, (width, height), interpolation=cv2.INTER_NEAREST)
        inside = None
        if (height, width) != labels.shape:
            inside = np.zeros(labels.shape, bool)
            inside[:height, :width] = True
        with self._lock:
            if len(self._kept) < self._room // 2:
                self._kept[frame] = labels, inside
        return labels, inside


def read_ahead(jobs: Sequence[Job], read: Callable[[Job], Item], pool: ThreadPoolExecutor,
               ahead: int) -> Iterator[Item]:
    """Yield what `read` gives for each job, in order, with some jobs under way in threads."""
    waiting: deque[Future[Item]] = deque()
    upcoming = iter(jobs)
    try:
        for job in upcoming:
            waiting.append(pool.submit(read, job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
