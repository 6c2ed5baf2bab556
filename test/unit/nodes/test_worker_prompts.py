# SPDX-License-Identifier: Apache-2.0
"""A change of prompts: how the worker encodes it, and who gives it up."""

import threading

import pytest

from blabberseg_ros.errors import PromptError
from blabberseg_ros.nodes.work import Withdrawn
from blabberseg_ros.prompts import PromptSet

from .worker_puppet import FUSION, NEW, OLD, WAIT_S, hold, image


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
