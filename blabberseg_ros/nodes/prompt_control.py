# SPDX-License-Identifier: Apache-2.0
"""The heatmap node's prompts: changed by service or by parameter, and shown by both."""

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from blabberseg_interfaces.srv import GetPrompts, SetPrompts
from rclpy.parameter import Parameter
from rclpy.time import Time

from blabberseg_ros.errors import EngineError, reason_of
from blabberseg_ros.nodes.work import PromptChange, Withdrawn
from blabberseg_ros.nodes.worker import Worker
from blabberseg_ros.prompts import PromptSet

if TYPE_CHECKING:
    from blabberseg_ros.nodes.heatmap_node import HeatmapNode

ENCODE_TIMEOUT_S = 60.0


class PromptControl:
    """Changes the prompts in use: whatever is set last wins, by service or by parameter."""

    def __init__(self, node: 'HeatmapNode', worker: Worker,
                 parameters_lock: AbstractContextManager[object]) -> None:
        """Leave everything as it is.

        Args:
            node: its parameters show the prompts.
            worker: encodes them, and knows which are in use.
            parameters_lock: reentrant; held while parameters change.
        """
        self._node = node
        self._worker = worker
        self._parameters_lock = parameters_lock
        self._mirroring = threading.local()

    def on_set(self, request: SetPrompts.Request,
               response: SetPrompts.Response) -> SetPrompts.Response:
        """Answer a request to change the prompts, once they are in use or refused."""
        try:
            if not self._node.active:
                raise EngineError(f'the node is {self._node.lifecycle}; activate it first, or set '
                                  'the prompt parameters')
            template = request.prompt_template or self._node.values.prompt_template
            prompts = PromptSet(tuple(request.positive), tuple(request.negative), template)
            change = self._change(prompts)
            self._show()  # before the caller can change one of them
        except Exception as error:  # a caller without an answer waits for ever
            response.success = False
            response.message = reason_of(error)
            self._node.get_logger().warning(f'prompts refused: {response.message}',
                                            throttle_duration_sec=1.0)
            return response
        response.success = True
        response.message = change.report.explanation
        response.truncated = list(change.report.cut)
        response.encode_ms = float(change.report.encode_ms)
        response.since = Time(nanoseconds=change.since_ns).to_msg()
        return response

    def on_get(self, request: GetPrompts.Request,
               response: GetPrompts.Response) -> GetPrompts.Response:
        """Answer which prompts are in use; before the first, which are meant to be."""
        change = self._worker.prompts
        prompts = change.prompts if change is not None else self._node.values.prompts
        response.positive = list(prompts.positive)
        response.negative = list(prompts.negative)
        response.prompt_template = prompts.template
        if change is not None:
            response.since = Time(nanoseconds=change.since_ns).to_msg()
        return response

    def on_parameters(self, prompts: PromptSet) -> None:
        """Put the prompts of the parameters into use, unless they only show what is in use."""
        if not getattr(self._mirroring, 'now', False):
            self._submit(prompts)

    def fill_parameters(self, prompts: PromptSet) -> None:
        """Put prompts into the parameters without having them encoded once more."""
        self._mirroring.now = True
        try:
            self._node.set_parameters_atomically([
                Parameter('positive_prompts', value=list(prompts.positive)),
                Parameter('negative_prompts', value=list(prompts.negative)),
                Parameter('prompt_template', value=prompts.template)])
        finally:
            self._mirroring.now = False

    def _change(self, prompts: PromptSet) -> PromptChange:
        """Put prompts into use.

        Raises:
            EngineError: encoding takes too long; the prompts do not come into use any more.
        """
        future = self._submit(prompts)
        try:
            return future.result(ENCODE_TIMEOUT_S)
        except FutureTimeoutError:
            if not future.cancel():  # they come into use at this very moment
                return future.result()
        raise EngineError(
            f'the prompts were not encoded within {ENCODE_TIMEOUT_S:g} s and are not in use')

    def _submit(self, prompts: PromptSet) -> 'Future[PromptChange]':
        future = self._worker.set_prompts(prompts)
        future.add_done_callback(self._settled)
        return future

    def _settled(self, future: 'Future[PromptChange]') -> None:
        """Let the parameters show what is in use, whether the change came about or not."""
        error = None if future.cancelled() else future.exception()
        if isinstance(error, Withdrawn):
            return
        if error is not None:
            self._node.get_logger().error(f'the prompts stay as they were: {error}')
        elif not future.cancelled():
            self._node.get_logger().info('; '.join(filter(None, (
                'new prompts are in use', future.result().report.explanation))))
        self._show()

    def _show(self) -> None:
        """Let the parameters show the prompts in use.

        A change that has been asked for since then is what they show already.
        """
        with self._parameters_lock:
            change = self._worker.prompts
            if change is not None and not self._worker.changing:
                self.fill_parameters(change.prompts)
