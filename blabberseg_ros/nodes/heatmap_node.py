# SPDX-License-Identifier: Apache-2.0
"""The landing heatmap node: DOVESEI's service, and a stream of heatmaps beside it.

Every request is answered, in time, whatever it holds: `success=false` and a black mask if need
be. A landing controller that waits for ever keeps its last velocity.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, TypeVar

from blabberseg_interfaces.srv import GetPrompts, SetPrompts
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from blabberseg_ros.engines.choose import AUTO
from blabberseg_ros.errors import BlabbersegError, Cancelled, EngineError, reason_of
from blabberseg_ros.heatmap import FusionOptions, Heatmap
from blabberseg_ros.nodes.diagnostics import ModelState, NodeState, Statistics, report, to_array
from blabberseg_ros.nodes.images import black_mask, to_message, to_rgb
from blabberseg_ros.nodes.parameters import (
    HEATMAP_TABLE,
    NODE_NAME,
    PROMPT_NAMES,
    HeatmapParameters,
)
from blabberseg_ros.nodes.prompt_control import PromptControl
from blabberseg_ros.nodes.spin import run_node
from blabberseg_ros.nodes.stream import Stream
from blabberseg_ros.nodes.work import Segmented
from blabberseg_ros.nodes.worker import Worker
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.segmenter import Segmenter

# A thread for each request that waits, and enough left for frames, parameters and diagnostics.
THREADS = 16
# The default depth of 10 loses requests of a burst, and their clients wait for ever.
SERVICE_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
# No threshold of a probability leaves anything above it: what a black mask corresponds to.
NOTHING_SAFE = 1.0
PROGRESS_INTERVAL_S = 5.0
RETRY_FIRST_S, RETRY_LAST_S = 5.0, 60.0
STOP_TIMEOUT_S = 3.0

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = 'unconfigured', 'inactive', 'active', 'finalized'

T = TypeVar('T')


class HeatmapNode(LifecycleNode):
    """Answers requests and camera frames with landing heatmaps."""

    def __init__(self, backend: str = AUTO) -> None:
        """Create every interface; the model is loaded when the node is configured.

        Args:
            backend: default of the parameter.

        Raises:
            ParameterError: a parameter given at the start is refused.
        """
        super().__init__(NODE_NAME)
        self._values = HEATMAP_TABLE.declare(self, backend=backend)
        self._values_lock = threading.RLock()
        self._lifecycle = UNCONFIGURED
        self._problem = ''
        self._model = ModelState()
        self._statistics = Statistics()
        self._worker = Worker(
            self.get_logger().warning, lambda: self.get_clock().now().nanoseconds,
            self._note_model)
        self._stream = Stream(self, self._worker, self._statistics)
        self._prompts = PromptControl(self, self._worker, self._values_lock)
        self._final = self.create_publisher(Image, '/final_heatmap', 1)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 1)
        requests = ReentrantCallbackGroup()
        for service, name, callback in (
                (GetLandingHeatmap, NODE_NAME, self._on_heatmap),
                (SetPrompts, '~/set_prompts', self._prompts.on_set),
                (GetPrompts, '~/get_prompts', self._prompts.on_get)):
            self.create_service(service, name, callback, qos_profile=SERVICE_QOS,
                                callback_group=requests)
        self.add_on_set_parameters_callback(self._on_parameters)
        self.create_timer(self._values.diagnostics_period_s, self._publish_diagnostics,
                          callback_group=MutuallyExclusiveCallbackGroup())
        self._autostarting = self._values.autostart
        self._retry_s, self._next_try_s = RETRY_FIRST_S, 0.0
        self._autostart_timer = self.create_timer(
            0.1, self._autostart, callback_group=MutuallyExclusiveCallbackGroup())

    @property
    def lifecycle(self) -> str:
        """Return the label of the lifecycle state."""
        return self._lifecycle

    @property
    def active(self) -> bool:
        """Return whether requests and frames are worked on."""
        return self._lifecycle == ACTIVE

    @property
    def values(self) -> HeatmapParameters:
        """Return the values of the parameters at this moment."""
        return self._values

    def close(self) -> bool:
        """Stop working.

        Returns:
            Whether the worker has ended. If not, it hangs in the engine.
        """
        self._lifecycle = FINALIZED
        self._autostarting = False
        return self._worker.stop(STOP_TIMEOUT_S)

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Find and check the model."""
        return self._transition(self._configure, 'configured', INACTIVE)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, encode the prompts, and begin to answer."""
        if self._transition(self._activate, 'activated', INACTIVE) != SUCCESS:
            return FAILURE
        super().on_activate(state)
        self._lifecycle = ACTIVE
        self.get_logger().info(
            f'active: {self._model.bundle} on {self._model.engine} ({self._model.precision}), '
            f'{self._prompts_in_use()} prompts')
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the device; requests are answered with success=false from here on."""
        self._lifecycle = INACTIVE
        if self._transition(lambda: self._wait(
                self._worker.deactivate(), 'freeing the device'), 'deactivated',
                INACTIVE) != SUCCESS:
            self._lifecycle = ACTIVE  # as the state machine after a failure
            return FAILURE
        super().on_deactivate(state)
        return SUCCESS

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the model."""
        return self._transition(lambda: self._wait(
            self._worker.close(), 'closing the model'), 'cleaned up', UNCONFIGURED)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of everything; requests are still answered, with success=false."""
        self._autostarting = False
        self._lifecycle = FINALIZED  # whatever comes of it
        return self._transition(lambda: self._wait(
            self._worker.close(), 'closing the model'), 'shut down', FINALIZED)

    def _transition(self, work: Callable[[], None], done: str,
                    target: str) -> TransitionCallbackReturn:
        """Do the work of a transition. rclpy would swallow what it raises."""
        try:
            work()
        except Exception as error:
            self._problem = f'the node cannot be {done}: {error}'
            self.get_logger().error(self._problem)
            return FAILURE
        self._problem = ''
        self._lifecycle = target
        return SUCCESS

    def _configure(self) -> None:
        values = self._values
        if values.prompts_file:
            self._prompts.fill_parameters(PromptSet.from_yaml(values.prompts_file))
        self._wait(self._worker.open(lambda: Segmenter.open(
            values.bundle, backend=values.backend, engine=values.engine, device=values.device,
            cache_dir=Path(values.cache_dir).expanduser() if values.cache_dir else None,
            classes_files=[Path(values.classes_file).expanduser()] if values.classes_file else [],
            decode_budget_ms=values.decode_budget_ms or None)),
            f'checking the model {values.bundle}')

    def _activate(self) -> None:
        self._wait(self._worker.activate(), 'loading the model')
        change = self._wait(
            self._worker.set_prompts(self._values.prompts), 'encoding the prompts')
        if change.report.explanation:
            self.get_logger().info(f'how the prompts are read: {change.report.explanation}')
        try:
            self._wait(self._worker.warm_up(), 'the first run')
        except BlabbersegError as error:
            # Each answer is checked again, and the reason may be gone by then.
            self.get_logger().error(f'the first run of the model failed: {error}')

    def _wait(self, future: 'Future[T]', what: str) -> T:
        """Wait for the worker, with signs of life, until load_timeout_s.

        Raises:
            EngineError: the time is up.
        """
        started_s = time.monotonic()
        while True:
            try:
                return future.result(PROGRESS_INTERVAL_S)
            except FutureTimeoutError:
                elapsed_s = time.monotonic() - started_s
            if elapsed_s >= self._values.load_timeout_s:
                future.cancel()
                raise EngineError(
                    f'{what} took longer than {elapsed_s:.0f} s; raise load_timeout_s or check '
                    'the device')
            self.get_logger().info(f'{what}: {elapsed_s:.0f} s so far')

    def _autostart(self) -> None:
        """Go towards active; after a failure try again, each time after a longer while."""
        if not self._autostarting:
            self._autostart_timer.cancel()
            return
        if time.monotonic() < self._next_try_s:
            return
        trigger = (self.trigger_configure if self._lifecycle == UNCONFIGURED
                   else self.trigger_activate)
        if trigger() != SUCCESS:
            self.get_logger().warning(f'next try in {self._retry_s:.0f} s')
            self._next_try_s = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, RETRY_LAST_S)
        self._autostarting = self._autostarting and not self.active

    # Requests

    def _on_heatmap(self, request: GetLandingHeatmap.Request,
                    response: GetLandingHeatmap.Response) -> GetLandingHeatmap.Response:
        image = request.image
        header = self.result_header(image.header)
        try:
            heatmap = self._answer(request).heatmap
            response.heatmap = to_message(heatmap.mask, 'mono8', header)
            response.curr_threshold = float(heatmap.threshold)
            response.success = bool(heatmap.success)
            self.note_answer(heatmap, 'requests')
        except Exception as error:  # a caller without an answer waits for ever
            reason = reason_of(error)
            self._statistics.refused('requests', reason, late=isinstance(error, Cancelled))
            self.get_logger().warning(f'request refused: {reason}', throttle_duration_sec=1.0)
            response.heatmap = black_mask(
                image.width, image.height, header, self._values.max_megapixels)
            response.curr_threshold = NOTHING_SAFE
            response.success = False
        self._final.publish(response.heatmap)
        return response

    def _answer(self, request: GetLandingHeatmap.Request) -> Segmented:
        values = self._values
        if not self.active:
            raise EngineError(
                f'the node is {self._lifecycle} and not active'
                + (f' ({self._problem})' if self._problem else '; activate it first'))
        fusion = FusionOptions(request.safety_threshold, request.blur_kernel_size,
                               request.dynamic_threshold, values.min_threshold,
                               values.on_failure)
        prompts = None
        if request.positive_prompts or request.negative_prompts:
            prompts = PromptSet.from_wire(request.positive_prompts, request.negative_prompts,
                                          request.prompt_engineering)
        rgb = to_rgb(request.image, values.max_megapixels)
        future = self._worker.segment(rgb, prompts, fusion, values.request_timeout_s)
        try:
            return future.result(values.request_timeout_s)
        except FutureTimeoutError:
            future.cancel()
            raise Cancelled(f'no answer within {values.request_timeout_s:g} s; the device is too '
                            'slow or busy') from None

    def note_answer(self, heatmap: Heatmap, kind: str) -> None:
        """Count an answer, and log what is to be known about it.

        Args:
            heatmap: the answer.
            kind: `requests` or `frames`.
        """
        self._statistics.answered(heatmap, kind)
        if heatmap.message:
            self.get_logger().warning(heatmap.message, throttle_duration_sec=5.0)

    def result_header(self, header: Header) -> Header:
        """Return the header of a result: the image's own, with another stamp if so wanted."""
        if self._values.stamp == 'capture':
            return header
        return Header(stamp=self.get_clock().now().to_msg(), frame_id=header.frame_id)

    # Parameters

    def _on_parameters(self, requested: list[Parameter]) -> SetParametersResult:
        with self._values_lock:
            previous = self._values
            self._values, result = HEATMAP_TABLE.apply(
                previous, requested, self._lifecycle == UNCONFIGURED)
            if not result.successful:
                self.get_logger().warning(f'parameter refused: {result.reason}',
                                          throttle_duration_sec=1.0)
                return result
            mentioned = {item.name for item in requested} & PROMPT_NAMES
            self._worker.min_period_s = self._values.min_period_s
            if mentioned and self.active:
                self._prompts.on_parameters(self._values.prompts)
        return result

    # Diagnostics

    def _publish_diagnostics(self) -> None:
        stamp = self.get_clock().now().to_msg()  # all figures are as new as it says, or newer
        failures, late = self._worker.failures, self._statistics.late_requests
        problem = self._problem
        if failures and not problem:
            problem = (f'the last {failures} images could not be segmented: '
                       f'{self._statistics.last_failure}')
        elif late and not problem:
            problem = (f'the last {late} requests were not answered in time: '
                       f'{self._statistics.last_failure}')
        state = NodeState(
            lifecycle=self._lifecycle, streaming=self._stream.running, problem=problem,
            dropped_frames=self._worker.dropped_frames, retries=self._worker.retries,
            waiting_requests=self._worker.waiting, prompts=self._prompts_in_use(),
            model=self._model, min_period_s=self._values.min_period_s)
        status = report(state, self._statistics, self.get_name())
        self._diagnostics.publish(to_array(status, stamp))

    def _prompts_in_use(self) -> int:
        change = self._worker.prompts
        return len(change.prompts) if change is not None else 0

    def _note_model(self, segmenter: Segmenter | None) -> None:
        """Copy what the diagnostics show; only the worker may touch the segmenter."""
        if segmenter is None:
            self._model = ModelState()
            return
        counts = segmenter.run_counts
        self._model = ModelState(
            segmenter.bundle.manifest.name, segmenter.engine_name, segmenter.precision,
            counts.image_encoder, counts.text_encoder, counts.decoder)


def main(arguments: Sequence[str] | None = None, backend: str = AUTO) -> int:
    """Run the node until SIGINT or SIGTERM; return the exit code.

    Args:
        arguments: of the command line; None takes those of the process.
        backend: model family where the parameter says nothing.
    """
    ended = True

    def close(node: Any) -> None:
        nonlocal ended
        ended = node.close()

    code = run_node(lambda: HeatmapNode(backend), arguments, THREADS, close)
    if not ended:
        # A thread that hangs in the engine would hold up, or crash, the interpreter's end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
