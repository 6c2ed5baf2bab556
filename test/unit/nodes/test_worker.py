# SPDX-License-Identifier: Apache-2.0
"""The worker's order of work, its retries and its survival, with a segmenter that is a puppet."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError

import numpy as np
import pytest

from blabberseg_ros.errors import Cancelled, EngineError, ImageError, NotFiniteError, PromptError
from blabberseg_ros.heatmap import FusionOptions, Heatmap
from blabberseg_ros.nodes import keeper
from blabberseg_ros.nodes.work import Frame, Withdrawn
from blabberseg_ros.nodes.worker import MAX_WAITING_REQUESTS, Worker
from blabberseg_ros.prompt_cache import PromptReport
from blabberseg_ros.prompts import PromptSet

WAIT_S = 30.0
OLD = PromptSet(('old',), ('bad',))
NEW = PromptSet(('new a', 'new b'), ('new c', 'new d'))
FUSION = FusionOptions()


class Puppet:
    """A segmenter that notes what it is asked and can be held up or made to fail."""

    engine_name = 'puppet'

    def __init__(self):
        self.log = []
        self.known = set()
        self.failures = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def avoid(self, engines):
        self.log.append(f'avoid {sorted(engines)}')

    def activate(self):
        self.log.append('activate')

    def deactivate(self):
        self.log.append('deactivate')

    def forget(self):
        self.log.append('forget')

    def encode(self, prompts):
        new = set(prompts.texts) - self.known
        self.known |= new
        self.log.append(f'encode {len(new)}')
        return PromptReport(len(new), len(prompts) - len(new), (), (), (), (), 1.0)

    def segment(self, image, prompts, fusion, *, with_probability, cancelled):
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        if cancelled():
            self.log.append('cancelled')
            raise Cancelled('given up')
        self.log.append(f'segment {image[0, 0, 0]} {prompts.positive[0]}')
        if self.failures:
            raise self.failures.pop(0)
        return Heatmap(np.zeros(image.shape[:2], np.uint8),
                       np.zeros(image.shape[:2], np.float32), 0.5, True)

    def hold(self):
        """Stop the next call to `segment` until the gate is set."""
        self.gate.clear()
        self.entered.clear()


def image(number=0):
    return np.full((4, 4, 3), number, np.uint8)


@pytest.fixture
def puppet():
    return Puppet()


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def worker(puppet, warnings):
    """Return a worker with the old prompts in use."""
    made = Worker(warnings.append, clock_ns=lambda: 42)
    made.open(lambda: puppet).result(WAIT_S)
    made.set_prompts(OLD).result(WAIT_S)
    puppet.log.clear()
    yield made
    puppet.gate.set()
    assert made.stop(WAIT_S)


def hold(worker, puppet):
    """Keep the worker busy with a request; return its future."""
    puppet.hold()
    future = worker.segment(image(99), None, FUSION, WAIT_S)
    assert puppet.entered.wait(WAIT_S)
    return future


def frame(number, delivered: list, failed: list | None = None, load: Callable | None = None):
    return Frame(load or (lambda: image(number)), FUSION, False, delivered.append,
                 (failed if failed is not None else delivered).append)


def test_an_answer_names_its_prompts(worker):
    answer = worker.segment(image(1), None, FUSION, WAIT_S).result(WAIT_S)
    assert answer.prompts == OLD
    assert answer.heatmap.success
    assert worker.segment(image(1), NEW, FUSION, WAIT_S).result(WAIT_S).prompts == NEW


def test_it_knows_that_prompts_are_changing(worker, puppet):
    hold(worker, puppet)
    assert not worker.changing
    change = worker.set_prompts(NEW)
    assert worker.changing
    seen = []
    change.add_done_callback(lambda _: seen.append(worker.changing))
    puppet.gate.set()
    change.result(WAIT_S)
    second = worker.set_prompts(OLD)
    second.result(WAIT_S)
    assert seen == [False]
    assert not worker.changing


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


def test_prompts_are_encoded_one_by_one_and_reported_together(worker, puppet):
    change = worker.set_prompts(NEW).result(WAIT_S)
    assert puppet.log == ['encode 2', 'encode 1', 'encode 1', 'encode 0']
    assert change.report.encoded == 4
    assert change.report.encode_ms == 4.0
    assert change.since_ns == 42
    assert worker.prompts == change


def test_a_waiting_set_is_superseded_by_a_later_one(worker, puppet):
    first = hold(worker, puppet)
    sets = [PromptSet((name,), ('bad',)) for name in 'abc']
    changes = [worker.set_prompts(prompts) for prompts in sets]
    puppet.gate.set()
    first.result(WAIT_S)
    assert changes[2].result(WAIT_S).prompts == sets[2]
    for change in changes[:2]:
        with pytest.raises(Withdrawn):
            change.result(WAIT_S)
    assert worker.prompts.prompts == sets[2]


def test_a_set_that_fails_leaves_the_old_one(worker, puppet, monkeypatch):
    def fail(prompts):
        raise PromptError('no')

    monkeypatch.setattr(puppet, 'encode', fail)
    with pytest.raises(PromptError):
        worker.set_prompts(NEW).result(WAIT_S)
    assert worker.prompts.prompts == OLD
    assert worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S).prompts == OLD


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


def test_a_bug_in_a_callback_does_not_end_the_thread(puppet, warnings):
    def broken(segmenter):
        raise ZeroDivisionError

    worker = Worker(warnings.append, settled=broken)
    worker.open(lambda: puppet).result(WAIT_S)
    worker.set_prompts(OLD).result(WAIT_S)
    assert worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S).heatmap.success
    assert worker.stop(WAIT_S)
    assert any('internal error' in warning for warning in warnings)


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


def test_a_change_given_up_never_comes_into_use(worker, puppet):
    first = hold(worker, puppet)
    waiting = worker.set_prompts(NEW)
    assert waiting.cancel()
    assert not worker.changing
    puppet.gate.set()
    first.result(WAIT_S)
    last = PromptSet(('last',), ('bad',))
    worker.set_prompts(last).result(WAIT_S)
    assert worker.prompts.prompts == last
    assert puppet.log == ['segment 99 old', 'encode 1', 'encode 0'], 'nothing of NEW was encoded'


@pytest.mark.parametrize('step', [1, 4])
def test_a_change_given_up_while_it_is_encoded_never_comes_into_use(
        worker, puppet, monkeypatch, step):
    """The last step is as good as any other: what was given up is not in use."""
    encode, calls = puppet.encode, []

    def encode_and_give_up(prompts):
        calls.append(prompts)
        if len(calls) == step:
            assert change.cancel()
        return encode(prompts)

    monkeypatch.setattr(puppet, 'encode', encode_and_give_up)
    first = hold(worker, puppet)
    change = worker.set_prompts(NEW)
    puppet.gate.set()
    first.result(WAIT_S)
    answers = [worker.segment(image(), None, FUSION, WAIT_S).result(WAIT_S) for _ in range(20)]
    assert {answer.prompts for answer in answers} == {OLD}
    assert len(calls) == step


def test_stopping_in_the_last_step_of_a_change_answers_it_once(worker, puppet, warnings,
                                                               monkeypatch, caplog):
    encode, calls, entered = puppet.encode, [], threading.Event()

    def encode_slowly(prompts):
        calls.append(prompts)
        if len(calls) == 4:
            entered.set()
            assert puppet.gate.wait(WAIT_S)
        return encode(prompts)

    monkeypatch.setattr(puppet, 'encode', encode_slowly)
    puppet.gate.clear()
    change = worker.set_prompts(NEW)
    assert entered.wait(WAIT_S)
    assert worker.stop(0.01) is False
    with pytest.raises(Withdrawn, match='shutting down'):
        change.result(WAIT_S)
    puppet.gate.set()
    assert worker.stop(WAIT_S)
    assert not warnings
    assert not caplog.records


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
