#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What bounds an FPSeg answer of torch-cuda in fp16: copies, kernels or arithmetic.

    python benchmarks/fpseg_bound.py --out benchmarks/results/fpseg-bound.csv

MobileSAM with random weights, which changes no speed. Times go to --out in the columns of
`blabberseg bench`, all else (copies, kernels, operations, ratios) to OUT-figures.csv beside it.
Both are written after each section. One that fails says why and the others go on; the exit code is
then 1. Without a GPU only the operations are counted.
"""

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from blabberseg_ros.atomic import write_text
from blabberseg_ros.backends.base import Query
from blabberseg_ros.backends.fpseg import FpSegBackend
from blabberseg_ros.backends.fpseg_fit import matrices_out
from blabberseg_ros.bench import machine, records
from blabberseg_ros.bench.device_times import (
    Graph,
    capture_stage,
    device_ms,
    kernel_times,
    on_device,
    wall_ms,
)
from blabberseg_ros.bench.fpseg_plain import plain_masks
from blabberseg_ros.bench.kernel_groups import group_of, sum_groups
from blabberseg_ros.bench.model import write_model
from blabberseg_ros.bench.records import Row, Run, Times, make_row, write_rows
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.torch_cuda import TorchCuda
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import ENCODERS, FpSegConfig
from blabberseg_ros.models.fpseg_stages import FusionWithBackground
from blabberseg_ros.models.random_fpseg import random_fpseg
from blabberseg_ros.segmenter import Segmenter

UPSTREAM, OURS, HOST = 'upstream, eager', TorchCuda.name, 'host to host'
# More than the segmenter remembers, so that every frame is a new one.
FRAMES = 8


class Report:
    """What was measured so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Start empty."""
        self.asked = arguments
        self.rows: list[Row] = []
        self.figures: list[tuple[str, str, float, str]] = []
        self.p50_ms: dict[tuple[str, str], float] = {}
        self.failed = False
        self._run = Run(datetime.now(timezone.utc).isoformat(timespec='seconds'),
                        machine.commit(), machine.threads(), 'random-mobilesam',
                        machine.versions())

    def times(self, engine: str, detail: str, times_ms: list[float]) -> None:
        """Add a row."""
        times = Times.of(times_ms)
        scenario = records.NEW_FRAME if detail.startswith(HOST) else records.STAGE
        row = make_row(machine.device_name('cuda'), engine, 'fp16' if engine == OURS else 'fp32',
                       scenario, times, prompts=self.asked.classes,
                       size_px=tuple(self.asked.size), detail=detail)
        self.rows.append(replace(row, resident_mb=machine.memory_mb('VmRSS')))
        self.p50_ms[engine, detail] = times.p50_ms
        print(f'{engine:16} {detail:28} p50 {times.p50_ms:9.4f} ms  p99 {times.p99_ms:9.4f} ms')

    def figure(self, section: str, name: str, value: float, unit: str) -> None:
        """Add a figure."""
        self.figures.append((section, name, round(value, 5), unit))
        if section != 'kernel':
            print(f'{section:24} {name:44} {value:12.4f} {unit}')

    @contextmanager
    def section(self, title: str) -> Iterator[None]:
        """Let what is inside fail by itself, and write what there is."""
        print(f'-- {title}', flush=True)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a run on a lent GPU cannot be repeated
            self.failed = True
            print(f'{title} failed: {type(error).__name__}: {error}', flush=True)
        out: Path = self.asked.out
        write_rows(out, self._run, self.rows)
        stream = io.StringIO()
        csv.writer(stream, lineterminator='\n').writerows(
            [('section', 'name', 'value', 'unit'), *self.figures])
        write_text(out.with_name(f'{out.stem}-figures.csv'), stream.getvalue())


def main() -> int:
    """Run all sections; see the module's documentation."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--out', type=Path, required=True, help='CSV file of the times')
    parser.add_argument('--classes', type=int, default=8)
    parser.add_argument('--prompt-size', type=int, default=32, help='tokens a class')
    parser.add_argument('--size', type=int, nargs=2, default=(2048, 1024), help='of a frame, px')
    parser.add_argument('--input-size', type=int, default=1024, help='of the network, px')
    parser.add_argument('--repeats', type=int, default=100)
    parser.add_argument('--peak-tflops', type=float, default=790.0,
                        help='default: dense half-precision products of an H200, as measured')
    report = Report(parser.parse_args())
    asked = report.asked
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    config = FpSegConfig(
        encoder=ENCODERS['mobilesam'], input_size_px=asked.input_size,
        class_names=tuple(f'class {n}' for n in range(asked.classes)),
        prompt_size=asked.prompt_size)
    width, height = asked.size
    frames = list(np.random.default_rng(0).integers(0, 256, (FRAMES, height, width, 3), np.uint8))
    with report.section('operations'):
        count_operations(report, config)
    with tempfile.TemporaryDirectory(prefix='blabberseg-bound-') as folder:
        with report.section('model'):
            model = random_fpseg(config)
            write_model(model, Path(folder) / 'bundle', graphs=False)
        if not torch.cuda.is_available():
            print('torch finds no GPU here, so nothing was timed')
            return 1
        with report.section('upstream'), torch.inference_mode():
            time_upstream(report, model.cuda(), frames)
        with report.section(OURS):
            backend = FpSegBackend(load_bundle(Path(folder) / 'bundle'), TorchCuda('fp16'))
            with Segmenter(backend) as segmenter:
                time_ours(report, segmenter, frames)
    with report.section('bounds'):
        compare(report)
    return int(report.failed)


