# SPDX-License-Identifier: Apache-2.0
"""What the heatmap node tells about itself once per second."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from blabberseg_ros.heatmap import Heatmap, Timings

# PX4-Avoidance holds a depth image of more than 0.5 s for critical; PX4 and Autoware give up on
# a topic after 1 s.
AGE_WARN_S = 0.5
AGE_ERROR_S = 1.0
RATE_WINDOW_S = 5.0
MAX_RATE_HZ = 1000
WINDOW = 256

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@dataclass(frozen=True)
class ModelState:
    """What is loaded, as far as the diagnostics show it.

    Attributes:
        bundle: name of the model; empty while none is loaded.
        engine: what runs it.
        precision: of the image path.
        image_encoder_runs: how often each network has run since the model was opened.
        text_encoder_runs: likewise.
        decoder_runs: likewise.
    """

    bundle: str = ''
    engine: str = ''
    precision: str = ''
    image_encoder_runs: int = 0
    text_encoder_runs: int = 0
    decoder_runs: int = 0


@dataclass(frozen=True)
class NodeState:
    """What the node knows of itself at the moment of a report.

    Attributes:
        lifecycle: label of the lifecycle state.
        streaming: whether frames are worked on: active, and somebody listens.
        problem: why the node cannot work, or a fault that lasts; empty for none.
        dropped_frames: stream frames replaced by newer ones before their turn.
        retries: images that were tried a second time, because the device failed at first.
        waiting_requests: requests in the queue.
        prompts: number of prompts in use.
        model: what is loaded.
    """

    lifecycle: str
    streaming: bool
    problem: str
    dropped_frames: int
    retries: int
    waiting_requests: int
    prompts: int
    model: ModelState


class Statistics:
    """Counts and times of the last answers. Every method may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing.

        Args:
            clock: seconds, never set back.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._timings: deque[Timings] = deque(maxlen=WINDOW)
        self._answered_s: deque[float] = deque(maxlen=round(RATE_WINDOW_S * MAX_RATE_HZ))
        self._counts: Counter[str] = Counter()
        self._last_frame_s: float | None = None
        self._streaming_since_s: float | None = None
        self._last_failure = ''

    @property
    def last_failure(self) -> str:
        """Return why the last request or frame was refused."""
        return self._last_failure

    def answered(self, heatmap: Heatmap, kind: str) -> None:
        """Count an answer of kind `requests` or `frames`."""
        with self._lock:
            self._counts[f'{kind}_answered'] += 1
            self._counts['image_cache_hits'] += heatmap.cache_hits.image
            self._counts['prompt_cache_hits'] += heatmap.cache_hits.prompts
            self._counts['prompts_encoded'] += heatmap.cache_hits.prompts_encoded
            self._timings.append(heatmap.timings)
            self._answered_s.append(self._clock())

    def refused(self, kind: str, reason: str) -> None:
        """Count a request or frame that could not be answered."""
        with self._lock:
            self._counts[f'{kind}_refused'] += 1
            self._last_failure = reason

    def count(self, name: str) -> None:
        """Count an event."""
        with self._lock:
            self._counts[name] += 1

    def frame_arrived(self) -> None:
        """Note that the camera is alive."""
        with self._lock:
            self._last_frame_s = self._clock()

    def frame_age_s(self, streaming: bool) -> float | None:
        """Return the time since the last frame that could be used, while streaming.

        Before the first frame it is the time since the streaming began; None while idle.
        """
        with self._lock:
            if not streaming:
                self._streaming_since_s = None
                return None
            if self._streaming_since_s is None:
                self._streaming_since_s = self._clock()
            newest_s = max(self._streaming_since_s, self._last_frame_s or 0.0)
            return self._clock() - newest_s

    def values(self) -> dict[str, str]:
        """Return all figures as texts."""
        with self._lock:
            now_s = self._clock()
            recent = sum(now_s - answered_s <= RATE_WINDOW_S for answered_s in self._answered_s)
            timings = list(self._timings)
            values = {'rate_hz': f'{recent / RATE_WINDOW_S:.2f}'}
            for name in ('requests_answered', 'requests_refused', 'frames_received',
                         'frames_answered', 'frames_refused', 'frames_stale', 'frames_future',
                         'image_cache_hits', 'prompt_cache_hits', 'prompts_encoded'):
                values[name] = str(self._counts[name])
            values['last_failure'] = self._last_failure
        return {**values, **_latencies(timings)}


def report(state: NodeState, statistics: Statistics, node_name: str) -> DiagnosticStatus:
    """Return the node's status: level, one sentence, and all figures."""
    age_s = statistics.frame_age_s(state.streaming)
    level, message = _verdict(state, age_s)
    values = {
        'lifecycle': state.lifecycle,
        'streaming': str(state.streaming).lower(),
        'last_frame_age_s': '' if age_s is None else f'{age_s:.3f}',
        'frames_dropped': str(state.dropped_frames),
        'retries': str(state.retries),
        'waiting_requests': str(state.waiting_requests),
        'prompts': str(state.prompts),
        **{name: str(value) for name, value in asdict(state.model).items()},
        **statistics.values(),
    }
    return DiagnosticStatus(
        level=level, name=f'{node_name}: heatmap', message=message,
        hardware_id=state.model.bundle,
        values=[KeyValue(key=key, value=value) for key, value in values.items()])


def to_array(status: DiagnosticStatus, stamp: object) -> DiagnosticArray:
    """Return the message for /diagnostics."""
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array


def _verdict(state: NodeState, age_s: float | None) -> tuple[bytes, str]:
    if state.problem:
        return ERROR, state.problem
    if state.lifecycle != 'active':
        return WARN, f'{state.lifecycle}: requests are answered with success=false'
    if age_s is not None and age_s > AGE_ERROR_S:
        return ERROR, f'no usable frame for {age_s:.1f} s; check the camera and img_topic'
    if age_s is not None and age_s > AGE_WARN_S:
        return WARN, f'no usable frame for {age_s:.1f} s'
    return OK, 'active'


def _latencies(timings: list[Timings]) -> dict[str, str]:
    """Return p50 and p99 of each stage over the last answers, in milliseconds.

    A stage that did not run, because its result was known, counts as 0.
    """
    values = {}
    for name in Timings.__dataclass_fields__:
        series = [getattr(timing, name) for timing in timings]
        for percent in (50, 99):
            shown = f'{np.percentile(series, percent):.2f}' if series else ''
            values[name.replace('_ms', f'_p{percent}_ms')] = shown
    return values
