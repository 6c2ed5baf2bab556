# SPDX-License-Identifier: Apache-2.0
"""The executor of the heatmap node, on rclpy itself."""

import threading
import time

import pytest
import rclpy
from rclpy.executors import MultiThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from blabberseg_ros.nodes.spin import ThreadsExecutor

THREADS = 2


@pytest.fixture
def make_executor():
    """Return a maker of executors, all of which are shut down afterwards."""
    initialised = not rclpy.ok()
    if initialised:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    made = []

    def make(kind):
        made.append(kind(THREADS))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(timeout_sec=5.0)
    if initialised:
        rclpy.shutdown()


def spin_until(executor, condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        executor.spin_once(timeout_sec=0.01)


@pytest.mark.parametrize('kind', [ThreadsExecutor, MultiThreadedExecutor])
def test_a_task_is_queued_once_however_long_the_threads_are_busy(make_executor, kind):
    executor, let_go, begun = make_executor(kind), threading.Event(), []

    def work(name):
        begun.append(name)
        assert let_go.wait(20)

    tasks = [executor.create_task(work, name) for name in 'abc']
    spin_until(executor, lambda: len(begun) == THREADS)
    for _ in range(10):
        executor.spin_once(timeout_sec=0.01)
    queued = executor._executor._work_queue.qsize()
    let_go.set()
    spin_until(executor, lambda: all(task.done() for task in tasks))
    assert sorted(begun) == ['a', 'b', 'c'], 'each once'
    if kind is ThreadsExecutor:
        assert queued == 1
    elif queued == 1:
        pytest.skip('rclpy hands out each task once by itself: ThreadsExecutor can go')


def test_what_a_task_raises_reaches_the_caller_of_spin(make_executor):
    executor = make_executor(ThreadsExecutor)

    def fail():
        raise RuntimeError('from the task')

    executor.create_task(fail)
    with pytest.raises(RuntimeError, match='from the task'):
        spin_until(executor, lambda: False)
