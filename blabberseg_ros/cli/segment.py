# SPDX-License-Identifier: Apache-2.0
"""`blabberseg segment`: heatmaps of images, folders and videos, without ROS."""

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from blabberseg_ros.atomic import write_atomically, write_text
from blabberseg_ros.backends.values import LabelMap
from blabberseg_ros.cli.options import (
    add_class_options,
    add_fusion_options,
    add_model_options,
    add_prompt_options,
    fusion_from,
    gives_prompts,
    prompts_from,
)
from blabberseg_ros.cli.pictures import Frame, is_video, open_inputs, write_png
from blabberseg_ros.cli.timings import print_timings
from blabberseg_ros.errors import BlabbersegError, ImageError, PromptError
from blabberseg_ros.heatmap import FusionOptions, Heatmap
from blabberseg_ros.label_picture import side_by_side
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.segmenter import Segmenter
from blabberseg_ros.viz import overlay

_COLUMNS = ('frame', 'success', 'threshold', 'safe_fraction', 'total_ms', 'message')


@dataclass(frozen=True)
class _Answer:
    """What was found out about a frame.

    Attributes:
        row: of the table.
        mask: uint8 [H, W]; None if the frame is unreadable, or prompts say nothing to the model.
        labels: of a model that has its own.
        failed: whether the frame could not be read or segmented.
    """

    row: dict[str, object]
    mask: np.ndarray | None
    labels: LabelMap | None = None
    failed: bool = False


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'segment',
        description='Writes NAME_mask.png (255 safe, 0 not), NAME_overlay.png and heatmaps.csv; '
                    'for a video the overlay is a video as well. Models with labels of their own '
                    'add NAME_labels.png, coloured, with a legend, and write that alone if no '
                    'prompt is given and the default ones say nothing to them. Exit code 1 if a '
                    'frame could not be read or segmented; the latter gets a black mask.')
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
    count, frames = open_inputs([arguments.input])
    rows: list[dict[str, object]] = []
    failed: list[dict[str, object]] = []
    first: Frame | None = None
    with Segmenter.open(arguments.bundle, backend=arguments.backend, engine=arguments.engine,
                        device=arguments.device, classes_files=arguments.classes_file,
                        decode_budget_ms=arguments.decode_budget) as segmenter:
        refusal = _encode(segmenter, prompts, gives_prompts(arguments))
        video = _VideoOutput(arguments.input, arguments.out)
        for frame in tqdm(frames, total=count, unit='frame', desc=segmenter.engine_name):
            answer = _answer(segmenter, frame, None if refusal else prompts, fusion)
            if refusal and answer.labels is None and not answer.failed:
                raise refusal
            rows.append(answer.row)
            failed += [answer.row] if answer.failed else []
            _write(arguments.out, frame, answer, video)
            first = first or (None if frame.image is None else frame)
        video.close()
        _write_table(arguments.out / 'heatmaps.csv', rows)
        if arguments.timings:
            print_timings(segmenter, first)
    for row in failed[:10]:
        print(f'{row["frame"]}: {row["message"]}')
    safe = sum(bool(row.get('success')) for row in rows)
    found = 'labels alone' if refusal else f'{safe} with enough safe ground'
    print(f'{len(rows)} frames, {found}, {len(failed)} failed: {arguments.out}')
    return 1 if failed or not rows else 0


def _encode(segmenter: Segmenter, prompts: PromptSet, given: bool) -> PromptError | None:
    """Encode the prompts and say how they are read.

    Returns:
        None, or why there will be no mask: the prompts that stand in where the user gave none say
        nothing to the model.

    Raises:
        PromptError: a prompt of the user cannot be used.
    """
    try:
        report = segmenter.encode(prompts)
    except PromptError as error:
        if given:
            raise
        print(f'Note: no masks, since the default prompts say nothing to this model: {error}')
        return error
    if report.explanation:
        print(f'Note: {report.explanation}')
    return None


def _answer(segmenter: Segmenter, frame: Frame, prompts: PromptSet | None,
            fusion: FusionOptions) -> _Answer:
    """Segment a frame; one that fails is unsafe."""
    try:
        if frame.image is None:
            raise ImageError('the file is not an image that OpenCV can read')
        if prompts is None:
            return _Answer({'frame': frame.name, 'message': 'labels alone'}, None,
                           segmenter.label_map(frame.image))
        heatmap = segmenter.segment(frame.image, prompts, fusion)
        return _Answer(_row(frame.name, heatmap), heatmap.mask, segmenter.label_map(frame.image))
    except BlabbersegError as error:
        unsafe = (None if frame.image is None or prompts is None
                  else np.zeros(frame.image.shape[:2], np.uint8))
        return _Answer({'frame': frame.name, 'success': False, 'message': str(error)}, unsafe,
                       failed=True)


class _VideoOutput:
    """The overlay video of a video input; it takes its size from the first frame."""

    def __init__(self, source: Path, out: Path) -> None:
        self._wanted = is_video(source)
        self._path = out / f'{source.stem}_overlay.mp4'
        self._partial = self._path.with_name(f'.{self._path.stem}.tmp.mp4')
        self._rate = _frame_rate(source) if self._wanted else 0.0
        self._writer: cv2.VideoWriter | None = None

    def __bool__(self) -> bool:
        return self._wanted

    def add(self, picture: np.ndarray) -> None:
        """Append a frame: uint8 [H, W, 3], RGB.

        Raises:
            ImageError: OpenCV cannot write videos here; without the check it would write nothing.
        """
        if self._writer is None:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            size = (picture.shape[1], picture.shape[0])
            self._writer = cv2.VideoWriter(
                str(self._partial), cv2.VideoWriter.fourcc(*'mp4v'), self._rate, size)
            if not self._writer.isOpened():
                raise ImageError(f'OpenCV cannot write the video {self._path}: the folder takes '
                                 'no files, or this build has no MPEG-4 encoder. Give a folder '
                                 'of images instead of a video')
        self._writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file; only then does it get its name."""
        if self._writer is not None:
            self._writer.release()
            write_atomically(self._path, lambda temporary: self._partial.replace(temporary))


def _frame_rate(path: Path) -> float:
    rate = cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS)
    return rate if rate > 0 else 25.0


def _write(out: Path, frame: Frame, answer: _Answer, video: _VideoOutput) -> None:
    """Write mask and overlay, and of a model with labels the picture with its legend."""
    if frame.image is not None and answer.mask is not None:
        write_png(out / f'{frame.stem}_mask.png', answer.mask)
        picture = overlay(frame.image, answer.mask)
        if video:
            video.add(picture)
        else:
            write_png(out / f'{frame.stem}_overlay.png', picture)
    if frame.image is not None and answer.labels is not None:
        write_png(out / f'{frame.stem}_labels.png', side_by_side(
            frame.image, answer.labels.labels, answer.labels.names, fixed=True))


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
