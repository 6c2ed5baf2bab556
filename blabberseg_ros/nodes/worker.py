# SPDX-License-Identifier: Apache-2.0
"""One thread that owns the model, and the order in which it works.

Requests go first, in the order of their arrival. A change of prompts is encoded one prompt at a
time, and the newest stream frame gets its turn in between, so that neither holds up the other.
Nothing here knows ROS.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from blabberseg_ros.errors import EngineError, PromptError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.nodes.keeper import ModelKeeper, SegmenterLike, in_parts
from blabberseg_ros.nodes.work import (
    Encoding,
    Frame,
    PromptChange,
    Request,
    Segmented,
    Withdrawn,
)
from blabberseg_ros.prompts import PromptSet

# Eight frames at 5 Hz are answered within 2 s; whoever comes then is better told at once.
MAX_WAITING_REQUESTS = 8
# Then one prompt of a waiting change is encoded, or busy clients would put it off for ever.
REQUESTS_IN_A_ROW = 4
WARM_UP_PX = 352
_SHUTTING_DOWN = 'not answered, because the node is shutting down'

T = TypeVar('T')
# Gives a caller what has been worked out for it.
Reply = Callable[[], None]


class Worker:
    """Run a segmenter on a thread of its own, and stay alive whatever happens to it.

    Args:
        warn: is given a sentence when something went wrong that no caller is told.
        clock_ns: nanoseconds; marks when a prompt set came into use.
        settled: is called on the worker's thread after each piece of work, before its caller is
            answered, with the segmenter.
    """

    def __init__(self, warn: Callable[[str], object], clock_ns: Callable[[], int] = time.time_ns,
                 settled: Callable[[Any], None] = lambda segmenter: None) -> None:
        """Start the thread."""
        self._warn = warn
        self._clock_ns = clock_ns
        self._settled = settled
        self._keeper = ModelKeeper(warn)
        self._changed = threading.Condition()
        self._control: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._requests: deque[Request] = deque()
        self._encoding: Encoding | None = None
        self._next_encoding: Encoding | None = None
        self._frame: Frame | None = None
        self._frame_turn = False
        self._requests_in_a_row = 0
        self._frame_started_s = float('-inf')
        self._min_period_s = 0.0
        self._stopping = False
        self._prompts: PromptChange | None = None
        self.dropped_frames = 0  # stream frames that a newer one replaced
        self._thread = threading.Thread(target=self._run, name='segmenter', daemon=True)
        self._thread.start()

    @property
    def prompts(self) -> PromptChange | None:
        """Return the prompt set in use, or None before the first."""
        return self._prompts

    @property
    def changing(self) -> bool:
        """Return whether a prompt set is being encoded, or waits for it."""
        return any(encoding is not None and not encoding.future.cancelled()
                   for encoding in (self._encoding, self._next_encoding))

    @property
    def min_period_s(self) -> float:
        """Return the shortest time from the start of one stream frame to that of the next."""
        return self._min_period_s

    @min_period_s.setter
    def min_period_s(self, period_s: float) -> None:
        with self._changed:
            self._min_period_s = period_s
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Return the number of requests that wait for their turn."""
        return len(self._requests)

    @property
    def failures(self) -> int:
        """Return how many images in a row could not be segmented for reasons of the model."""
        return self._keeper.failures

    @property
    def retries(self) -> int:
        """Return how many images were tried a second time."""
        return self._keeper.retries

    def open(self, opener: Callable[[], SegmenterLike]) -> 'Future[None]':
        """Open a model, and close the one that was open. `opener` runs on the worker's thread."""
        def work() -> None:
            self._prompts = None
            self._keeper.open(opener)

        return self._submit(work)

    def activate(self) -> 'Future[None]':
        """Load the open model onto its device."""
        return self._submit(self._keeper.activate)

    def warm_up(self) -> 'Future[Segmented]':
        """Run once, so that the first request finds everything allocated."""
        grey = np.full((WARM_UP_PX, WARM_UP_PX, 3), 128, np.uint8)
        return self._submit(lambda: self._segment(grey, None, FusionOptions()))

    def deactivate(self) -> 'Future[None]':
        """Free the device; what waits is refused."""
        def work() -> None:
            self._refuse_waiting('not answered, because the node is being deactivated')
            self._keeper.deactivate()

        return self._submit(work)

    def close(self) -> 'Future[None]':
        """Let go of the model."""
        return self._submit(self._close)

    def segment(self, image: np.ndarray, prompts: PromptSet | None, fusion: FusionOptions,
                timeout_s: float) -> 'Future[Segmented]':
        """Ask for one image, before any stream frame.

        Args:
            image: uint8 [H, W, 3].
            prompts: None for the set in use when its turn comes.
            fusion: how probabilities become a mask.
            timeout_s: when it is over nobody waits any longer, and the work is broken off.

        Raises:
            EngineError: too many requests wait already.
        """
        request = Request(image, prompts, fusion, time.monotonic() + timeout_s, Future())
        with self._changed:
            if len(self._requests) >= MAX_WAITING_REQUESTS:
                raise EngineError(
                    f'{len(self._requests)} requests wait already, so this one was not taken; '
                    'ask less often, or run the node on a faster device')
            if self._stopping:
                raise EngineError('the node is shutting down')
            self._requests.append(request)
            self._changed.notify()
        return request.future

    def offer(self, frame: Frame) -> None:
        """Offer a stream frame. An older one that waits is dropped and counted."""
        with self._changed:
            self.dropped_frames += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def set_prompts(self, prompts: PromptSet) -> 'Future[PromptChange]':
        """Encode a prompt set and then put it into use; until then the old one serves.

        The set being encoded is finished, unless its future is cancelled: then it never comes
        into use. One that waits behind it is superseded by a newer one and its future raises
        Withdrawn.
        """
        encoding = Encoding(prompts, Future(), in_parts(prompts, 1))
        with self._changed:
            stopping = self._stopping
            if not stopping:
                superseded, self._next_encoding = self._next_encoding, encoding
                self._changed.notify()
        if stopping:
            _fail(encoding.future, Withdrawn(_SHUTTING_DOWN))
        elif superseded is not None:
            _fail(superseded.future, Withdrawn(
                'these prompts were not put into use, because a later change replaced them while '
                'they waited'))
        return encoding.future

    def stop(self, timeout_s: float) -> bool:
        """End the thread.

        Args:
            timeout_s: how long to wait for the work in progress.

        Returns:
            Whether the thread has ended.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._refuse_waiting(_SHUTTING_DOWN)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _submit(self, work: Callable[[], T]) -> 'Future[T]':
        future: Future[T] = Future()
        with self._changed:
            stopping = self._stopping
            if not stopping:
                self._control.append((work, future))
                self._changed.notify()
        if stopping:
            _fail(future, Withdrawn(_SHUTTING_DOWN))
        return future

    def _run(self) -> None:
        while True:
            step = self._next_step()
            if step is None:
                break
            # Each step catches what goes wrong for its caller; what gets here is a bug, and must
            # not end the thread on which every answer depends.
            try:
                reply = step()
                try:
                    self._settled(self._keeper.segmenter)
                finally:
                    reply()
                # Else the last image would live until the next step.
                del reply
            except Exception as error:
                self._warn(f'internal error in the worker, work goes on: {error!r}')
            del step
        self._refuse_waiting(_SHUTTING_DOWN)
        try:
            self._close()
        except Exception as error:
            self._warn(f'the model did not close cleanly: {error!r}')

    def _next_step(self) -> Callable[[], Reply] | None:
        """Wait for work; return None when the thread shall end."""
        with self._changed:
            while not self._stopping:
                if self._control:
                    work, control_future = self._control.popleft()
                    return lambda: _answer(control_future, work)
                if self._encoding is None:
                    self._encoding, self._next_encoding = self._next_encoding, None
                starving = (self._encoding is not None
                            and self._requests_in_a_row >= REQUESTS_IN_A_ROW)
                if self._requests and not starving:
                    request = self._requests.popleft()
                    self._requests_in_a_row += 1
                    return lambda: self._run_request(request)
                self._requests_in_a_row = 0
                frame_in_s = (self._frame_started_s + self._min_period_s - time.monotonic()
                              if self._frame else None)
                frame_due = frame_in_s is not None and frame_in_s <= 0
                if self._encoding is not None and (
                        starving or not (frame_due and self._frame_turn)):
                    encoding, self._frame_turn = self._encoding, True
                    return lambda: self._encode_step(encoding)
                if frame_due and self._frame is not None:
                    frame, self._frame, self._frame_turn = self._frame, None, False
                    self._frame_started_s = time.monotonic()
                    return lambda: self._run_frame(frame)
                self._changed.wait(frame_in_s)
            return None

    def _run_request(self, request: Request) -> Reply:
        return _answer(request.future, lambda: self._segment(
            request.image, request.prompts, request.fusion, deadline_s=request.deadline_s))

    def _run_frame(self, frame: Frame) -> Reply:
        try:
            image = frame.image()
            if image is None:
                return _no_reply
            answer = self._segment(
                image, None, frame.fusion, with_probability=frame.with_probability)
        except Exception as error:
            return partial(frame.fail, error)

        def deliver() -> None:
            try:
                frame.deliver(answer)
            except Exception as error:
                frame.fail(error)

        return deliver

    def _encode_step(self, encoding: Encoding) -> Reply:
        """Encode one more prompt of a set; after the last one the set comes into use."""
        if encoding.future.cancelled():
            self._claim(encoding)
            return _no_reply
        try:
            part = next(encoding.steps, None)
            report = self._keeper.encode(part or encoding.prompts)
            encoding.encode_ms += report.encode_ms
            encoding.encoded += report.encoded
            if part is not None:
                return _no_reply
            report = replace(report, encoded=encoding.encoded, encode_ms=encoding.encode_ms)
            change = PromptChange(encoding.prompts, report, self._clock_ns())
        except Exception as error:
            if not self._claim(encoding):
                return _no_reply
            return partial(encoding.future.set_exception, error)
        if not self._claim(encoding):
            return _no_reply
        self._prompts = change
        return partial(encoding.future.set_result, change)

    def _claim(self, encoding: Encoding) -> bool:
        """Take a set out of work; return whether its caller is there and is ours to answer.

        From then on the caller cannot give up any more, nor `stop` refuse it: whoever is told that
        a set is not in use is told the truth.
        """
        with self._changed:
            if self._encoding is not encoding:
                return False
            self._encoding = None
            return encoding.future.set_running_or_notify_cancel()

    def _segment(self, image: np.ndarray, prompts: PromptSet | None, fusion: FusionOptions, *,
                 with_probability: bool = False, deadline_s: float = float('inf')) -> Segmented:
        if prompts is None:
            if self._prompts is None:
                raise PromptError(
                    'the node has no prompts yet; wait until it is active, or send prompts')
            prompts = self._prompts.prompts
        heatmap = self._keeper.segment(
            image, prompts, fusion, with_probability=with_probability,
            cancelled=lambda: self._stopping or time.monotonic() > deadline_s)
        return Segmented(heatmap, image, prompts)

    def _close(self) -> None:
        self._prompts = None
        self._keeper.close()

    def _refuse_waiting(self, reason: str) -> None:
        with self._changed:
            waiting: list[Future[Any]] = [request.future for request in self._requests]
            waiting += [encoding.future for encoding in (self._encoding, self._next_encoding)
                        if encoding is not None]
            if self._stopping:
                waiting += [future for _, future in self._control]
                self._control.clear()
            self._requests.clear()
            self._encoding = self._next_encoding = self._frame = None
        for future in waiting:
            _fail(future, Withdrawn(reason))


def _no_reply() -> None:
    """Answer nobody."""


def _answer(future: 'Future[T]', work: Callable[[], T]) -> Reply:
    """Run work for a future, unless its caller has given up; return what answers it."""
    if not future.set_running_or_notify_cancel():
        return _no_reply
    try:
        return partial(future.set_result, work())
    except Exception as error:
        return partial(future.set_exception, error)


def _fail(future: 'Future[Any]', error: Exception) -> None:
    """Give a future an exception, unless it has been given up or answered already."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
