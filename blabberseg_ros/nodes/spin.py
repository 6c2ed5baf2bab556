# SPDX-License-Identifier: Apache-2.0
"""Run a node until it is told to stop, whatever its callbacks raise."""

import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import rclpy
from rclpy.executors import (
    Executor,
    ExternalShutdownException,
    MultiThreadedExecutor,
    SingleThreadedExecutor,
)
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from blabberseg_ros.errors import BlabbersegError
from blabberseg_ros.nodes.large_images import make_room_for_images
from blabberseg_ros.nodes.logs import log_to_node

# An idle `spin` sometimes sleeps through a signal, so waiting is cut into slices.
WAKE_UP_S = 0.1
REFUSED_TO_START = 2


class ThreadsExecutor(MultiThreadedExecutor):
    """rclpy's executor with several threads, which are given each task once.

    Until a thread has begun with a task, rclpy hands it out again and again (ros2/rclpy#1452;
    #1547 mends it upstream, the Kilted of PyPI does not have that yet). In 18 s of a demo flight
    it handed out 16,000 to 36,000, kept up to 4,350 of them in a list that it searches, and
    requests reached their callback up to 0.8 s late; with this executor, 8 ms.
    """

    def __init__(self, num_threads: int) -> None:
        """Start no thread yet."""
        super().__init__(num_threads)
        self._executor = _Pool(num_threads)


class _Pool(ThreadPoolExecutor):
    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads)
        self._queued: dict[Callable[..., Any], threading.Event] = {}

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Queue a task unless it is queued already, and wait a while until it begins.

        Returns:
            Nothing: rclpy asks the task itself what became of it.
        """
        begun = self._queued.get(fn)
        if begun is None:
            begun = self._queued[fn] = threading.Event()
            super().submit(self._run, begun, fn, *args, **kwargs)
        begun.wait(WAKE_UP_S)

    def _run(self, begun: threading.Event, fn: Callable[..., Any], *args: Any,
             **kwargs: Any) -> Any:
        del self._queued[fn]
        begun.set()
        return fn(*args, **kwargs)


def run_node(create: Callable[[], Node], arguments: Sequence[str] | None, num_threads: int,
             stop: Callable[[Any], None] = lambda node: None) -> int:
    """Create a node and spin it until SIGINT or SIGTERM.

    rclpy's own signal handlers are not used: they end the context under callbacks that are still
    publishing, and SIGINT becomes a KeyboardInterrupt wherever the interpreter happens to be.

    Args:
        create: makes the node; a BlabbersegError that it raises is printed as one line.
        arguments: of the command line; None takes those of the process.
        num_threads: of the executor; with 1, one callback runs at a time.
        stop: is called with the node after the last spin, while it can still publish.

    Returns:
        Exit code: 0, or 2 if the node refused to start.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Set even where it was inherited as ignored, as by processes that a shell script started
        # in the background.
        signal.signal(number, lambda *_: stopping.set())
    make_room_for_images()
    rclpy.init(args=None if arguments is None else list(arguments),
               signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = create()
    except BlabbersegError as error:
        print(f'The node does not start: {error}', file=sys.stderr)
        rclpy.try_shutdown()
        return REFUSED_TO_START
    log_to_node(node.get_logger())
    executor = ThreadsExecutor(num_threads) if num_threads > 1 else SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while rclpy.ok() and not stopping.is_set():
            _spin_once(executor, node)
    finally:
        stop(node)
        executor.shutdown(timeout_sec=1.0)
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _spin_once(executor: Executor, node: Node) -> None:
    """Run what is ready. An exception of any callback, rclpy's own included, ends up here."""
    try:
        executor.spin_once(timeout_sec=WAKE_UP_S)
    except ExternalShutdownException:
        return
    # rclpy raises in the executor for a malformed parameter message, for one. The node stays.
    except Exception as error:
        node.get_logger().error(f'a callback failed, the node goes on: {error!r}',
                                throttle_duration_sec=1.0)
