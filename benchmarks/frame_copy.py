#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Copying a frame within host memory, by one thread and by torch's, beside busy processes.

    python benchmarks/frame_copy.py --out benchmarks/results/frame-copy.csv

On its way to a GPU a frame goes through pinned memory. `ratio_p99` is the p99 of the copy by one
thread beside as many busy processes, over the row's.
"""

import argparse
import csv
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from blabberseg_ros.atomic import write_text
from blabberseg_ros.bench import machine
from blabberseg_ros.bench.records import Times
from blabberseg_ros.parity.frames import moving_frames

SIZE_PX = (640, 480)
FRAMES = 8
PAUSE_S = 0.0005
SETTLE_S = 0.3
COLUMNS = ('date', 'commit', 'device', 'versions', 'threads', 'busy_processes', 'n', 'p50_ms',
           'p90_ms', 'p99_ms', 'ratio_p99')


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep as many cores busy."""
    running = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(count)]
    try:
        time.sleep(SETTLE_S)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(copy: Callable[[np.ndarray], object], repeats: int) -> Times:
    """Time copies of frames that follow each other with a pause, as a camera's do."""
    frames = moving_frames(FRAMES, SIZE_PX)
    times_ms = []
    for index in range(repeats):
        started = time.perf_counter()
        copy(frames[index % FRAMES])
        times_ms.append((time.perf_counter() - started) * 1e3)
        time.sleep(PAUSE_S)
    return Times.of(times_ms)


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=4000)
    parser.add_argument('--out', type=Path, required=True, help='CSV file')
    arguments = parser.parse_args()
    target = torch.empty((SIZE_PX[1], SIZE_PX[0], 3), dtype=torch.uint8)
    threads = torch.get_num_threads()
    same = (datetime.now(timezone.utc).isoformat(timespec='seconds'), machine.commit(),
            machine.device_name('cpu'), machine.versions())
    out = io.StringIO()
    table = csv.writer(out, lineterminator='\n')
    table.writerow(COLUMNS)
    for busy in range(threads + 1):
        with busy_processes(busy):
            one = measure(lambda frame: np.copyto(target.numpy(), frame), arguments.repeats)
            several = measure(lambda frame: target.copy_(torch.from_numpy(frame)),
                              arguments.repeats)
        for count, times in ((1, one), (threads, several)):
            table.writerow((*same, count, busy, times.n, times.p50_ms, times.p90_ms, times.p99_ms,
                            round(one.p99_ms / times.p99_ms, 3)))
            print(f'{busy} busy, {count} threads: p50 {times.p50_ms:.3f} p99 {times.p99_ms:.3f} '
                  'ms', flush=True)
    write_text(arguments.out, out.getvalue())
    return 0


if __name__ == '__main__':
    sys.exit(main())
