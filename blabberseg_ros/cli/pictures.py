# SPDX-License-Identifier: Apache-2.0
"""Pictures that commands read, the names that their results get, and pictures that they write."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from blabberseg_ros.atomic import write_bytes
from blabberseg_ros.errors import ImageError

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')


@dataclass(frozen=True)
class Frame:
    """One picture of the input.

    Attributes:
        name: for the user; with the stem, where that does not follow from the file's name.
        stem: beginning of the names of its results, which no other frame of the input has.
        image: uint8 [H, W, 3] RGB, or None if unreadable.
        path: of the image file; None for a frame of a video.
    """

    name: str
    stem: str
    image: np.ndarray | None
    path: Path | None = None


def open_inputs(paths: Sequence[Path]) -> tuple[int | None, Iterator[Frame]]:
    """Return the number of frames, if it is known, and the frames.

    Args:
        paths: images, videos and folders of images.

    Raises:
        ImageError: there is nothing to be read at one of these paths.
    """
    stems = _Stems()
    counts, parts = zip(*(_open_input(path, stems) for path in paths), strict=True)
    total = None if None in counts else sum(counts)
    return total, (frame for part in parts for frame in part)


def read_inputs(paths: Sequence[Path],
                limit: int | None = None) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yield each frame and its image, uint8 [H, W, 3], RGB.

    Args:
        paths: images, videos and folders of images.
        limit: most frames; None is all.

    Raises:
        ImageError: one cannot be read.
    """
    for index, frame in enumerate(open_inputs(paths)[1]):
        if limit is not None and index >= limit:
            return
        if frame.image is None:
            raise ImageError(f'{frame.name} is not an image that OpenCV can read; leave it out')
        yield frame, frame.image


def is_video(path: Path) -> bool:
    """Return whether a path is that of a video file."""
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture: uint8 [H, W, 3], RGB, or uint8 [H, W].

    Raises:
        ImageError: OpenCV cannot encode it.
    """
    ok, data = cv2.imencode('.png', picture[..., ::-1] if picture.ndim == 3 else picture)
    if not ok:
        raise ImageError(f'OpenCV cannot encode {path}')
    write_bytes(path, data.tobytes())


class _Stems:
    """Gives each stem once: a second `x` is `x_2`, or one would overwrite the other's results."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, wanted: str) -> str:
        number, stem = 1, wanted
        while stem in self._taken:
            number += 1
            stem = f'{wanted}_{number}'
        self._taken.add(stem)
        return stem


def _open_input(path: Path, stems: _Stems) -> tuple[int | None, Iterator[Frame]]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ImageError(f'{path} holds no images ({", ".join(IMAGE_SUFFIXES)})')
        return len(files), (_image_frame(file, _read_image(file), stems) for file in files)
    if not path.is_file():
        raise ImageError(f'{path} does not exist; give an image, a video or a folder of images')
    if is_video(path):
        capture = cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise ImageError(f'{path} cannot be opened as a video; is the file complete?')
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return (count if count > 0 else None), _video_frames(path, capture, stems)
    image = _read_image(path)
    if image is None:
        raise ImageError(f'{path} is not an image that OpenCV can read')
    return 1, iter([_image_frame(path, image, stems)])


def _image_frame(path: Path, image: np.ndarray | None, stems: _Stems) -> Frame:
    stem = stems.unique(path.stem)
    name = path.name if stem == path.stem else f'{path.name} ({stem})'
    return Frame(name, stem, image, path)


def _video_frames(path: Path, capture: cv2.VideoCapture, stems: _Stems) -> Iterator[Frame]:
    index = 0
    while True:
        ok, image = capture.read()
        if not ok:
            return
        stem = stems.unique(f'{path.stem}_{index:06d}')
        yield Frame(stem, stem, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        index += 1


def _read_image(path: Path) -> np.ndarray | None:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
