# SPDX-License-Identifier: Apache-2.0
"""`blabberseg bench --bundle NAME` of any family but CLIPSeg: frames a second of what is given."""

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.bench.machine import device_name, memory_mb
from blabberseg_ros.bench.records import NEW_FRAME, Row, Times, make_row
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.cli.bench_lseg import chosen_kinds, finish
from blabberseg_ros.cli.options import gives_prompts, prompts_from
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.errors import EngineError
from blabberseg_ros.frame_cache import MAX_FRAMES
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.segmenter import Segmenter

_FRAMES = MAX_FRAMES + 1  # so that each is new to the segmenter
_CAMERA_PX = (640, 480)


def run(arguments: argparse.Namespace, bundle: Bundle) -> int:
    """Measure, print the table and write the CSV."""
    rows = list(_measure(bundle, arguments))
    lines = ['', f'{"engine":22} {"":5} {"prompts":>7} {"input":>8} {"p50 ms":>9} {"p99 ms":>9} '
                 f'{"frames/s":>9}']
    lines += [f'{row.engine:22} {row.precision:5} {row.prompts:7} {row.input:>8} '
              f'{row.p50_ms:9.2f} {row.p99_ms:9.2f} {row.frames_per_s:9.1f}' for row in rows]
    return finish(arguments, bundle, rows, lines)


def _measure(bundle: Bundle, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure every engine; one that fails is named and left out."""
    for kind in chosen_kinds(arguments, bundle):
        try:
            yield from _measure_engine(bundle, kind, arguments)
        except EngineError as error:
            print(f'{kind.name} is left out: {error}', flush=True)


def _measure_engine(bundle: Bundle, kind: EngineKind,
                    arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure new frames with known prompts, from the image to the mask, both on the host."""
    from blabberseg_ros.bench.timing import Limits, repeat

    limits = Limits(5, 2.0) if arguments.quick else Limits()
    backend = backend_class(bundle.manifest.family)(bundle, kind)
    prompts = prompts_from(arguments) if gives_prompts(arguments) else backend.example_prompts()
    side_px = bundle.manifest.input_size_px
    with Segmenter(backend) as segmenter:
        for size_px in dict.fromkeys(((side_px, side_px), _CAMERA_PX)):
            frames = moving_frames(_FRAMES, size_px)

            def ask(index: int, frames: list[np.ndarray] = frames) -> None:
                segmenter.segment(frames[index % _FRAMES], prompts, with_probability=False)

            row = make_row(device_name(kind.device), kind.name, segmenter.precision, NEW_FRAME,
                           Times.of(repeat(ask, limits)), prompts=len(prompts), size_px=size_px)
            yield replace(row, resident_mb=memory_mb('VmRSS'))
