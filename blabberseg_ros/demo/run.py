# SPDX-License-Identifier: Apache-2.0
"""`make demo`: fly a simulated drone to safe ground over real ROS 2, then write a page about it.

Camera and heatmap node run in processes of their own. The pilot runs here.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from blabberseg_ros.bundle import find_bundle
from blabberseg_ros.demo.client import DemoClient
from blabberseg_ros.demo.page import write_page
from blabberseg_ros.demo.processes import NodeProcess, end
from blabberseg_ros.demo.progress import Progress
from blabberseg_ros.demo.recording import Flight
from blabberseg_ros.demo.report import Outcome, Setting, summary_table, write_report
from blabberseg_ros.demo.scoring import score
from blabberseg_ros.errors import BlabbersegError
from blabberseg_ros.nodes.large_images import make_room_for_images

CAMERA, HEATMAP = 'aerial_camera', 'generate_landing_heatmap'
EXECUTABLES = 'blabberseg_ros.nodes.executables'
# For the page's probability maps; more would slow down the answers that the flight needs.
STREAM_RATE_HZ = 2.0
DIAGNOSTICS_PERIOD_S = 0.5
START_TIMEOUT_S = 60.0
# The demo shall be over within a minute; a series shall show how many land.
TIME_LIMIT_S, SERIES_TIME_LIMIT_S = 45.0, 90.0
WAKE_UP_S = 0.05
LANDED_SAFELY, NOT_LANDED_SAFELY, BROKEN, INTERRUPTED = 0, 3, 1, 130


class _Broken(Exception):
    """A process ended, or never answered; the message says which and why."""


def fly(setting: Setting, time_limit_s: float, rate_hz: float, progress: Progress,
        folder: Path) -> Outcome:
    """Fly once.

    Args:
        setting: world, model and camera.
        time_limit_s: of the flight.
        rate_hz: of the camera.
        progress: where to show it.
        folder: for parameter files, logs and the cache of prompts.

    Returns:
        The outcome, not yet scored; `flight.problem` says what broke, if anything did.
    """
    flight, processes = Flight(), []
    started_s = time.monotonic()
    seconds: dict[str, float] = {}
    try:
        processes += [NodeProcess(name, EXECUTABLES, parameters, folder, executable)
                      for name, executable, parameters in _nodes(setting, rate_hz, folder)]
        rclpy.init(args=['--ros-args', '-p', f'time_limit_s:={time_limit_s:.3f}'],
                   signal_handler_options=SignalHandlerOptions.NO)
        client = DemoClient(progress)
        flight = client.flight
        try:
            _spin(client, processes)
        except _Broken as error:
            client.end(str(error), broken=True)
        seconds['start'] = time.monotonic() - started_s - flight.duration_s
        seconds['flight'] = flight.duration_s
        client.destroy_node()
    finally:
        rclpy.try_shutdown()
        ended_s = time.monotonic()
        exit_codes = end(processes)
        seconds['end'] = time.monotonic() - ended_s
    return Outcome(setting, flight, None, exit_codes, seconds)


def _nodes(setting: Setting, rate_hz: float,
           folder: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Return name, executable and parameters of the nodes."""
    width_px, height_px = setting.size_px
    return [
        (CAMERA, 'aerial_camera', {
            'seed': setting.seed, 'family': setting.family, 'width_px': width_px,
            'height_px': height_px, 'rate_hz': rate_hz, 'z_init': setting.height_m,
            'world_size_m': setting.world_size_m}),
        (HEATMAP, 'clipseg_node', {
            'bundle': setting.bundle, 'min_threshold': setting.min_threshold,
            'max_rate_hz': STREAM_RATE_HZ, 'diagnostics_period_s': DIAGNOSTICS_PERIOD_S,
            'cache_dir': str(folder / 'cache')}),
    ]


