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
# A stamp further away is of another clock: a recording played without its own, a simulator's time
# without use_sim_time, a camera that counts from its start. Its age says nothing.
OTHER_CLOCK_S = 3600.0
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
        min_period_s: shortest time between two frames that are worked on.
    """

    lifecycle: str
    streaming: bool
    problem: str
    dropped_frames: int
    retries: int
    waiting_requests: int
    prompts: int
    model: ModelState
    min_period_s: float = 0.0


@dataclass(frozen=True)
class StreamAges:
    """How old things are while streaming, in seconds; None: there is none, or nothing streams.

    Attributes:
        frame_s: since the last frame that could be used came, or since the streaming began.
        unanswered_s: since the first frame came that has not been answered, nor one after it.
        stamp_s: since the stamp of the last frame.
    """

    frame_s: float | None = None
    unanswered_s: float | None = None
    stamp_s: float | None = None


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
        self._stamped_s: float | None = None
        self._unanswered_since_s: float | None = None
        self._streaming_since_s: float | None = None
        self._late_requests = 0
        self._last_failure = ''
        self._last_message = ''

    @property
    def last_failure(self) -> str:
        """Return why the last request or frame was refused."""
        return self._last_failure

    @property
    def late_requests(self) -> int:
        """Return how many requests were not answered in time since the last that was answered."""
        return self._late_requests

    def answered(self, heatmap: Heatmap, kind: str) -> None:
        """Count an answer of kind `requests` or `frames`."""
        with self._lock:
            if kind == 'frames':
                self._unanswered_since_s = None
            else:
                self._late_requests = 0
            self._last_message = heatmap.message
            self._counts[f'{kind}_answered'] += 1
            self._counts['image_cache_hits'] += heatmap.cache_hits.image
            self._counts['prompt_cache_hits'] += heatmap.cache_hits.prompts
            self._counts['prompts_encoded'] += heatmap.cache_hits.prompts_encoded
            self._timings.append(heatmap.timings)
            self._answered_s.append(self._clock())

    def refused(self, kind: str, reason: str, late: bool = False) -> None:
        """Count a request or frame that could not be answered.

        Args:
            kind: `requests` or `frames`.
            reason: for the user.
            late: whether it was a request whose time was up.
        """
        with self._lock:
            self._counts[f'{kind}_refused'] += 1
            self._late_requests += late
            self._last_failure = reason

    def count(self, name: str) -> None:
        """Count an event."""
        with self._lock:
            self._counts[name] += 1

    def frame_arrived(self, stamp_age_s: float | None, awaited: bool) -> None:
        """Note that the camera is alive.

        Args:
            stamp_age_s: time since the frame's stamp; None if it has no stamp.
            awaited: whether the frame shall be answered.
        """
        with self._lock:
            now_s = self._last_frame_s = self._clock()
            self._stamped_s = None if stamp_age_s is None else now_s - stamp_age_s
            if not awaited:
                self._unanswered_since_s = None
            elif self._unanswered_since_s is None:
                self._unanswered_since_s = now_s

    def ages(self, streaming: bool) -> StreamAges:
        """Return how old things are; the time before the streaming began does not count."""
        with self._lock:
            if not streaming:
                self._streaming_since_s = self._unanswered_since_s = None
                return StreamAges()
            now_s = self._clock()
            if self._streaming_since_s is None:
                self._streaming_since_s = now_s
            last_s = self._last_frame_s
            if last_s is None or last_s < self._streaming_since_s:
                return StreamAges(now_s - self._streaming_since_s)
            return StreamAges(*(None if since_s is None else now_s - since_s for since_s in (
                last_s, self._unanswered_since_s, self._stamped_s)))

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
            values['last_message'] = self._last_message
        return {**values, **_latencies(timings)}


def report(state: NodeState, statistics: Statistics, node_name: str) -> DiagnosticStatus:
    """Return the node's status: level, one sentence, and all figures."""
    ages = statistics.ages(state.streaming)
    level, message = _verdict(state, ages, statistics.last_failure)
    values = {
        'lifecycle': state.lifecycle,
        'streaming': str(state.streaming).lower(),
        'last_frame_age_s': _seconds(ages.frame_s),
        'last_stamp_age_s': _seconds(ages.stamp_s),
        'unanswered_s': _seconds(ages.unanswered_s),
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


def _seconds(age_s: float | None) -> str:
    return '' if age_s is None else f'{age_s:.3f}'


def _verdict(state: NodeState, ages: StreamAges, last_failure: str) -> tuple[bytes, str]:
    if state.problem:
        return ERROR, state.problem
    if state.lifecycle != 'active':
        return WARN, f'{state.lifecycle}: requests are answered with success=false'
    frame_s, stamp_s = ages.frame_s or 0.0, ages.stamp_s or 0.0
    if abs(stamp_s) > OTHER_CLOCK_S:
        stamp_s = 0.0
    # One frame in each period is all that is asked for.
    unanswered_s = (ages.unanswered_s or 0.0) - state.min_period_s
    worst_s = max(frame_s, unanswered_s, stamp_s)
    if worst_s <= AGE_WARN_S:
        return OK, 'active'
    if frame_s > AGE_WARN_S:
        message = f'no usable frame for {frame_s:.1f} s; check the camera and img_topic'
    elif unanswered_s > AGE_WARN_S:
        message = (f'frames come, and none was answered for {ages.unanswered_s:.1f} s; '
                   + (f'the last failure was: {last_failure}' if last_failure
                      else 'the device is too slow or busy'))
    else:
        message = (f'the stamp of the last frame is {stamp_s:.1f} s old; check for delays on the '
                   "way, and the camera's clock (use_sim_time)")
    return (ERROR if worst_s > AGE_ERROR_S else WARN), message


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
