# SPDX-License-Identifier: Apache-2.0
"""The worker's retries and its survival."""

import threading

import pytest

from blabberseg_ros.errors import EngineError, ImageError, NotFiniteError, PromptError
from blabberseg_ros.nodes import keeper
from blabberseg_ros.nodes.work import Frame
from blabberseg_ros.nodes.worker import Worker

from .worker_puppet import FUSION, OLD, WAIT_S, image


def test_a_bad_frame_is_reported_and_the_next_one_works(worker):
    delivered, failed = [], []
    done = threading.Event()

    def bad():
        raise ImageError('bad frame')

    worker.offer(Frame(bad, FUSION, False, delivered.append,
                       lambda error: (failed.append(error), done.set())))
    assert done.wait(WAIT_S)
    assert str(failed[0]) == 'bad frame'
    assert worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S)


@pytest.mark.parametrize('error', [
    MemoryError('GPU'), NotFiniteError('NaN'), RuntimeError('CUDA')])
def test_one_failure_is_tried_again_with_empty_caches(worker, puppet, error):
    puppet.failures = [error]
    assert worker.segment(image(1), None, FUSION, WAIT_S).result(WAIT_S).heatmap.success
    assert puppet.log == ['segment 1 old', 'forget', 'segment 1 old']
    assert worker.retries == 1
    assert worker.failures == 0


@pytest.mark.parametrize('error', [ImageError('i'), PromptError('p')])
def test_a_refusal_is_not_tried_again(worker, puppet, error):
    puppet.failures = [error]
    with pytest.raises(type(error)):
        worker.segment(image(1), None, FUSION, WAIT_S).result(WAIT_S)
    assert puppet.log == ['segment 1 old']
    assert worker.failures == 0


def test_foreign_errors_become_engine_errors(worker, puppet):
    puppet.failures = [RuntimeError('a'), RuntimeError('b')]
    with pytest.raises(EngineError, match='failed twice'):
        worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S)


def test_after_three_failures_the_model_is_opened_again_but_not_at_once_again(
        worker, puppet, warnings):
    puppet.failures = [NotFiniteError('NaN')] * 12
    for count in range(1, 7):
        with pytest.raises(NotFiniteError):
            worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S)
        assert worker.failures == count
    assert puppet.log.count('activate') == 1
    assert sum('opening it again' in warning for warning in warnings) == 1
    # The prompts are still those in use, and the next good image clears the count.
    assert worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S).prompts == OLD
    assert worker.failures == 0


def test_a_model_that_cannot_be_opened_again_is_tried_later(worker, puppet, monkeypatch):
    monkeypatch.setattr(keeper, 'REOPEN_INTERVAL_S', 0.0)
    available = []

    def open_if_available():
        if not available:
            raise EngineError('device lost')
        return puppet

    worker.open(lambda: puppet).result(WAIT_S)
    worker._keeper._opener = open_if_available
    puppet.failures = [RuntimeError('device lost')] * 6
    for _ in range(3):
        with pytest.raises(EngineError):
            worker.segment(image(), OLD, FUSION, WAIT_S).result(WAIT_S)
    with pytest.raises(EngineError, match='no model is open'):
        worker.segment(image(), OLD, FUSION, WAIT_S).result(WAIT_S)
    available.append(True)
    assert worker.segment(image(), OLD, FUSION, WAIT_S).result(WAIT_S).heatmap.success


def test_a_bug_in_a_callback_does_not_end_the_thread(puppet, warnings):
    def broken(segmenter):
        raise ZeroDivisionError

    worker = Worker(warnings.append, settled=broken)
    worker.open(lambda: puppet).result(WAIT_S)
    worker.set_prompts(OLD).result(WAIT_S)
    assert worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S).heatmap.success
    assert worker.stop(WAIT_S)
    assert any('internal error' in warning for warning in warnings)
