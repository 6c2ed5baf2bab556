# SPDX-License-Identifier: Apache-2.0
"""A recorded flight, made up: what the page and the report are tested with."""

from dataclasses import replace

import numpy as np

from blabberseg_ros.demo.planner import Viewpoint
from blabberseg_ros.demo.recording import (
    Answer,
    Diagnosis,
    Event,
    Fix,
    Flight,
    Moment,
    PromptChange,
)
from blabberseg_ros.demo.report import STAGES, Outcome, Setting
from blabberseg_ros.demo.scoring import Score
from blabberseg_ros.prompts import PromptSet

SETTING = Setting(7, '', 'clipseg_demo', (64, 48), 300.0, 100.0)
BEFORE = PromptSet(('grass <lawn>', 'car park'), ('roof & wall', 'water'), 'photo of {}')
AFTER = PromptSet(('car park',), ('roof & wall', 'water', 'grass <lawn>'), 'photo of {}')


def position(time_s: float) -> tuple[float, float, float]:
    """Return a steady way down: east, then north."""
    return min(time_s, 10.0) * 3, max(0.0, time_s - 10.0) * 2, max(0.3, 100.0 - 5 * time_s)


def moment(time_s: float, seed: int) -> Moment:
    random = np.random.default_rng(seed)
    probability = random.random((48, 64)).astype(np.float32)
    return Moment(time_s, Viewpoint(*position(time_s), 0.68),
                  random.integers(0, 256, (48, 64, 3), np.uint8), probability,
                  (probability > 0.6).astype(np.uint8) * 255, 0.6, 'descending')


def landed_flight() -> Flight:
    """Return a flight of 20 s with a change of prompts after 10 s."""
    times = np.arange(0, 20, 0.1)
    figures = {f'{stage}_p{percent}_ms': str(10 + percent / 10)
               for stage in (*STAGES, 'total') for percent in (50, 99)}
    return Flight(
        answers=[Answer(t, position(t), True, 0.8 - 0.01 * t, 0.2, 90.0 + t) for t in times],
        track=[Fix(t, position(t), 'descending') for t in times],
        moments=[moment(0.4 * index, index) for index in range(50)],
        diagnoses=[Diagnosis(t, 'active', {**figures, 'image_cache_hits': '3', 'engine': 'cpu'})
                   for t in np.arange(0.5, 20, 0.5)],
        events=[Event(10.0, 'prompts', 'now unsafe: grass <lawn>', position(10.0)),
                Event(10.5, 'replan', 'new spot, 30 m away, 5 m clear', position(10.5)),
                Event(20.0, 'touchdown', 'touchdown', position(20.0))],
        prompt_change=PromptChange(BEFORE, AFTER, True, '', 40.0, 0.0, 130.0), prompts=BEFORE,
        frames_received=200, requests_sent=201, requests_lost=1, duration_s=20.0,
        touchdown_m=position(20.0))


def outcome(flight: Flight | None = None, score: Score | None = None) -> Outcome:
    """Return an outcome; by default a safe landing."""
    if flight is None:
        flight, score = landed_flight(), Score('paved', True, {'paved': 1.0})
    return Outcome(SETTING, flight, score, {'aerial_camera': 0}, {'flight': flight.duration_s})


def unlucky_outcome() -> Outcome:
    """Return the outcome of a flight that found nothing."""
    flight = replace(landed_flight(), touchdown_m=None, prompt_change=None,
                     problem='no landing within 20 s')
    flight.events.clear()
    flight.answers[:] = [replace(answer, success=False) for answer in flight.answers]
    return outcome(flight)
