# SPDX-License-Identifier: Apache-2.0
"""Counting of pixels: logits of all classes against label maps."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from blabberseg_ros.backends.fpseg_fit import matrices_out
from blabberseg_ros.fpseg_tools.cityscapes import Frame, read_labels
from blabberseg_ros.fpseg_tools.classes import ClassList
from blabberseg_ros.fpseg_tools.metrics import Counts
from blabberseg_ros.models.fpseg_config import FpSegConfig

# Classes that are upsampled at once: 33 of them at 1024 x 2048 are 277 MB.
_GROUP = 8
Decode = Callable[[Frame], Tensor]


class Judge:
    """Compares a network's logits with label maps, at the size of the label maps."""

    def __init__(self, classes: ClassList, config: FpSegConfig, device: torch.device) -> None:
        """Keep the tables.

        Args:
            classes: in the order of the logits.
            config: of the network; its input size and fit count.
            device: to count on.
        """
        self._classes = classes
        self._config = config
        self._device = device
        self._member = torch.from_numpy(classes.membership()).to(device)
        self._counted = torch.ones(256, dtype=torch.bool, device=device)
        self._counted[list(classes.ignored)] = False
        self._exclusive = torch.tensor(
            [classes.names.index(name) for name in classes.exclusive], dtype=torch.long,
            device=device)
        # Label id to row of the confusion matrix; the last row is everything else.
        self._row = torch.full((256,), len(classes.exclusive), device=device)
        for index, name in enumerate(classes.exclusive):
            self._row[list(classes.ids_of(name))] = index

    def count(self, frames: Sequence[Frame], decode: Decode,
              show: Callable[[Iterable], Iterable], workers: int) -> Counts:
        """Count all classes of all frames.

        Args:
            frames: with label maps.
            decode: gives the logits [N, s, s] of a frame.
            show: shows progress.
            workers: threads that read label maps.
        """
        counts = Counts.zeros(len(frames), len(self._classes), len(self._exclusive))
        with ThreadPoolExecutor(workers) as pool, torch.inference_mode():
            maps = pool.map(lambda frame: read_labels(frame.labels), frames)
            for number, (frame, labels) in enumerate(show(zip(frames, maps, strict=True))):
                self._add(counts, number, decode(frame), labels)
        return counts

    def _add(self, counts: Counts, number: int, logits: Tensor, labels: np.ndarray) -> None:
        """Add one frame, some classes at a time."""
        config = self._config
        size = labels.shape[0], labels.shape[1]
        # As SAM ends, in one product: enlarge to the input, crop the letterbox, resize.
        rows, cols = (torch.tensor(matrix, device=self._device) for matrix in matrices_out(
            *size, (logits.shape[-1], config.input_size_px), config.fit, 1))
        ids = torch.from_numpy(labels).to(self._device).long()
        counted = self._counted[ids]
        for start in range(0, len(logits), _GROUP):
            span = slice(start, start + _GROUP)
            large = rows @ logits[span].to(self._device).float() @ cols
            true, found = self._member[span][:, ids], large > 0
            both, either = true & found, true | found
            counts.intersection[number, span] = _sums(both)
            counts.union[number, span] = _sums(either)
            counts.intersection_counted[number, span] = _sums(both & counted)
            counts.union_counted[number, span] = _sums(either & counted)
            loss = binary_cross_entropy_with_logits(large, true.float(), reduction='none')
            counts.loss[number, span] = loss.mean(dim=(1, 2)).double().cpu().numpy()
        if len(self._exclusive):
            large = rows @ logits[self._exclusive].to(self._device).float() @ cols
            cell = self._row[ids] * len(self._exclusive) + large.argmax(dim=0)
            counts.confusion[...] += torch.bincount(
                cell.reshape(-1), minlength=counts.confusion.size).reshape(
                    counts.confusion.shape).cpu().numpy()


def _sums(mask: Tensor) -> np.ndarray:
    return mask.sum(dim=(1, 2)).cpu().numpy()
