# SPDX-License-Identifier: Apache-2.0
"""Which labels occur in which frame, and the examples that training and judging draw from it."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from blabberseg_ros.atomic import write_atomically
from blabberseg_ros.fpseg_tools.cityscapes import Frame, read_labels
from blabberseg_ros.fpseg_tools.progress import bar

_TABLE = 'presence'
_KEY = 'frames'


def label_presence(frames: Sequence[Frame], cache: Path, workers: int) -> np.ndarray:
    """Return whether a label id occurs in a frame: bool [F, 256].

    Reading all label maps of Cityscapes takes minutes, so the table is kept.

    Args:
        frames: with label maps.
        cache: file to keep the table in; it is made anew when a label map has changed.
        workers: threads.

    Raises:
        ParameterError: a label map cannot be read.
    """
    key = _state_of(frames)
    try:
        with safe_open(cache, 'np') as stream:
            if (stream.metadata() or {}).get(_KEY) == key:
                return stream.get_tensor(_TABLE).astype(bool)
    except (OSError, SafetensorError):
        pass  # absent or damaged: it can be made again
    with ThreadPoolExecutor(workers) as pool:
        rows = list(bar(pool.map(_labels_of, frames), 'reading label maps', len(frames)))
    table = np.stack(rows)
    write_atomically(cache, lambda path: save_file({_TABLE: table}, path, {_KEY: key}))
    return table


def class_presence(labels: np.ndarray, membership: np.ndarray) -> np.ndarray:
    """Return whether a class occurs in a frame.

    Args:
        labels: bool [F, 256], from `label_presence`.
        membership: bool [N, 256], from `ClassList.membership`.

    Returns:
        bool [F, N].
    """
    return (labels[:, None] & membership).any(axis=2)


def draw_examples(presence: np.ndarray, per_class: int, p_neg_max: float,
                  seed: Sequence[int]) -> np.ndarray:
    """Draw frames for each class, as FPSeg's recipe does, but repeatably.

    A frame that shows the class is drawn with the share of such frames, and at least with
    1 - p_neg_max: at most p_neg_max of the examples are empty masks (specification of FPSeg, 4.7).

    Args:
        presence: bool [F, N].
        per_class: examples of each class.
        p_neg_max: largest share of frames without the class.
        seed: numbers that decide the draw.

    Returns:
        int64 [per_class · N, 2] of frame and class, the classes taking turns.
    """
    rng = np.random.default_rng(list(seed))
    examples = np.zeros((per_class, presence.shape[1], 2), np.int64)
    for index, shows in enumerate(presence.T):
        with_class, without = np.flatnonzero(shows), np.flatnonzero(~shows)
        share = max(len(with_class) / len(shows), 1.0 - p_neg_max)
        positive = rng.random(per_class) < share
        if not len(with_class) or not len(without):
            positive[:] = bool(len(with_class))
        place = rng.random(per_class)
        for chosen, pool in ((positive, with_class), (~positive, without)):
            if chosen.any():
                examples[chosen, index, 0] = pool[(place[chosen] * len(pool)).astype(np.int64)]
        examples[:, index, 1] = index
    return examples.reshape(-1, 2)


def _labels_of(frame: Frame) -> np.ndarray:
    return np.bincount(read_labels(frame.labels).reshape(-1), minlength=256) > 0


def _state_of(frames: Sequence[Frame]) -> str:
    """Return a hash of the label maps' names, sizes and times."""
    digest = hashlib.sha256()
    for frame in frames:
        status = frame.labels.stat()
        digest.update(f'{frame.stem} {status.st_size} {status.st_mtime_ns}\n'.encode())
    return digest.hexdigest()
