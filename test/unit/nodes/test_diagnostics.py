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


def state(lifecycle='active', streaming=True, problem=''):
    return NodeState(lifecycle, streaming, problem, 3, 1, 2, 13, ModelState('demo', 'ort', 'fp32'))


def heatmap(total_ms=10.0, image=False, prompts=13, encoded=0):
    return Heatmap(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.float32), 0.5, True,
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
    statistics.frame_arrived()
    clock.now_s += age_s
    status = report(state(), statistics, 'node')
    assert status.level == level
    assert float(values_of(status)['last_frame_age_s']) == pytest.approx(age_s)


def test_a_camera_that_never_came_counts_from_the_start_of_streaming(clock, statistics):
    assert report(state(), statistics, 'node').level == DiagnosticStatus.OK
    clock.now_s += 2.0
    assert report(state(), statistics, 'node').level == DiagnosticStatus.ERROR


def test_no_age_while_nobody_listens(clock, statistics):
    statistics.frame_arrived()
    clock.now_s += 60.0
    status = report(state(streaming=False), statistics, 'node')
    assert status.level == DiagnosticStatus.OK
    assert values_of(status)['last_frame_age_s'] == ''
    # Streaming begins now; the silence before does not count.
    assert report(state(), statistics, 'node').level == DiagnosticStatus.OK


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
