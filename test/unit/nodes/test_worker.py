# SPDX-License-Identifier: Apache-2.0
"""The worker's order of work and its end, with a segmenter that is a puppet."""

import threading
from concurrent.futures import CancelledError

import pytest

from blabberseg_ros.errors import Cancelled, EngineError
from blabberseg_ros.nodes.work import Frame, Withdrawn
from blabberseg_ros.nodes.worker import MAX_WAITING_REQUESTS, Worker
from blabberseg_ros.prompts import PromptSet

from .worker_puppet import FUSION, NEW, OLD, WAIT_S, frame, hold, image


def test_an_answer_names_its_prompts(worker):
    answer = worker.segment(image(1), None, FUSION, WAIT_S).result(WAIT_S)
    assert answer.prompts == OLD
    assert answer.heatmap.success
    assert worker.segment(image(1), NEW, FUSION, WAIT_S).result(WAIT_S).prompts == NEW


def test_requests_come_first_then_prompts_and_frames_in_turns(worker, puppet):
    first = hold(worker, puppet)
    numbers = iter((11, 12, 13))

    def offer_next(answer=None):
        number = next(numbers, None)
        if number is not None:
            worker.offer(Frame(lambda: image(number), FUSION, False, offer_next, offer_next))

    offer_next()
    change = worker.set_prompts(NEW)
    others = [worker.segment(image(number), None, FUSION, WAIT_S) for number in (2, 3)]
    puppet.gate.set()
    change.result(WAIT_S)
    for future in (first, *others):
        future.result(WAIT_S)
    assert puppet.log == [
        'segment 99 old', 'segment 2 old', 'segment 3 old',
        'segment 11 old', 'encode 2', 'segment 12 old', 'encode 1', 'segment 13 old', 'encode 1',
        'encode 0']
    assert worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S).prompts == NEW


def test_requests_without_end_do_not_starve_a_change_of_prompts(worker, puppet):
    first = hold(worker, puppet)
    change = worker.set_prompts(NEW)
    others = [worker.segment(image(number), None, FUSION, WAIT_S) for number in range(8)]
    puppet.gate.set()
    change.result(WAIT_S)
    for future in (first, *others):
        future.result(WAIT_S)
    kinds = ''.join(entry[0] for entry in puppet.log)
    assert kinds.startswith('sssses')
    assert kinds.count('e') == 4


def test_only_the_newest_frame_is_kept(worker, puppet):
    first = hold(worker, puppet)
    delivered = []
    for number in range(5):
        worker.offer(frame(number, delivered))
    puppet.gate.set()
    first.result(WAIT_S)
    worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S)
    worker.deactivate().result(WAIT_S)  # comes after the frame
    assert [answer.rgb[0, 0, 0] for answer in delivered] in ([4], [])
    assert worker.dropped_frames == 4


def test_frames_keep_their_distance(puppet, worker, monkeypatch):
    worker.min_period_s = 1000.0
    delivered = []
    done = threading.Event()

    def deliver(answer):
        delivered.append(answer)
        done.set()

    worker.offer(Frame(lambda: image(1), FUSION, False, deliver, delivered.append))
    assert done.wait(WAIT_S)
    worker.offer(frame(2, delivered))
    worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S)
    assert len(delivered) == 1


def test_a_frame_that_has_become_too_old_is_left_out(worker, puppet):
    delivered = []
    worker.offer(frame(1, delivered, load=lambda: None))
    worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S)
    assert not delivered


def test_too_many_requests_are_refused_at_once(worker, puppet):
    first = hold(worker, puppet)
    waiting = [worker.segment(image(), None, FUSION, WAIT_S) for _ in range(MAX_WAITING_REQUESTS)]
    with pytest.raises(EngineError, match='wait already'):
        worker.segment(image(), None, FUSION, WAIT_S)
    puppet.gate.set()
    for future in (first, *waiting):
        assert future.result(WAIT_S)


def test_a_request_given_up_is_not_worked_on(worker, puppet):
    first = hold(worker, puppet)
    given_up = worker.segment(image(5), None, FUSION, WAIT_S)
    assert given_up.cancel()
    puppet.gate.set()
    first.result(WAIT_S)
    worker.segment(image(6), None, FUSION, WAIT_S).result(WAIT_S)
    assert 'segment 5 old' not in puppet.log
    with pytest.raises(CancelledError):
        given_up.result(0)


