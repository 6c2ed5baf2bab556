# SPDX-License-Identifier: Apache-2.0
"""`blabberseg segment`: heatmaps of images, folders and videos, without ROS."""

import argparse
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from blabberseg_ros.atomic import write_atomically, write_bytes, write_text
from blabberseg_ros.cli.options import (
    add_class_options,
    add_fusion_options,
    add_model_options,
    add_prompt_options,
    fusion_from,
    prompts_from,
)
from blabberseg_ros.cli.timings import print_timings
from blabberseg_ros.errors import BlabbersegError, ImageError
from blabberseg_ros.heatmap import Heatmap
from blabberseg_ros.label_picture import side_by_side
from blabberseg_ros.segmenter import Segmenter
from blabberseg_ros.viz import overlay

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v')
_COLUMNS = ('frame', 'success', 'threshold', 'safe_fraction', 'total_ms', 'message')


@dataclass(frozen=True)
class Frame:
    """One picture of the input: its name, and uint8 [H, W, 3] RGB or None if unreadable."""

    name: str
    image: np.ndarray | None


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'segment',
        description='Writes NAME_mask.png (255 safe, 0 not), NAME_overlay.png and heatmaps.csv; '
                    'for a video the overlay is a video as well. Models with labels of their own '
                    'add NAME_labels.png, coloured, with a legend. Exit code 1 if a frame could '
                    'not be read or segmented; the latter gets a black mask.')
    parser.add_argument('input', type=Path, metavar='IMAGE|VIDEO|FOLDER')
    parser.add_argument('--out', type=Path, default=Path('heatmaps'), metavar='FOLDER',
                        help='where to write (default: %(default)s)')
    parser.add_argument('--timings', action='store_true',
                        help='of Segformer: measure loading, preprocessing, '
                             'inference and postprocessing on the first frame, beside '
                             'postprocessing on the CPU')
    add_prompt_options(parser)
    add_fusion_options(parser)
    add_model_options(parser)
    add_class_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segment everything and write the results."""
    from tqdm import tqdm

    prompts, fusion = prompts_from(arguments), fusion_from(arguments)
    count, frames = open_input(arguments.input)
    rows: list[dict[str, object]] = []
    with Segmenter.open(arguments.bundle, backend=arguments.backend, engine=arguments.engine,
                        device=arguments.device, classes_files=arguments.classes_file,
                        decode_budget_ms=arguments.decode_budget) as segmenter:
        report = segmenter.encode(prompts)
        if report.explanation:
            print(f'Note: {report.explanation}')
        video = _VideoOutput(arguments.input, arguments.out)
        for frame in tqdm(frames, total=count, unit='frame', desc=segmenter.engine_name):
            try:
                if frame.image is None:
                    raise ImageError('the file is not an image that OpenCV can read')
                heatmap = segmenter.segment(frame.image, prompts, fusion)
                _write(arguments.out, frame.name, frame.image, heatmap.mask, video)
                _write_labels(arguments.out, frame, segmenter)
                rows.append(_row(frame.name, heatmap))
            except BlabbersegError as error:
                rows.append({'frame': frame.name, 'success': False, 'message': str(error)})
                if frame.image is not None:
                    unsafe = np.zeros(frame.image.shape[:2], np.uint8)
                    _write(arguments.out, frame.name, frame.image, unsafe, video)
        video.close()
        if arguments.timings:
            print_timings(segmenter, arguments.input)
    _write_table(arguments.out / 'heatmaps.csv', rows)
    failed = [row for row in rows if 'threshold' not in row]
    for row in failed[:10]:
        print(f'{row["frame"]}: {row["message"]}')
    safe = sum(bool(row['success']) for row in rows)
    print(f'{len(rows)} frames, {safe} with enough safe ground, {len(failed)} failed: '
          f'{arguments.out}')
    return 1 if failed or not rows else 0


def open_input(path: Path) -> tuple[int | None, Iterator[Frame]]:
    """Return the number of frames, if it is known, and the frames.

    Raises:
        ImageError: there is nothing to segment at this path.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ImageError(f'{path} holds no images ({", ".join(IMAGE_SUFFIXES)})')
        return len(files), (Frame(file.name, _read_image(file)) for file in files)
    if not path.is_file():
        raise ImageError(f'{path} does not exist; give an image, a video or a folder of images')
    if path.suffix.lower() in VIDEO_SUFFIXES:
        capture = cv2.VideoCapture(str(path))
        if not capture.isOpened():
            raise ImageError(f'{path} cannot be opened as a video; is the file complete?')
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        return (count if count > 0 else None), _video_frames(path, capture)
    image = _read_image(path)
    if image is None:
        raise ImageError(f'{path} is not an image that OpenCV can read')
    return 1, iter([Frame(path.name, image)])


