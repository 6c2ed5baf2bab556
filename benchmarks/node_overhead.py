#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What ROS adds: the service's round trip less the segmenter's own time, and the node's memory.

    python benchmarks/node_overhead.py --out benchmarks/results/node.csv

A heatmap node in its own process answers one request after the other, each with a frame that it
has not seen. The round trip is measured by the client, from the call to the reply in its hands;
the segmenter's time of the same request by the node itself.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from std_msgs.msg import Header

from blabberseg_ros.bench.machine import commit, device_name, memory_mb, versions
from blabberseg_ros.bench.records import Row, Run, Times, make_row, write_rows
from blabberseg_ros.demo.processes import NodeProcess, end
from blabberseg_ros.nodes import heatmap_node
from blabberseg_ros.nodes.diagnostics import Statistics
from blabberseg_ros.nodes.images import to_message
from blabberseg_ros.nodes.large_images import make_room_for_images
from blabberseg_ros.prompts import default_prompts

NAME = heatmap_node.NODE_NAME
TIMINGS = 'BLABBERSEG_BENCHMARK_TIMINGS'
START_TIMEOUT_S, ANSWER_TIMEOUT_S = 120.0, 30.0
# More than the segmenter remembers, so that each frame is new to it.
FRAMES = 24


def serve() -> int:
    """Run the node, and write down the segmenter's time of each answer when it ends."""
    times_ms: list[float] = []
    answered = Statistics.answered

    def noted(self: Statistics, heatmap: Any, kind: str) -> None:
        times_ms.append(heatmap.timings.total_ms)
        answered(self, heatmap, kind)

    Statistics.answered = noted  # type: ignore[method-assign]
    code = heatmap_node.main()
    Path(os.environ[TIMINGS]).write_text(json.dumps(times_ms), encoding='utf-8')
    return code


class Client:
    """Asks for heatmaps, one at a time."""

    def __init__(self) -> None:
        """Connect."""
        self.node = rclpy.create_node('node_overhead')
        self._client: Any = self.node.create_client(GetLandingHeatmap, NAME)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)

    def ask(self, frame: np.ndarray) -> tuple[bool, float]:
        """Return success and the round trip in milliseconds."""
        request = GetLandingHeatmap.Request(
            image=to_message(frame, 'rgb8', Header()), safety_threshold=0.8,
            blur_kernel_size=15, dynamic_threshold=0.1)
        started_s = time.perf_counter()
        future = self._client.call_async(request)
        self._executor.spin_until_future_complete(future, ANSWER_TIMEOUT_S)
        took_ms = (time.perf_counter() - started_s) * 1e3
        response = future.result() if future.done() else None
        return response is not None and response.success, took_ms

    def wait(self, frame: np.ndarray, process: NodeProcess) -> None:
        """Wait until the node answers with success."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and process.exit_code is None:
            if self._client.wait_for_service(1.0) and self.ask(frame)[0]:
                return
            time.sleep(0.2)
        raise SystemExit(f'the node does not answer:\n{process.last_lines()}')


@contextmanager
def live_node(bundle: str, folder: Path) -> Iterator[NodeProcess]:
    """Run the node in its own process, with its prompt cache in `folder`."""
    os.environ[TIMINGS] = str(folder / 'timings.json')
    process = NodeProcess(NAME, Path(__file__).stem, {
        'bundle': bundle, 'cache_dir': str(folder / 'cache'), 'min_threshold': 0.0}, folder)
    try:
        yield process
    finally:
        end([process])


def frames(width_px: int, height_px: int) -> list[np.ndarray]:
    """Return frames that differ, of noise smooth enough to be an image: uint8 [H, W, 3]."""
    random = np.random.default_rng(0)
    cells = (FRAMES, height_px // 16 + 1, width_px // 16 + 1, 3)
    coarse = random.integers(0, 256, cells, np.uint8)
    return [np.ascontiguousarray(each.repeat(16, 0).repeat(16, 1)[:height_px, :width_px])
            for each in coarse]


def measure(bundle: str, size_px: tuple[int, int], count: int, warm_up: int) -> list[Row]:
    """Return a row each for round trip, segmenter and overhead."""
    with tempfile.TemporaryDirectory(prefix='node_overhead_') as scratch:
        folder, images, trips_ms = Path(scratch), frames(*size_px), []
        with live_node(bundle, folder) as process:
            client = Client()
            client.wait(images[0], process)
            for number in range(warm_up + count):
                success, took_ms = client.ask(images[number % FRAMES])
                if not success:
                    raise SystemExit(f'request {number} failed:\n{process.last_lines()}')
                trips_ms.append(took_ms)
            resident_mb, highest_mb, shared_mb = (
                memory_mb(name, process.pid) for name in ('VmRSS', 'VmHWM', 'RssShmem'))
        own_ms = json.loads((folder / 'timings.json').read_text(encoding='utf-8'))
    trip, own = np.array(trips_ms[-count:]), np.array(own_ms[-count:])
    print(f'node: {resident_mb:.0f} MB resident, of them {shared_mb:.0f} MB shared with others; '
          f'{highest_mb:.0f} MB at most')
    rows = []
    for detail, times_ms in (('round trip', trip), ('segmenter', own), ('overhead', trip - own)):
        times = Times.of(times_ms.tolist())
        print(f'{detail:10}: p50 {times.p50_ms:6.2f} ms, p90 {times.p90_ms:6.2f}, '
              f'p99 {times.p99_ms:6.2f}')
        row = make_row(device_name('cpu'), 'node', '', 'service', times, size_px=size_px,
                       prompts=len(default_prompts()), detail=detail)
        rows.append(replace(row, resident_mb=resident_mb))
    return rows


def main() -> int:
    """Measure and write the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--bundle', default='clipseg_demo')
    parser.add_argument('--size', default='640x480', metavar='WxH')
    parser.add_argument('--requests', type=int, default=200)
    parser.add_argument('--warm-up', type=int, default=20)
    parser.add_argument('--out', type=Path, help='CSV file')
    options = parser.parse_args()
    width_px, _, height_px = options.size.partition('x')
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(20 + os.getpid() % 80)
    os.environ['PYTHONPATH'] = os.pathsep.join(
        [str(Path(__file__).resolve().parent), *sys.path[1:]])
    make_room_for_images()
    rclpy.init()
    rows = measure(options.bundle, (int(width_px), int(height_px)), options.requests,
                   options.warm_up)
    rclpy.try_shutdown()
    if options.out:
        run = Run(datetime.now(timezone.utc).isoformat(timespec='seconds'), commit(),
                  os.cpu_count() or 1, Path(options.bundle).name, versions())
        write_rows(options.out, run, rows)
    return 0


if __name__ == '__main__':
    sys.exit(serve() if TIMINGS in os.environ else main())
