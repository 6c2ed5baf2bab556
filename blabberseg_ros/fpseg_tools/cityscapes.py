# SPDX-License-Identifier: Apache-2.0
"""Images and label maps in the layout of Cityscapes, by path.

- ROOT/leftImg8bit/SPLIT/CITY/STEM_leftImg8bit.png
- ROOT/gtFine/SPLIT/CITY/STEM_gtFine_labelIds.png
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from blabberseg_ros.errors import ParameterError

IMAGES = 'leftImg8bit'
Annotation = Literal['gtFine', 'gtCoarse']


@dataclass(frozen=True)
class Frame:
    """One picture of the data set: its stem, which is unique in a split, and its files."""

    stem: str
    image: Path
    labels: Path


def image_path(root: Path, split: str, city: str, stem: str) -> Path:
    """Return where an image lies."""
    return root / IMAGES / split / city / f'{stem}_{IMAGES}.png'


def labels_path(root: Path, split: str, city: str, stem: str,
                annotation: Annotation = 'gtFine') -> Path:
    """Return where a label map lies."""
    return root / annotation / split / city / f'{stem}_{annotation}_labelIds.png'


def list_frames(root: Path, split: str, *, labelled: bool,
                annotation: Annotation = 'gtFine') -> tuple[Frame, ...]:
    """Return the frames of a split, sorted by stem.

    Args:
        root: of the data set.
        split: for example `train`, `val` or `train_extra`.
        labelled: refuse frames without a label map.
        annotation: which label maps.

    Raises:
        ParameterError: there are none, or a file is missing.
    """
    folder = root / IMAGES / split
    if not folder.is_dir():
        known = [path.name for path in sorted((root / IMAGES).glob('*')) if path.is_dir()]
        raise ParameterError(
            f'{folder} is not a folder. The data set lies as Cityscapes does: '
            f'ROOT/{IMAGES}/SPLIT/CITY/*_{IMAGES}.png; splits found: '
            f'{", ".join(known) or "none"}')
    images = sorted(folder.glob(f'*/*_{IMAGES}.png'), key=lambda path: path.name)
    if not images:
        raise ParameterError(f'{folder} holds no CITY/*_{IMAGES}.png')
    frames = []
    for image in images:
        stem = image.name.removesuffix(f'_{IMAGES}.png')
        frames.append(Frame(
            stem, image, labels_path(root, split, image.parent.name, stem, annotation)))
    bare = [frame for frame in frames if not frame.labels.is_file()] if labelled else []
    if bare:
        raise ParameterError(f'{len(bare)} of {len(frames)} frames of {split!r} have no label '
                             f'map; the first that is missing is {bare[0].labels}')
    if len({frame.stem for frame in frames}) != len(frames):
        raise ParameterError(f'{folder} has two images of the same name in different cities')
    return tuple(frames)


def read_image(path: Path) -> np.ndarray:
    """Return an image: uint8 [H, W, 3], RGB.

    Raises:
        ParameterError: it cannot be read.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ParameterError(f'{path} is not an image that OpenCV can read; is it complete?')
    return np.ascontiguousarray(image[..., ::-1])


def read_labels(path: Path) -> np.ndarray:
    """Return a label map: uint8 [H, W].

    Raises:
        ParameterError: it cannot be read, or is no map of 8-bit ids.
    """
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise ParameterError(f'{path} is not an image that OpenCV can read; is it complete?')
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ParameterError(f'{path} is not a map of label ids (one 8-bit channel)')
    return labels