class _VideoOutput:
    """The overlay video of a video input; it takes its size from the first frame."""

    def __init__(self, source: Path, out: Path) -> None:
        self._wanted = source.suffix.lower() in VIDEO_SUFFIXES and source.is_file()
        self._path = out / f'{source.stem}_overlay.mp4'
        self._partial = self._path.with_name(f'.{self._path.stem}.tmp.mp4')
        self._rate = _frame_rate(source) if self._wanted else 0.0
        self._writer: cv2.VideoWriter | None = None

    def __bool__(self) -> bool:
        return self._wanted

    def add(self, picture: np.ndarray) -> None:
        """Append a frame: uint8 [H, W, 3], RGB."""
        if self._writer is None:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            size = (picture.shape[1], picture.shape[0])
            self._writer = cv2.VideoWriter(
                str(self._partial), cv2.VideoWriter.fourcc(*'mp4v'), self._rate, size)
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file; only then does it get its name."""
        if self._writer is not None:
            self._writer.release()
            write_atomically(self._path, lambda temporary: self._partial.replace(temporary))


def _frame_rate(path: Path) -> float:
    rate = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
    return rate if rate > 0 else 25.0


def _read_image(path: Path) -> np.ndarray | None:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _video_frames(path: Path, capture: cv2.VideoCapture) -> Iterator[Frame]:
    index = 0
    while True:
        ok, image = capture.read()
        if not ok:
            return
        yield Frame(f'{path.stem}_{index:06d}', cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        index += 1


def _write(out: Path, name: str, image: np.ndarray, mask: np.ndarray,
           video: _VideoOutput) -> None:
    stem = Path(name).stem
    picture = overlay(image, mask)
    _write_png(out / f'{stem}_mask.png', mask)
    if video:
        video.add(picture)
    else:
        _write_png(out / f'{stem}_overlay.png', picture[..., ::-1])


def _write_labels(out: Path, frame: Frame, segmenter: Segmenter) -> None:
    """Write the coloured overlay with its legend, if the model has labels."""
    found = segmenter.label_map(frame.image) if frame.image is not None else None
    if frame.image is not None and found is not None:
        picture = side_by_side(frame.image, found.labels, found.names, fixed=True)
        _write_png(out / f'{Path(frame.name).stem}_labels.png', picture[..., ::-1])


def _write_png(path: Path, picture: np.ndarray) -> None:
    ok, data = cv2.imencode('.png', picture)
    if not ok:
        raise ImageError(f'OpenCV cannot encode {path}')
    write_bytes(path, data.tobytes())


def _row(name: str, heatmap: Heatmap) -> dict[str, object]:
    return {'frame': name, 'success': heatmap.success,
            'threshold': f'{heatmap.threshold:.4f}',
            'safe_fraction': f'{np.count_nonzero(heatmap.mask) / heatmap.mask.size:.4f}',
            'total_ms': f'{heatmap.timings.total_ms:.2f}', 'message': heatmap.message}


def _write_table(path: Path, rows: list[dict[str, object]]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())
