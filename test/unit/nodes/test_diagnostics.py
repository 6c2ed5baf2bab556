# SPDX-License-Identifier: Apache-2.0
"""Levels, rates and percentiles of the node's status."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from blabberseg_ros.heatmap import CacheHits, Heatmap, Timings
from blabberseg_ros.nodes.diagnostics import ModelState, NodeState, Statistics, report


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def statistics(clock):
    return Statistics(clock)


def state(lifecycle='active', streaming=True, problem='', min_period_s=0.0):
    return NodeState(lifecycle, streaming, problem, 3, 1, 2, 13, ModelState('demo', 'ort', 'fp32'),
                     min_period_s)


def heatmap(total_ms=10.0, image=False, prompts=13, encoded=0, message=''):
    return Heatmap(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.float32), 0.5, True, message,
                   timings=Timings(total_ms=total_ms),
                   cache_hits=CacheHits(image, prompts, encoded))


def values_of(status):
    return {item.key: item.value for item in status.values}


@pytest.mark.parametrize(('age_s', 'level'), [
    (0.0, DiagnosticStatus.OK), (0.5, DiagnosticStatus.OK), (0.51, DiagnosticStatus.WARN),
    (1.0, DiagnosticStatus.WARN), (1.01, DiagnosticStatus.ERROR)])
def test_age_of_the_last_frame_sets_the_level(clock, statistics, age_s, level):
    report(state(), statistics, 'node')
    clock.now_s = 200.0
    statistics.frame_arrived(0.0, awaited=False)
    clock.now_s += age_s
    status = report(state(), statistics, 'node')
    assert status.level == level
    assert float(values_of(status)['last_frame_age_s']) == pytest.approx(age_s)


def test_a_camera_that_never_came_counts_from_the_start_of_streaming(clock, statistics):
    assert report(state(), statistics, 'node').level == DiagnosticStatus.OK
    clock.now_s += 2.0
    assert report(state(), statistics, 'node').level == DiagnosticStatus.ERROR


def test_no_age_while_nobody_listens(clock, statistics):
    statistics.frame_arrived(0.0, awaited=False)
    clock.now_s += 60.0
    status = report(state(streaming=False), statistics, 'node')
    assert status.level == DiagnosticStatus.OK
    assert values_of(status)['last_frame_age_s'] == ''
    # Streaming begins now; the silence before does not count.
    assert report(state(), statistics, 'node').level == DiagnosticStatus.OK


def fly(clock, statistics, seconds, stamp_age_s=0.0, answer=None, rate_hz=10, **of_state):
    """Let frames come for a while; return the last report."""
    report(state(**of_state), statistics, 'node')
    for _ in range(round(seconds * rate_hz)):
        statistics.frame_arrived(stamp_age_s, awaited=True)
        if answer is not None:
            answer()
        clock.now_s += 1 / rate_hz
    return report(state(**of_state), statistics, 'node')


@pytest.mark.parametrize(('seconds', 'level'), [
    (0.5, DiagnosticStatus.OK), (0.7, DiagnosticStatus.WARN), (1.5, DiagnosticStatus.ERROR)])
def test_frames_that_come_and_are_not_answered_set_the_level(clock, statistics, seconds, level):
    status = fly(clock, statistics, seconds,
                 answer=lambda: statistics.refused('frames', 'no such encoding'))
    assert status.level == level
    assert float(values_of(status)['unanswered_s']) == pytest.approx(seconds)
    assert float(values_of(status)['last_frame_age_s']) == pytest.approx(0.1)
    if level != DiagnosticStatus.OK:
        assert 'none was answered' in status.message
        assert 'no such encoding' in status.message
    statistics.answered(heatmap(), 'frames')
    status = report(state(), statistics, 'node')
    assert (status.level, values_of(status)['unanswered_s']) == (DiagnosticStatus.OK, '')


def test_one_bad_frame_among_good_ones_is_no_fault(clock, statistics):
    answers = iter(range(1000))

    def answer():
        if next(answers) % 5:
            statistics.answered(heatmap(), 'frames')
        else:
            statistics.refused('frames', 'bad')

    assert fly(clock, statistics, 9.1, answer=answer).level == DiagnosticStatus.OK


def test_a_rate_that_is_wanted_is_no_fault(clock, statistics):
    status = fly(clock, statistics, 2.3, min_period_s=2.0)
    assert status.level == DiagnosticStatus.OK
    assert fly(clock, statistics, 1.0, min_period_s=2.0).level == DiagnosticStatus.ERROR


def test_frames_that_nobody_asked_for_are_not_missed(clock, statistics):
    fly(clock, statistics, 2.0)
    report(state(streaming=False), statistics, 'node')
    statistics.frame_arrived(0.0, awaited=False)
    assert report(state(), statistics, 'node').level == DiagnosticStatus.OK


@pytest.mark.parametrize(('stamp_age_s', 'level'), [
    (0.3, DiagnosticStatus.OK), (0.6, DiagnosticStatus.WARN), (0.95, DiagnosticStatus.ERROR),
    (100.0, DiagnosticStatus.ERROR),
    # Ahead, without a stamp, and of clocks that have nothing to do with ours.
    (-5.0, DiagnosticStatus.OK), (None, DiagnosticStatus.OK), (3601.0, DiagnosticStatus.OK),
    (1.7e9, DiagnosticStatus.OK), (-1.7e9, DiagnosticStatus.OK)])
def test_old_stamps_set_the_level(clock, statistics, stamp_age_s, level):
    status = fly(clock, statistics, 3.0, stamp_age_s,
                 lambda: statistics.answered(heatmap(), 'frames'))
    assert status.level == level
    shown = values_of(status)['last_stamp_age_s']
    if stamp_age_s is None:
        assert shown == ''
    else:
        assert float(shown) == pytest.approx(stamp_age_s + 0.1)
    assert ('stamp' in status.message) is (level != DiagnosticStatus.OK)


def test_a_silent_camera_is_told_as_such_and_not_as_old_stamps(clock, statistics):
    fly(clock, statistics, 1.0, 0.3, lambda: statistics.answered(heatmap(), 'frames'))
    clock.now_s += 0.8
    assert 'no usable frame' in report(state(), statistics, 'node').message


def test_late_requests_are_counted_until_one_is_answered(statistics):
    statistics.refused('requests', 'no such encoding')
    assert statistics.late_requests == 0
    for _ in range(2):
        statistics.refused('requests', 'too slow', late=True)
    assert statistics.late_requests == 2
    statistics.answered(heatmap(), 'frames')
    assert statistics.late_requests == 2
    statistics.answered(heatmap(), 'requests')
    assert statistics.late_requests == 0


def test_what_the_last_answer_came_with_is_shown(statistics):
    statistics.answered(heatmap(message='not decoded: tree'), 'frames')
    assert values_of(report(state(), statistics, 'node'))['last_message'] == 'not decoded: tree'
    statistics.answered(heatmap(), 'frames')
    assert values_of(report(state(), statistics, 'node'))['last_message'] == ''


@pytest.mark.parametrize(('lifecycle', 'problem', 'level'), [
    ('inactive', '', DiagnosticStatus.WARN), ('unconfigured', 'no bundle', DiagnosticStatus.ERROR),
    ('active', 'NaN', DiagnosticStatus.ERROR), ('active', '', DiagnosticStatus.OK)])
def test_lifecycle_and_problems_set_the_level(statistics, lifecycle, problem, level):
    status = report(state(lifecycle, False, problem), statistics, 'node')
    assert status.level == level
    assert problem in status.message


def test_percentiles_and_rate(clock, statistics):
    for index in range(100):
        statistics.answered(heatmap(total_ms=float(index + 1)), 'frames')
    values = values_of(report(state(), statistics, 'node'))
    assert float(values['total_p50_ms']) == pytest.approx(50.5)
    assert float(values['total_p99_ms']) == pytest.approx(99.01)
    assert float(values['rate_hz']) == pytest.approx(20.0)
    clock.now_s += 6.0
    assert float(values_of(report(state(), statistics, 'node'))['rate_hz']) == 0.0


def test_the_rate_of_a_fast_device(clock, statistics):
    for _ in range(1000):
        clock.now_s += 0.01
        statistics.answered(heatmap(), 'frames')
    values = values_of(report(state(), statistics, 'node'))
    assert float(values['rate_hz']) == pytest.approx(100.0, abs=0.5)


def test_counts(statistics):
    statistics.answered(heatmap(image=True, prompts=12, encoded=1), 'requests')
    statistics.answered(heatmap(), 'frames')
    statistics.refused('requests', 'too big')
    statistics.count('frames_stale')
    values = values_of(report(state(), statistics, 'node'))
    expected = {'requests_answered': '1', 'frames_answered': '1', 'requests_refused': '1',
                'frames_stale': '1', 'image_cache_hits': '1', 'prompt_cache_hits': '25',
                'prompts_encoded': '1', 'last_failure': 'too big', 'frames_dropped': '3',
                'retries': '1', 'waiting_requests': '2', 'prompts': '13', 'bundle': 'demo',
                'engine': 'ort', 'precision': 'fp32', 'image_encoder_runs': '0'}
    assert {key: values[key] for key in expected} == expected
