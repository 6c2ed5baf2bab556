# SPDX-License-Identifier: Apache-2.0
"""`blabberseg segment --timings`: the four figures of segformer_jetson_nano.

    deserialise   the model from the disk to the device
    preprocess    the image from the file to memory, not measured of a video; resizing and
                  normalising are part of the network's graph here, and of `inference`
    inference     from the bytes of the image to the label logits
    postprocess   from the logits to a coloured overlay with its legend

Beside the last stand two ways on the CPU, on the same logits: that program's own, which chooses on
the small map and resizes the colours, and the one that gives our labels, which resizes the logits.
"""

import time
from collections.abc import Callable

import cv2
import numpy as np

from blabberseg_ros.backends.segformer import SegformerBackend, resized_labels
from blabberseg_ros.cli.pictures import Frame
from blabberseg_ros.errors import ImageError, ParameterError
from blabberseg_ros.label_picture import voc_colours
from blabberseg_ros.segmenter import Segmenter

REPEATS = 10


def print_timings(segmenter: Segmenter, frame: Frame | None) -> None:
    """Measure an active model on one frame and print the medians.

    Raises:
        ImageError: there is no frame that could be read.
        ParameterError: the model has no labels of its own.
    """
    if frame is None or frame.image is None:
        raise ImageError('--timings needs a frame that can be read, and there is none')
    image, backend = frame.image, segmenter.backend
    if not isinstance(backend, SegformerBackend):
        raise ParameterError(f'--timings is for Segformer, whose image code is the scores of its '
                             f'labels, and {segmenter.bundle.manifest.name} is of the family '
                             f'{backend.family}')
    size = (image.shape[0], image.shape[1])
    code = backend.encode_image(image)
    logits, names = backend.to_host(code), backend.config.labels

    def ours() -> object:
        return overlay_with_legend(image, backend.label_map(code, size).labels, names)

    segmenter.deactivate()
    deserialise_ms = _median_ms(backend.activate, 1)
    code = backend.encode_image(image)
    backend.label_map(code, size)
    path = frame.path
    figures = (
        ('deserialise', deserialise_ms),
        *([('preprocess (reading the file)', _median_ms(
            lambda: cv2.imread(str(path), cv2.IMREAD_COLOR)))] if path else []),
        # The copy to the host waits for the device; it is part of the figure.
        ('inference (resizing, normalising, network)',
         _median_ms(lambda: backend.to_host(backend.encode_image(image)))),
        ('postprocess', _median_ms(ours)),
        ('  label map alone', _median_ms(lambda: backend.label_map(code, size))),
        ('CPU, logits resized', _median_ms(
            lambda: overlay_with_legend(image, resized_labels(logits, size), names))),
        ('CPU, colours resized', _median_ms(lambda: resized_colours(image, logits, names))))
    print(f'\n{segmenter.engine_name} {segmenter.precision}, {frame.name}, {size[1]}x{size[0]}, '
          f'median of {REPEATS}')
    for name, value in figures:
        print(f'  {name:42} {value:9.2f} ms')


def overlay_with_legend(image: np.ndarray, labels: np.ndarray,
                        names: tuple[str, ...]) -> np.ndarray:
    """Return an image in the colours of its labels, with the legend of that program on top.

    Args:
        image: uint8 [H, W, 3], RGB.
        labels: uint8 [H, W].
        names: of all labels.

    Returns:
        uint8 [H, W, 3], RGB.
    """
    return _blended(image, voc_colours(len(names))[labels], names)


def resized_colours(image: np.ndarray, logits: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Return an overlay as segformer_jetson_nano makes it.

    Labels are chosen on the small map and their colours are resized, so that borders show colours
    of neither side.
    """
    small = voc_colours(len(names))[logits.argmax(0)]
    return _blended(image, cv2.resize(small, image.shape[1::-1]), names)


def _blended(image: np.ndarray, colours: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    picture = cv2.addWeighted(image, 0.5, colours, 0.5, 0.0)
    for index, (name, colour) in enumerate(zip(names, voc_colours(len(names)), strict=True)):
        top = 20 * index
        cv2.rectangle(picture, (0, top), (20, top + 20), tuple(map(int, colour)), cv2.FILLED)
        cv2.putText(picture, f'{name} (ID: {index})', (22, top + 15), cv2.FONT_HERSHEY_SIMPLEX,
                    0.5, (255, 255, 255), 1)
    return picture


def _median_ms(call: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times))
