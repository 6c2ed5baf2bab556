# SPDX-License-Identifier: Apache-2.0
"""A process that builds a plan into a store and can be stopped at a chosen point; for tests.

    plan_builder.py BUNDLE FOLDER POINT

It prints `reached` at the point and `built` or `found` with the plan's checksum at the end.

Points: `building` stops inside the library's builder until it is told to end, `writing` before
the plan's file is flushed, `recording` between plan and record, `waiting` inside the builder until
the file FOLDER/../go is there, `none` nowhere.
"""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines import store as store_module
from blabberseg_ros.engines.build_progress import Progress
from blabberseg_ros.engines.store import PlanStore
from blabberseg_ros.engines.tensorrt import obtain_plan
from blabberseg_ros.engines.tensorrt_builder import TENSORRT_RTX, load_library
from blabberseg_ros.engines.tensorrt_options import BuildOptions

STAGE = 'film'
_LIMIT_S = 60.0


def main() -> int:
    """Build, or stop on the way."""
    # What a shell starts in the background has SIGINT ignored, and so have its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bundle, folder, point = load_bundle(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')
    library = load_library(TENSORRT_RTX)
    _install(point, folder.parent / 'go')
    try:
        obtained = obtain_plan(bundle, STAGE, library, BuildOptions(), PlanStore(folder))
    except KeyboardInterrupt:
        print('interrupted', flush=True)
        return 130
    print('built' if obtained.built else 'found', obtained.plan.record.sha256, flush=True)
    return 0


def _install(point: str, go: Path) -> None:
    if point in ('building', 'waiting'):
        step, reached = Progress.step, []

        def stop_in_step(self: Progress, phase: str, index: int) -> bool:
            if not reached:
                reached.append(True)
                _wait_for(lambda: self.cancelled.is_set() or (point == 'waiting' and go.exists()))
            return step(self, phase, index)

        Progress.step = stop_in_step
    elif point == 'writing':
        fsync = os.fsync

        def stop_in_fsync(descriptor: int) -> None:
            if '.plan.' in os.readlink(f'/proc/self/fd/{descriptor}'):
                _wait_for(lambda: False)
            fsync(descriptor)

        os.fsync = stop_in_fsync
    elif point == 'recording':
        store_module.write_text = lambda path, text: _wait_for(lambda: False)


def _wait_for(condition) -> None:
    print('reached', flush=True)
    deadline = time.monotonic() + _LIMIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == '__main__':
    sys.exit(main())
