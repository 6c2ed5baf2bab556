# SPDX-License-Identifier: Apache-2.0
"""A live heatmap node in its own process, and a peer that talks to it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import rclpy
from blabberseg_interfaces.srv import GetPrompts, SetPrompts
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import (
    DescribeParameters,
    GetParameters,
    SetParameters,
    SetParametersAtomically,
)
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from blabberseg_ros.nodes.images import to_message

ROOT = Path(__file__).resolve().parents[2]
NAME = 'generate_landing_heatmap'
CAMERA_TOPIC = '/camera/image'
# The promise for heatmaps. All other deadlines only end what hangs, on a busy machine as well.
ANSWER_S = 5.0
START_S = DEADLINE_S = 60.0
# How often a wait makes sure that something can still arrive.
CHECK_PERIOD_S = 0.5

SERVICES = {
    GetLandingHeatmap: NAME,
    SetPrompts: f'{NAME}/set_prompts',
    GetPrompts: f'{NAME}/get_prompts',
    DescribeParameters: f'{NAME}/describe_parameters',
    GetParameters: f'{NAME}/get_parameters',
    SetParameters: f'{NAME}/set_parameters',
    SetParametersAtomically: f'{NAME}/set_parameters_atomically',
    ChangeState: f'{NAME}/change_state',
    GetState: f'{NAME}/get_state',
}

T = TypeVar('T')


def until(probe: Callable[[], T | None], timeout_s: float = DEADLINE_S, what: str = '') -> T:
    """Poll until the probe gives something that counts as true, and return it."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline_s:
            raise AssertionError(f'not within {timeout_s} s: {what or probe}')
        time.sleep(0.02)