def _spin(client: DemoClient, processes: Sequence[NodeProcess]) -> None:
    """Run the flight to its end.

    Raises:
        _Broken: a process has ended, or the nodes are not ready in time.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(client)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    try:
        while not client.done:
            executor.spin_once(timeout_sec=WAKE_UP_S)
            for process in processes:
                if process.exit_code is not None:
                    raise _Broken(f'{process.name} ended with code {process.exit_code} in the '
                                  f'middle of the demo; its last lines:\n{process.last_lines()}')
            if not client.flying and time.monotonic() > deadline_s:
                logs = '\n'.join(process.last_lines() for process in processes)
                raise _Broken(f'camera and heatmap node were not ready within '
                              f'{START_TIMEOUT_S:.0f} s; their last lines:\n{logs}')
    finally:
        executor.shutdown(timeout_sec=1.0)


def scored(outcome: Outcome) -> Outcome:
    """Return the outcome with the ground under the touchdown."""
    touchdown_m, setting = outcome.flight.touchdown_m, outcome.setting
    if touchdown_m is None:
        return outcome
    started_s = time.monotonic()
    ground = score(setting.seed, setting.family, setting.world_size_m, *touchdown_m[:2])
    return replace(outcome, score=ground, seconds={
        **outcome.seconds, 'score': time.monotonic() - started_s})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog='make demo ARGS=...', description=__doc__.partition('\n')[0])
    parser.add_argument('--seed', type=int, default=2, help='world (default: %(default)s)')
    parser.add_argument('--seeds', type=_seeds, metavar='A..B',
                        help='fly once in each of these worlds and print a table')
    parser.add_argument('--family', default='', help='kind of world (default: by the seed)')
    parser.add_argument('--bundle', default='clipseg_demo',
                        help='model: folder or name (default: %(default)s)')
    parser.add_argument('--size', type=_size, default=(352, 352), metavar='WxH',
                        help='of the frames (default: 352x352)')
    parser.add_argument('--height', type=float, default=100.0, metavar='M',
                        help='at the start (default: %(default)s)')
    parser.add_argument('--world-size', type=float, default=300.0, metavar='M',
                        help='side of the world (default: %(default)s)')
    parser.add_argument('--rate', type=float, default=10.0, metavar='HZ',
                        help='of the camera (default: %(default)s)')
    parser.add_argument('--time-limit', type=float, metavar='S',
                        help=f'of a flight (default: {TIME_LIMIT_S:g}, with --seeds '
                             f'{SERIES_TIME_LIMIT_S:g})')
    parser.add_argument('--out', type=Path, default=Path('demo_output'), metavar='FOLDER',
                        help='where page and report go (default: %(default)s)')
    options = parser.parse_args(arguments)
    if options.time_limit is None:
        options.time_limit = SERIES_TIME_LIMIT_S if options.seeds else TIME_LIMIT_S
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 if every flight ended on safe ground."""
    options = parse(arguments)
    progress = Progress()
    # Ending by SIGTERM takes the same way as by Ctrl-C, so that no process is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(20 + os.getpid() % 80)
    make_room_for_images()
    try:
        bundle = str(find_bundle(options.bundle))
        outcomes = [_demonstrate(seed, bundle, options, progress)
                    for seed in options.seeds or [options.seed]]
    except BlabbersegError as error:
        progress.note(f'The demo cannot run: {error}')
        return BROKEN
    except KeyboardInterrupt:
        progress.note('Stopped. All nodes have been ended.')
        return INTERRUPTED
    if options.seeds:
        progress.note('\n' + summary_table(outcomes))
    if any(not outcome.finished for outcome in outcomes):
        return BROKEN
    safe = all(outcome.score is not None and outcome.score.safe for outcome in outcomes)
    return LANDED_SAFELY if safe else NOT_LANDED_SAFELY


def _demonstrate(seed: int, bundle: str, options: argparse.Namespace,
                 progress: Progress) -> Outcome:
    """Fly in one world, write page and report."""
    started_s = time.monotonic()
    setting = Setting(seed, options.family, bundle, options.size, options.world_size,
                      options.height)
    folder = options.out / f'seed_{seed}' if options.seeds else options.out
    progress.note(f'World {seed}: starting camera and heatmap node')
    with tempfile.TemporaryDirectory(prefix='blabberseg_demo_') as scratch:
        outcome = fly(setting, options.time_limit, options.rate, progress, Path(scratch))
    if not outcome.finished:
        progress.note(f'Broken off: {outcome.flight.problem}')
    outcome = scored(outcome)
    outcome.seconds['all'] = time.monotonic() - started_s
    write_page(outcome, folder / 'index.html')
    outcome.seconds['all'] = time.monotonic() - started_s
    write_report(outcome, folder / 'report.json')
    progress.note(f'{outcome.headline}. {outcome.seconds["all"]:.0f} s in all. '
                  f'Open {folder / "index.html"}')
    return outcome


def _seeds(text: str) -> list[int]:
    first, _, last = text.partition('..')
    return list(range(int(first), int(last or first) + 1))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    return int(width), int(height or width)


if __name__ == '__main__':
    sys.exit(main())
