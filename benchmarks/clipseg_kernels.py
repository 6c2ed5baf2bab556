#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a new frame of full-size CLIPSeg runs on a GPU, kernel by kernel.

    python benchmarks/clipseg_kernels.py --out benchmarks/results/clipseg-kernels.csv

Thirteen prompts, 640x480, torch-cuda in fp16, random weights; times are those of torch's profiler.
"""

import argparse
import csv
import io
import itertools
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from blabberseg_ros.atomic import write_text
from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.bench import machine
from blabberseg_ros.bench.device_times import kernel_times
from blabberseg_ros.bench.jobs import MAIN_PROMPTS, MAIN_SIZE_PX, prompt_sets
from blabberseg_ros.bench.kernel_groups import KernelTime, group_of, sum_groups
from blabberseg_ros.bench.model import make_model
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.torch_cuda import TorchCuda
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.segmenter import Segmenter

FRAMES = 8  # more than the segmenter remembers
COLUMNS = ('date', 'commit', 'device', 'versions', 'group', 'kernel', 'launches', 'time_us')


def profile() -> list[KernelTime]:
    """Return the kernels of a frame, longest first."""
    frames = itertools.cycle(moving_frames(FRAMES, MAIN_SIZE_PX))
    prompts = prompt_sets(MAIN_PROMPTS)[0]
    with tempfile.TemporaryDirectory(prefix='blabberseg-kernels-') as folder:
        make_model(Path(folder) / 'model', graphs=False)
        bundle = load_bundle(Path(folder) / 'model')
        backend = backend_class(bundle.manifest.family)(bundle, TorchCuda())
        with Segmenter(backend) as segmenter:
            kernels = kernel_times(
                lambda: segmenter.segment(next(frames), prompts, with_probability=False))
    return sorted(kernels, key=lambda kernel: -kernel.time_us)


def main() -> int:
    """Profile, write, and print the groups."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--out', type=Path, required=True, help='CSV file')
    arguments = parser.parse_args()
    same = (datetime.now(timezone.utc).isoformat(timespec='seconds'), machine.commit(),
            machine.device_name('cuda'), machine.versions())
    kernels = profile()
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows([COLUMNS, *(
        (*same, group_of(kernel.name), kernel.name, round(kernel.calls, 2),
         round(kernel.time_us, 2)) for kernel in kernels)])
    write_text(arguments.out, out.getvalue())
    for group, time_us in sum_groups(kernels).items():
        print(f'{time_us:8.1f} us  {group}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