def scene(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """Return a patchwork of colours: uint8 [H, W, 3]."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST)


def heatmap_request(image: np.ndarray | Image | None = None,
                    **fields: Any) -> GetLandingHeatmap.Request:
    """Return a request like that of DOVESEI's landing module, for the node's own prompts."""
    image = scene() if image is None else image
    if isinstance(image, np.ndarray):
        header = Header(frame_id='flying_sensor')
        header.stamp.sec, header.stamp.nanosec = 1234, 567_000_000
        image = to_message(image, 'rgb8', header)
    values = {'safety_threshold': 0.8, 'blur_kernel_size': 15, 'dynamic_threshold': 0.1, **fields}
    return GetLandingHeatmap.Request(image=image, **values)


def mask_of(response: GetLandingHeatmap.Response) -> np.ndarray:
    """Return a reply's mask as uint8 [H, W]."""
    heatmap = response.heatmap
    assert heatmap.encoding == 'mono8'
    assert heatmap.step == heatmap.width
    return np.frombuffer(heatmap.data, np.uint8).reshape(heatmap.height, heatmap.width)


class NodeProcess:
    """The node of a family, as its executable starts it, with parameters, and its log."""

    def __init__(self, log: Path, environment: dict[str, str] | None = None,
                 family: str = 'clipseg', params_file: Path | None = None,
                 **parameters: Any) -> None:
        self.log = log
        files = [] if params_file is None else ['--params-file', str(params_file)]
        arguments = [part for name, value in parameters.items()
                     for part in ('-p', f'{name}:={value}')]
        inherited = os.environ.get('PYTHONPATH', '')
        with log.open('wb') as output:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'blabberseg_ros.nodes.executables', f'{family}_node',
                 '--ros-args', *files, '-p', f'img_topic:={CAMERA_TOPIC}', *arguments],
                stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{inherited}',
                     **(environment or {})})

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        return self.log.read_text(errors='replace')

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = DEADLINE_S) -> int:
        """End the process, politely at first, and return its exit code."""
        if self.alive:
            self._process.send_signal(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise AssertionError(
                f'the node had not ended after {timeout_s} s:\n{self.output}') from None


class Peer:
    """A node in this process that calls, publishes and listens, spun by a thread."""

    def __init__(self, node_process: NodeProcess) -> None:
        self.process = node_process
        self.node = rclpy.create_node('peer')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._spin_error: Exception | None = None
        self._clients: dict[str, Any] = {}
        self.received: dict[str, list[Any]] = {}
        self.listen(DiagnosticArray, '/diagnostics')
        for kind, name in SERVICES.items():
            self._client(kind, name)
        self._is_known = False
        self._thread.start()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return
        except Exception as error:
            self._spin_error = error  # for the calls that wait
            raise

    def check_spinning(self) -> None:
        """Raise what has ended the thread that spins, as nothing arrives any more without it."""
        if self._spin_error is not None:
            raise AssertionError('nothing can arrive any more: the thread that spins the peer has '
                                 f'ended with {self._spin_error!r}') from self._spin_error

    def _is_done(self, future: Any, timeout_s: float) -> bool:
        """Wait for rclpy's future, which the spinning thread sets; return whether it came."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        deadline_s = time.monotonic() + timeout_s
        while not done.wait(min(CHECK_PERIOD_S, max(0.0, deadline_s - time.monotonic()))):
            self.check_spinning()
            if time.monotonic() >= deadline_s:
                return False
        return True

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(5.0)
        self.node.destroy_node()

    def listen(self, kind: type, topic: str, qos: QoSProfile | int = 100) -> Any:
        """Collect messages in `received[topic]`; undone with `ignore`."""
        messages = self.received[topic] = []
        return self.node.create_subscription(kind, topic, messages.append, qos)

    def ignore(self, subscription: Any) -> None:
        self.node.destroy_subscription(subscription)

    def camera(self, reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE) -> Any:
        """Return a publisher on the camera topic that the node has found."""
        publisher = self.node.create_publisher(
            Image, CAMERA_TOPIC, QoSProfile(depth=1, reliability=reliability))
        until(publisher.get_subscription_count, START_S, 'the node subscribes to the camera')
        return publisher

    def _client(self, kind: type, name: str) -> Any:
        if name not in self._clients:
            # Answers that come in a burst would push each other out of a queue of the usual 10.
            self._clients[name] = self.node.create_client(
                kind, name, qos_profile=QoSProfile(depth=100))
        return self._clients[name]

    def _get_known(self) -> None:
        """Wait until the node has discovered the clients, and would not lose their answers.

        It discovers them in the order of their creation, so an answer to the last one will do.
        """
        client = self._client(GetState, SERVICES[GetState])

        def answered() -> bool:
            assert self.process.alive, self.process.output
            future = client.call_async(GetState.Request())
            return client.wait_for_service(1.0) and self._is_done(future, 1.0)

        until(answered, START_S, f'the node answers:\n{self.process.output}')
        self._is_known = True

    def start_call(self, kind: type, name: str, request: Any) -> Any:
        """Send a request and return rclpy's future."""
        if not self._is_known:
            self._get_known()
        client = self._client(kind, name)
        if not client.wait_for_service(START_S):
            raise AssertionError(f'no service {name}:\n{self.process.output}')
        return client.call_async(request)

    def finish(self, future: Any, timeout_s: float = DEADLINE_S) -> Any:
        if not self._is_done(future, timeout_s):
            raise AssertionError(f'no answer within {timeout_s} s:\n{self.process.output}')
        return future.result()

    def call(self, kind: type, name: str, request: Any, timeout_s: float = DEADLINE_S) -> Any:
        return self.finish(self.start_call(kind, name, request), timeout_s)

    def heatmap(self, image: np.ndarray | Image | None = None,
                **fields: Any) -> GetLandingHeatmap.Response:
        return self.send(heatmap_request(image, **fields))

    def send(self, request: GetLandingHeatmap.Request) -> GetLandingHeatmap.Response:
        return self.call(GetLandingHeatmap, NAME, request, ANSWER_S)

    def set_prompts(self, positive: list[str], negative: list[str],
                    template: str = '') -> SetPrompts.Response:
        return self.call(SetPrompts, f'{NAME}/set_prompts', SetPrompts.Request(
            positive=positive, negative=negative, prompt_template=template))

    def get_prompts(self) -> GetPrompts.Response:
        return self.call(GetPrompts, f'{NAME}/get_prompts', GetPrompts.Request())

    def set_parameters(self, **values: Any) -> Any:
        """Set parameters together; return the one result."""
        return self.call(
            SetParametersAtomically, f'{NAME}/set_parameters_atomically',
            SetParametersAtomically.Request(parameters=[
                Parameter(name, value=value).to_parameter_msg()
                for name, value in values.items()])).result

    def set_parameter_messages(self, request: SetParameters.Request) -> Any:
        return self.start_call(SetParameters, f'{NAME}/set_parameters', request)

    def get_parameter(self, name: str) -> Any:
        response = self.call(GetParameters, f'{NAME}/get_parameters',
                             GetParameters.Request(names=[name]))
        return parameter_value_to_python(response.values[0])

    def change_state(self, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return self.call(ChangeState, f'{NAME}/change_state', request).success

    def state(self) -> str:
        return self.call(GetState, f'{NAME}/get_state', GetState.Request()).current_state.label

    def wait_active(self) -> None:
        until(lambda: self.process.alive and self.state() == 'active', START_S,
              f'the node becomes active:\n{self.process.output}')

    def diagnostics(self, wanted: Callable[[DiagnosticStatus, dict[str, str]], bool] =
                    lambda status, values: True) -> tuple[DiagnosticStatus, dict[str, str]]:
        """Return the first report from now on that is as wanted.

        One that was made earlier may still arrive, hence the stamps.
        """
        messages = self.received['/diagnostics']
        position, now_ns = len(messages), self.node.get_clock().now().nanoseconds

        def probe() -> tuple[DiagnosticStatus, dict[str, str]] | None:
            self.check_spinning()
            for message in messages[position:]:
                if Time.from_msg(message.header.stamp).nanoseconds < now_ns:
                    continue
                status = message.status[0]
                values = {item.key: item.value for item in status.values}
                if wanted(status, values):
                    return status, values
            return None

        return until(probe, what='the diagnostics are as wanted')

    def counters(self) -> dict[str, int]:
        """Return the whole numbers of the next diagnostics."""
        _, values = self.diagnostics()
        return {key: int(value) for key, value in values.items() if value.isdecimal()}