def test_work_past_its_deadline_is_broken_off_and_is_no_fault_of_the_model(worker, puppet):
    puppet.hold()
    future = worker.segment(image(), None, FUSION, 0.0)
    assert puppet.entered.wait(WAIT_S)
    puppet.gate.set()
    with pytest.raises(Cancelled):
        future.result(WAIT_S)
    assert puppet.log == ['cancelled']
    assert worker.failures == worker.retries == 0


def test_many_prompts_of_a_request_are_encoded_in_groups(worker, puppet):
    many = PromptSet(tuple(f'p{i}' for i in range(40)), tuple(f'n{i}' for i in range(40)))
    worker.segment(image(), many, FUSION, WAIT_S).result(WAIT_S)
    assert puppet.log[:-1] == ['encode 33', 'encode 8', 'encode 32', 'encode 7']
    with pytest.raises(Cancelled):
        worker.segment(image(), many, FUSION, -1.0).result(WAIT_S)


def test_deactivation_refuses_what_waits(worker, puppet):
    first = hold(worker, puppet)
    deactivated = worker.deactivate()
    second = worker.segment(image(2), None, FUSION, WAIT_S)
    change = worker.set_prompts(NEW)
    puppet.gate.set()
    deactivated.result(WAIT_S)
    first.result(WAIT_S)
    for future in (second, change):
        with pytest.raises(Withdrawn, match='deactivated'):
            future.result(WAIT_S)


def test_stopping_answers_everyone_even_if_the_engine_hangs(puppet, warnings):
    worker = Worker(warnings.append)
    worker.open(lambda: puppet).result(WAIT_S)
    worker.set_prompts(OLD).result(WAIT_S)
    hold(worker, puppet)
    waiting = worker.segment(image(), None, FUSION, WAIT_S)
    assert worker.stop(0.05) is False
    with pytest.raises(Withdrawn, match='shutting down'):
        waiting.result(WAIT_S)
    with pytest.raises(EngineError, match='shutting down'):
        worker.segment(image(), None, FUSION, WAIT_S)
    puppet.gate.set()
    assert worker.stop(WAIT_S) is True


def test_without_a_model_everything_is_refused(warnings):
    worker = Worker(warnings.append)
    for future in (worker.segment(image(), OLD, FUSION, WAIT_S), worker.set_prompts(OLD),
                   worker.activate()):
        with pytest.raises(EngineError, match='no model is open'):
            future.result(WAIT_S)
    assert worker.stop(WAIT_S)


def test_figures_are_settled_before_the_caller_is_answered(puppet, warnings):
    """Otherwise diagnostics right after an answer would not count its runs."""
    futures, done_too_early = [], []

    def settled(segmenter):
        done_too_early.extend(future for future in futures if future.done())

    worker = Worker(warnings.append, settled=settled)
    worker.open(lambda: puppet).result(WAIT_S)
    worker.set_prompts(OLD).result(WAIT_S)
    puppet.hold()
    futures.append(worker.segment(image(), None, FUSION, WAIT_S))
    puppet.gate.set()
    assert futures[0].result(WAIT_S).heatmap.success
    assert worker.stop(WAIT_S)
    assert not done_too_early
    assert not warnings


def test_after_the_stop_everything_is_refused(worker):
    assert worker.stop(WAIT_S)
    for future in (worker.set_prompts(NEW), worker.activate(), worker.close()):
        with pytest.raises(Withdrawn, match='shutting down'):
            future.result(0)


def test_a_higher_rate_takes_effect_at_once(worker):
    worker.min_period_s = 1000.0
    first, second = threading.Event(), threading.Event()
    worker.offer(Frame(lambda: image(1), FUSION, False, lambda _: first.set(), print))
    assert first.wait(WAIT_S)
    worker.offer(Frame(lambda: image(2), FUSION, False, lambda _: second.set(), print))
    # The frame waits for its time when the time changes.
    worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S)
    assert not second.is_set()
    worker.min_period_s = 0.0
    assert second.wait(WAIT_S)