def count_operations(report: Report, config: FpSegConfig) -> None:
    """Count multiplications and additions of the eager network, without running it."""
    width, height = report.asked.size
    model = FpSeg(config).to('meta').eval().requires_grad_(False)
    side, grid = config.input_size_px, config.grid
    pixels = torch.empty(1, 3, side, side, device='meta')
    code = torch.empty(1, config.width, grid, grid, device='meta')
    matrices = matrices_out(height, width, (config.mask_size_px, side), config.fit,
                            FusionOptions().blur_kernel_size)
    back = [torch.empty(matrix.shape, device='meta') for matrix in matrices]
    logits = torch.empty(report.asked.classes, *[config.mask_size_px] * 2, device='meta')
    tokens = model.prompt_encoder.prompt_embeddings
    stages: dict[str, Callable[[], Any]] = {
        'image_encoder': lambda: model.encode_images(pixels),
        'decoder': lambda: model.decode(code, tokens),
        'fusion': lambda: FusionWithBackground()(logits, logits[:, 0, 0], *back)}
    for name, stage in stages.items():
        with FlopCounterMode(display=False) as counter:
            stage()
        report.figure('operations', name, counter.get_total_flops() / 1e9, 'GFLOP')


def time_upstream(report: Report, model: FpSeg, frames: list[np.ndarray]) -> None:
    """Time FPSeg's own way: eager, fp32, each class enlarged to the image."""
    side = (model.config.input_size_px,) * 2
    classes = list(range(report.asked.classes))
    size = frames[0].shape[:2]

    def masks(image: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(cv2.resize(image, side)).cuda().permute(2, 0, 1)
        return plain_masks(model, pixels, classes, size).cpu().numpy()

    repeats = max(report.asked.repeats // 3, 2)
    report.times(UPSTREAM, HOST, wall_ms(lambda i: masks(frames[i % FRAMES]), repeats))
    pixels = torch.from_numpy(cv2.resize(frames[0], side)).cuda().permute(2, 0, 1)
    report.times(UPSTREAM, 'device only',
                 device_ms(lambda: plain_masks(model, pixels, classes, size), repeats))


def time_ours(report: Report, segmenter: Segmenter, frames: list[np.ndarray]) -> None:
    """Time a frame, its copies and its stages, and profile the stages' kernels."""
    backend = segmenter.backend
    prompts = backend.example_prompts(report.asked.classes)
    repeats = report.asked.repeats
    with report.section('new frame'):
        report.times(OURS, HOST, wall_ms(lambda i: segmenter.segment(
            frames[i % FRAMES], prompts, with_probability=False), repeats))
    fed = {name: record(backend.engine(name)) for name in ('image_encoder', 'answer')}
    codes = backend.encode_prompts(backend.texts(prompts))
    query = Query(prompts.is_positive, FusionOptions(), frames[0].shape[:2],
                  with_probability=False)
    report.times(OURS, f'{HOST}, no frame kept', wall_ms(lambda i: backend.answer(
        backend.encode_image(frames[i % FRAMES]), codes, query), repeats))
    with report.section('copies'):
        time_copies(report, frames)
    stages = backend.kind.acquire(backend.bundle)
    graphs: dict[str, Graph] = {}
    runs: dict[str, tuple[Callable[[], object], ...]] = {}
    values = {name: on_device(value) for name, value in fed['answer'].items()}
    for name in ('image_encoder', 'answer', 'decoder', 'fusion'):
        with report.section(f'{name}, device only'):
            function, inputs, _ = stages.stage(name)
            given = ({key: on_device(value) for key, value in fed[name].items()}
                     if name == 'image_encoder' else {spec.name: values[spec.name]
                                                      for spec in inputs})
            graphs[name] = capture_stage(function, given)
            runs[name] = (graphs[name][0].replay, partial(function, **given))
            report.times(OURS, f'{name}, device only', device_ms(graphs[name][0].replay, repeats))
            if name == 'decoder':
                values['logits'] = on_device(graphs[name][1]['logits'])
    with report.section('a frame, device only'):
        parts = [graphs[name][0] for name in ('image_encoder', 'answer')]
        report.times(OURS, 'device only', device_ms(
            lambda: [graph.replay() for graph in parts], repeats))
    with report.section('kernels'), torch.inference_mode():
        profile_kernels(report, runs)
    graphs.clear()
    runs.clear()
    backend.kind.release(backend.bundle)


def time_copies(report: Report, frames: list[np.ndarray]) -> None:
    """Time what the engine's graphs copy, a frame to the device and a mask back, on its own."""
    pinned = torch.empty(frames[0].shape, dtype=torch.uint8).pin_memory()
    frame = torch.empty_like(pinned, device='cuda')
    mask = torch.zeros(frames[0].shape[:2], dtype=torch.uint8, device='cuda')
    arrived = torch.empty_like(mask, device='cpu').pin_memory()

    def there(index: int) -> None:
        np.copyto(pinned.numpy(), frames[index % FRAMES])
        frame.copy_(pinned, non_blocking=True)

    def back() -> None:
        arrived.copy_(mask, non_blocking=True)
        torch.cuda.synchronize()
        arrived.numpy().copy()

    steps: dict[str, Callable[[int], object]] = {
        'copies, there and back': lambda i: (there(i), back()),
        'copy of the frame': lambda i: (there(i), torch.cuda.synchronize()),
        'copy of the mask': lambda i: back()}
    for name, step in steps.items():
        report.times(OURS, name, wall_ms(step, report.asked.repeats))
    report.figure('copies', 'frame', frames[0].nbytes / 1e6, 'MB')
    report.figure('copies', 'mask', mask.nbytes / 1e6, 'MB')


def profile_kernels(report: Report, runs: dict[str, tuple[Callable[[], object], ...]]) -> None:
    """Sum the device time of a frame's kernels by what they do."""
    # A profiler that sees nothing of a graph sees the same kernels launched one by one.
    by_stage = {name: next(filter(None, map(kernel_times, runs[name])), [])
                for name in ('image_encoder', 'answer') if name in runs}
    everything = [kernel for kernels in by_stage.values() for kernel in kernels]
    total = sum(kernel.time_us for kernel in everything)
    if not total:
        raise RuntimeError('the profiler saw no kernels')
    for name, kernels in (*by_stage.items(), ('frame', everything)):
        for group, time_us in sum_groups(kernels).items():
            report.figure(f'{name}, kernels', group, time_us, 'us')
            report.figure(f'{name}, kernels', group, 100 * time_us / total, '% of the frame')
        report.figure(f'{name}, kernels', 'launches', sum(each.calls for each in kernels), '')
    for stage, kernels in by_stage.items():
        for kernel in sorted(kernels, key=lambda each: -each.time_us):
            label = f'{stage}: {group_of(kernel.name)}: {kernel.calls:g} x {kernel.name[:160]}'
            report.figure('kernel', label, kernel.time_us, 'us')


def compare(report: Report) -> None:
    """Set the times against each other, against the operations and against the peak."""
    times = report.p50_ms
    for part in ('copies, there and back', 'device only'):
        if (OURS, part) in times and (OURS, HOST) in times:
            report.figure('share of a new frame', part,
                          100 * times[OURS, part] / times[OURS, HOST], '%')
    for detail in (HOST, 'device only'):
        if (UPSTREAM, detail) in times and (OURS, detail) in times:
            report.figure('times faster than upstream', detail,
                          times[UPSTREAM, detail] / times[OURS, detail], 'x')
    flop = {name: value for section, name, value, _ in report.figures if section == 'operations'}
    flop['answer'] = flop['decoder'] + flop['fusion']
    for name, giga in (*flop.items(), ('frame', flop['image_encoder'] + flop['answer'])):
        taken = times.get((OURS, 'device only' if name == 'frame' else f'{name}, device only'))
        if taken:
            report.figure('arithmetic', name, giga / taken, 'TFLOP/s')
            report.figure('arithmetic', name, 100 * giga / taken / report.asked.peak_tflops,
                          f'% of {report.asked.peak_tflops:g} TFLOP/s')


def record(engine: Any) -> dict[str, Any]:
    """Return what an engine is fed from now on, as it comes."""
    fed: dict[str, Any] = {}
    infer = engine.infer

    def noted(feeds: dict[str, Any]) -> dict[str, Any]:
        fed.update(feeds)
        return infer(feeds)

    engine.infer = noted
    return fed


if __name__ == '__main__':
    sys.exit(main())
