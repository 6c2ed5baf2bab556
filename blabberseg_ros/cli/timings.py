# SPDX-License-Identifier: Apache-2.0
"""`blabberseg segment --timings`: the four figures of segformer_jetson_nano.

    deserialise   the model from the disk to the device
    preprocess    the image from the file to memory; resizing and normalising are part of the
                  network's graph here, and of `inference`
    inference     from the bytes of the image to the label logits
    postprocess   from the logits to a coloured overlay with its legend

Beside the last stands that program's way, on the same logits: the label of each pixel of the small
map, its colour, and the colours resized, all on the CPU.
"""

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from blabberseg_ros.errors import ImageError, ParameterError
from blabberseg_ros.label_picture import side_by_side, voc_colours
from blabberseg_ros.segmenter import Segmenter

REPEATS = 10


def print_timings(segmenter: Segmenter, path: Path) -> None:
    """Measure an active model on one image and print the medians.

    Raises:
        ImageError: the path is not an image.
        ParameterError: the model has no labels of its own.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        raise ImageError(f'--timings needs one image, and {path} is none')
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    backend, size = segmenter.backend, (image.shape[0], image.shape[1])
    code = backend.encode_image(image)
    found = backend.label_map(code, size)
    if found is None:
        raise ParameterError(f'--timings is for models with labels of their own, and '
                             f'{segmenter.bundle.manifest.name} has none')
    logits = backend.to_host(code)

    def ours() -> object:
        labels = backend.label_map(code, size)
        return labels and side_by_side(image, labels.labels, labels.names, fixed=True)

    segmenter.deactivate()
    deserialise_ms = _median_ms(segmenter.backend.activate, 1)
    code = backend.encode_image(image)
    backend.label_map(code, size)
    figures = (
        ('deserialise', deserialise_ms),
        ('preprocess', _median_ms(lambda: cv2.imread(str(path), cv2.IMREAD_COLOR))),
        # The copy to the host waits for the device; it is part of the figure.
        ('inference', _median_ms(lambda: backend.to_host(backend.encode_image(image)))),
        ('postprocess', _median_ms(ours)),
        ('postprocess on the CPU', _median_ms(lambda: plain_overlay(image, logits))))
    print(f'\n{segmenter.engine_name} {segmenter.precision}, {path.name}, {size[1]}x{size[0]}, '
          f'median of {REPEATS}')
    for name, value in figures:
        print(f'  {name:24} {value:9.2f} ms')


def plain_overlay(image: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return an overlay as segformer_jetson_nano makes it, on the CPU.

    Labels are chosen on the small map and their colours are resized, so that borders show colours
    of neither side. Its legend lists every label.

    Args:
        image: uint8 [H, W, 3], RGB.
        logits: float32 [L, s, s].

    Returns:
        uint8 [H, W, 3], RGB.
    """
    colours = voc_colours(len(logits))
    small = colours[logits.argmax(0)]
    full = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    picture = cv2.addWeighted(image, 0.5, full, 0.5, 0.0)
    for index, colour in enumerate(colours):
        top = 20 * index
        cv2.rectangle(picture, (0, top), (20, top + 20), tuple(map(int, colour)), cv2.FILLED)
        cv2.putText(picture, f'label (ID: {index})', (22, top + 15), cv2.FONT_HERSHEY_SIMPLEX,
                    0.5, (255, 255, 255), 1)
    return picture


def _median_ms(call: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times))
