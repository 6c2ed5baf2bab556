# SPDX-License-Identifier: Apache-2.0
"""Figures against a count by hand."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from blabberseg_ros.fpseg_tools.cityscapes import Frame
from blabberseg_ros.fpseg_tools.classes import ClassList
from blabberseg_ros.fpseg_tools.judge import Judge
from blabberseg_ros.fpseg_tools.metrics import Counts, Figures, figures_of
from blabberseg_ros.models.fpseg_config import FpSegConfig

CLASSES = ClassList(('left', 'all', 'top'), ((1, 3), (1, 2, 3), (3,)), ignored=(0,),
                    exclusive=('left', ))
SIDE = 16


def _judged(labels: np.ndarray, logits: np.ndarray, tmp_path: Path, classes: ClassList = CLASSES,
            fit: str = 'squash') -> Counts:
    path = tmp_path / 'labels.png'
    cv2.imwrite(str(path), labels)
    config = FpSegConfig(class_names=classes.names, input_size_px=64, fit=fit)
    judge = Judge(classes, config, torch.device('cpu'))
    return judge.count([Frame('one', path, path)], lambda frame: torch.from_numpy(logits),
                       iter, 1)


def test_counts_of_a_hand_made_frame(tmp_path: Path) -> None:
    labels = np.full((SIDE, SIDE), 2, np.uint8)
    labels[:, :8], labels[:4, :8], labels[:, 15] = 1, 3, 0
    logits = np.full((3, SIDE, SIDE), -9.0, np.float32)
    logits[0, :, 4:8] = logits[1] = logits[2, :8, :8] = 9.0
    counts = _judged(labels, logits, tmp_path)
    # The masks are enlarged to the input and taken back to their own size: edges stay in place.
    assert counts.intersection.tolist() == [[64, 240, 32]]
    assert counts.union.tolist() == [[128, 256, 64]]
    assert counts.intersection_counted.tolist() == [[64, 240, 32]]
    assert counts.union_counted.tolist() == [[128, 240, 64]]
    figures = figures_of(counts, np.array([[0, 0], [0, 0], [0, 2]]))
    assert figures.class_iou == pytest.approx((0.5, 1.0, 0.5))
    assert figures.miou == pytest.approx(2 / 3)
    assert figures.pooled_iou == pytest.approx((64 + 64 + 32) / (128 + 128 + 64))
    assert figures.loss > 1.0


def test_semantic_map_takes_the_highest_logit_among_exclusive_classes(tmp_path: Path) -> None:
    classes = ClassList(('a', 'b', 'both'), ((1,), (2,), (1, 2)), ignored=(0,),
                        exclusive=('a', 'b'))
    labels = np.full((SIDE, SIDE), 1, np.uint8)
    labels[:, 8:], labels[:2] = 2, 9
    logits = np.zeros((3, SIDE, SIDE), np.float32)
    # Below 0: the masks are empty, but a map still chooses.
    logits[0], logits[1], logits[2] = -1, -2, 5
    logits[1, :, 12:] = -0.5
    counts = _judged(labels, logits, tmp_path, classes)
    # Rows: a, b, none of them (the two upper lines); columns: chosen a, b.
    assert counts.confusion.tolist() == [[112, 0], [56, 56], [24, 8]]
    figures = figures_of(counts, np.array([[0, 2]]))
    assert figures.semantic_iou == pytest.approx((112 / 168, 56 / 112))
    assert figures.class_iou[0] == 0.0


def test_a_letterbox_is_cut_off(tmp_path: Path) -> None:
    labels = np.full((8, SIDE), 1, np.uint8)
    logits = np.full((3, SIDE, SIDE), 4.0, np.float32)
    logits[:, 8:] = -4.0
    inside = _judged(labels, logits, tmp_path, fit='letterbox')
    squashed = _judged(labels, logits, tmp_path)
    assert inside.intersection[0, 1] > 100 > squashed.intersection[0, 1] == 64


def test_what_never_occurs_has_no_figure() -> None:
    figures = figures_of(Counts.zeros(2, 3, 0), np.array([[0, 0]]))
    assert isinstance(figures, Figures)
    assert np.isnan([*figures.class_iou, figures.miou, figures.semantic_miou]).all()
