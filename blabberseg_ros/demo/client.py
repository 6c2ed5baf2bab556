# SPDX-License-Identifier: Apache-2.0
"""The demo's pilot: a ROS node that lands a simulated drone by heatmaps alone.

Like DOVESEI's landing_module it sends a camera frame as soon as the last one is answered. It
knows the world from camera, depth and pose only. Half way down it asks what it is about to land
on, and declares just that unsafe.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from blabberseg_interfaces.srv import GetPrompts, SetPrompts
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, Twist
from rclpy.client import Client
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from rclpy.utilities import try_shutdown
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool

from blabberseg_ros.demo.client_parameters import CLIENT_TABLE
from blabberseg_ros.demo.heatmap_client import (
    HeatmapClient,
    Receive,
    frame_request,
    question_request,
)
from blabberseg_ros.demo.lander import LanderOptions
from blabberseg_ros.demo.moments import Moments
from blabberseg_ros.demo.pilot import Pilot
from blabberseg_ros.demo.planner import Viewpoint
from blabberseg_ros.demo.progress import Progress
from blabberseg_ros.demo.prompt_switch import PromptSwitch
from blabberseg_ros.demo.recording import Answer, Diagnosis, Event, Flight, Position, PromptChange
from blabberseg_ros.errors import ImageError
from blabberseg_ros.nodes.images import to_rgb
from blabberseg_ros.nodes.spin import run_node
from blabberseg_ros.prompts import PromptSet

NODE_NAME = 'demo_client'
CONTROL_PERIOD_S = 0.05
KEPT_POSES = 100
NOT_LANDED = 3
LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class DemoClient(Node):
    """Flies one flight and records what it saw."""

    def __init__(self, progress: Progress | None = None) -> None:
        """Connect to camera and heatmap node; the flight begins when both have answered.

        Args:
            progress: where to show it; None for standard output.

        Raises:
            ParameterError: a parameter is refused.
        """
        super().__init__(NODE_NAME)
        self._values = CLIENT_TABLE.declare(self)
        self.flight = Flight()
        self.done = False
        self._progress = progress or Progress()
        self._moments = Moments(self.flight.moments.append)
        self._poses: OrderedDict[int, Position] = OrderedDict()
        self._position: Position | None = None
        self._focal: float | None = None
        self._frame: Image | None = None
        self._asked_stamp_ns = 0
        self._landed = False
        self._active = False
        self._start_ns: int | None = None
        self._pilot: Pilot | None = None
        self._first_height_m = 0.0
        # The change of prompts: questions, then the service, then the first mask.
        self._switch: PromptSwitch | None = None
        self._switch_frame: Image | None = None
        self._changing = False
        self._changed_s: float | None = None
        self._connect()

    def _connect(self) -> None:
        values, node = self._values, self._values.heatmap_node
        self._twist = self.create_publisher(Twist, values.twist_topic, 1)
        for kind, topic, callback in (
                (Image, values.rgb_topic, self._on_rgb),
                (Image, values.depth_topic, self._on_depth),
                (CameraInfo, values.camera_info_topic, self._on_camera_info),
                (PoseStamped, values.pose_topic, self._on_pose),
                (Image, f'{node}/probability', self._on_probability),
                (Image, f'{node}/heatmap', self._on_stream_mask)):
            self.create_subscription(kind, topic, callback, 1)
        self.create_subscription(Bool, values.landed_topic, self._on_landed, LATCHED_QOS)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self._heatmaps = HeatmapClient(self, values)
        self._set_prompts: Client = self.create_client(SetPrompts, f'{node}/set_prompts')
        self._get_prompts: Client = self.create_client(GetPrompts, f'{node}/get_prompts')
        self.create_timer(CONTROL_PERIOD_S, self._control)

    @property
    def elapsed_s(self) -> float:
        """Return the time since the flight began; 0 before."""
        if self._start_ns is None:
            return 0.0
        return (self.get_clock().now().nanoseconds - self._start_ns) * 1e-9

    @property
    def flying(self) -> bool:
        """Return whether the flight has begun."""
        return self._pilot is not None

    def end(self, problem: str = '', broken: bool = False) -> None:
        """End the flight: stop the vehicle, keep the record.

        Args:
            problem: why it ended, if not by a landing.
            broken: something else than the flight itself went wrong.
        """
        if self.done:
            return
        self.done = True
        self.flight.problem, self.flight.broken = problem, broken
        self.flight.duration_s = self.elapsed_s
        self._twist.publish(Twist())
        if problem:
            self._note('failure', problem)

    # What comes in

    def _on_camera_info(self, message: CameraInfo) -> None:
        if message.width:
            self._focal = float(message.k[0]) / message.width

    def _on_pose(self, message: PoseStamped) -> None:
        point = message.pose.position
        self._position = (point.x, point.y, point.z)
        self._poses[_stamp_ns(message)] = self._position
        while len(self._poses) > KEPT_POSES:
            self._poses.popitem(last=False)
        self._ask()

    def _on_landed(self, message: Bool) -> None:
        self._landed = message.data

    def _on_rgb(self, message: Image) -> None:
        self.flight.frames_received += self.flying
        self._frame = message
        view = self._view_of(message)
        if view is not None and self._pilot is not None:
            try:
                self._moments.add_frame(_stamp_ns(message), to_rgb(message), view,
                                        self.elapsed_s, self._pilot.phase.value)
            except ImageError as error:
                self.get_logger().warning(str(error), throttle_duration_sec=5.0)
        self._ask()

    def _on_depth(self, message: Image) -> None:
        view = self._view_of(message)
        if view is not None and self._pilot is not None:
            self._pilot.see_depth(_pixels(message, np.float32), view)

    def _on_probability(self, message: Image) -> None:
        self._moments.add_probability(_stamp_ns(message), _pixels(message, np.float32))

    def _on_stream_mask(self, message: Image) -> None:
        self._moments.add_mask(_stamp_ns(message), _pixels(message, np.uint8))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        name = self._values.heatmap_node.strip('/')
        for status in message.status:
            if status.name != f'{name}: heatmap':
                continue
            values = {item.key: item.value for item in status.values}
            self._active = values.get('lifecycle') == 'active'
            if self._start_ns is not None:
                self.flight.diagnoses.append(Diagnosis(self.elapsed_s, status.message, values))

    def _view_of(self, message: Any) -> Viewpoint | None:
        """Return where an image was taken, once pose and camera model are known."""
        position = self._poses.get(_stamp_ns(message))
        if position is None or self._focal is None:
            return None
        return Viewpoint(position[0], position[1], max(position[2], 0.1), self._focal)

    # Heatmaps

    def _ask(self) -> None:
        """Send the newest frame, unless a request is under way."""
        if self.done or not self._active or not self._heatmaps.ready:
            return
        if self._switch is not None and self._switch.question is not None:
            self._send(question_request(self._switch_frame, self._switch.question, self._values),
                       self._on_verdict)
            return
        frame = self._frame
        if frame is None or _stamp_ns(frame) == self._asked_stamp_ns:
            return
        view = self._view_of(frame)
        if view is not None:
            self._asked_stamp_ns = _stamp_ns(frame)
            self._send(frame_request(frame, view, self._values), lambda response, sent_s:
                       self._on_answer(response, sent_s, frame, view))

    def _send(self, request: GetLandingHeatmap.Request, receive: Receive) -> None:
        def received(response: GetLandingHeatmap.Response, sent_s: float) -> None:
            receive(response, sent_s)
            self._ask()

        self.flight.requests_sent += 1
        self._heatmaps.send(request, received)

    def _on_answer(self, response: GetLandingHeatmap.Response, sent_s: float, frame: Image,
                   view: Viewpoint) -> None:
        now_s = self._now_s()
        if self._start_ns is None:
            self._begin(view)
        pilot = self._pilot
        if pilot is None or (self._changed_s is not None and sent_s < self._changed_s):
            return  # it was asked before the prompts changed
        mask = _pixels(response.heatmap, np.uint8)
        self.flight.answers.append(Answer(
            self.elapsed_s, (view.x_m, view.y_m, view.height_m), response.success,
            float(response.curr_threshold), float((mask > 0).mean()) if mask.size else 0.0,
            (now_s - sent_s) * 1e3))
        change = self.flight.prompt_change
        if self._changed_s is not None and change is not None and change.first_mask_ms is None:
            self.flight.prompt_change = replace(
                change, first_mask_ms=change.service_ms + (now_s - self._changed_s) * 1e3)
        if mask.size and response.success:
            self._moments.add_mask(_stamp_ns(frame), mask, float(response.curr_threshold))
        captured_s = (_stamp_ns(frame) - (self._start_ns or 0)) * 1e-9
        pilot.see_mask(captured_s, mask, view, response.success)
        self._begin_change(pilot, frame, view)

    def _begin(self, view: Viewpoint) -> None:
        """Begin the flight with the first answer."""
        self._start_ns = self.get_clock().now().nanoseconds
        values = self._values
        options = LanderOptions(radius_m=values.safety_radius_m, search_height_m=view.height_m,
                                max_map_age_s=values.max_map_age_s)
        self._pilot = Pilot(options, values.depth_range_m,
                            (view.x_m, view.y_m, view.height_m), self.flight)
        self._first_height_m = view.height_m
        future = self._get_prompts.call_async(GetPrompts.Request())
        future.add_done_callback(self._on_prompts)

    # The change of prompts: find out what lies below, then call it unsafe

    def _on_prompts(self, future: Any) -> None:
        response = future.result()
        self.flight.prompts = PromptSet(
            tuple(response.positive), tuple(response.negative), response.prompt_template)

    def _begin_change(self, pilot: Pilot, frame: Image, view: Viewpoint) -> None:
        """Ask what the spot is, once the flight has come far enough."""
        values, prompts = self._values, self.flight.prompts
        far = (view.height_m <= values.change_below * self._first_height_m
               or self.elapsed_s >= values.change_below * values.time_limit_s)
        if (values.change_prompts and far and not self._changing and pilot.spot is not None
                and prompts is not None and len(prompts.positive) > 1):
            self._changing = True
            self._switch, self._switch_frame = PromptSwitch(prompts, view, pilot.spot), frame

    def _on_verdict(self, response: GetLandingHeatmap.Response, sent_s: float) -> None:
        """Take the answer to one question; after the last one change the prompts."""
        switch = self._switch
        if switch is None:
            return
        switch.answer(_pixels(response.heatmap, np.uint8))
        after = switch.verdict
        if after is None:
            return
        self._switch = self._switch_frame = None
        called_s = self._now_s()
        future = self._set_prompts.call_async(SetPrompts.Request(
            positive=list(after.positive), negative=list(after.negative),
            prompt_template=after.template))
        future.add_done_callback(lambda done: self._on_changed(done.result(), after, called_s))

    def _on_changed(self, response: SetPrompts.Response, after: PromptSet,
                    called_s: float) -> None:
        before, pilot = self.flight.prompts, self._pilot
        if before is None or pilot is None:
            return
        now_s = self._now_s()
        self.flight.prompt_change = PromptChange(
            before, after, response.success, response.message, (now_s - called_s) * 1e3,
            float(response.encode_ms))
        if not response.success:
            self._note('failure', f'the prompts were refused: {response.message}')
            return
        self._changed_s = now_s
        pilot.change_question()
        self._note('prompts', f'now unsafe: {after.negative[-1]}')

    # Flying

    def _control(self) -> None:
        if self.done:
            return
        self._give_up_waiting()
        pilot, position = self._pilot, self._position
        if pilot is None or position is None:
            self._progress.update('waiting for camera and heatmaps')
            return
        if self._landed:
            self.flight.touchdown_m = position
            pilot.velocity(self.elapsed_s, position, landed=True)
            self._note('touchdown', 'touchdown')
            self.end()
            return
        if self.elapsed_s > self._values.time_limit_s:
            self.end(f'no landing within {self._values.time_limit_s:.0f} s')
            return
        east, north, up = pilot.velocity(self.elapsed_s, position, landed=False)
        command = Twist()
        # Forward is north, left is west.
        command.linear.x, command.linear.y, command.linear.z = north, -east, up
        self._twist.publish(command)
        self._progress.update(self._line(pilot, position))

    def _give_up_waiting(self) -> None:
        """Ask anew if a request is not answered in time."""
        if not self._heatmaps.give_up_late():
            return
        if self._pilot is not None:
            self.flight.requests_lost += 1
            self._note('failure', f'no answer within {self._values.answer_timeout_s:g} s')
        self._ask()

    def _line(self, pilot: Pilot, position: Position) -> str:
        """Return the line of progress."""
        answers = self.flight.answers
        last = answers[-1] if answers else None
        parts = [f'{self.elapsed_s:5.1f} s', f'height {position[2]:5.1f} m', pilot.phase.value]
        if last is not None:
            parts += [f'{last.safe_fraction:4.0%} safe', f'threshold {last.threshold:.2f}',
                      f'{len(answers) / max(self.elapsed_s, 1e-3):.1f} heatmaps/s']
        return ' | '.join(parts)

    def _note(self, kind: str, text: str) -> None:
        position = self._position or (0.0, 0.0, 0.0)
        self.flight.events.append(Event(self.elapsed_s, kind, text, position))
        self._progress.note(f'{self.elapsed_s:5.1f} s | {text}')

    def _now_s(self) -> float:
        return self.get_clock().now().nanoseconds * 1e-9


def _stamp_ns(message: Any) -> int:
    stamp: int = Time.from_msg(message.header.stamp).nanoseconds
    return stamp


def _pixels(message: Image, dtype: type) -> np.ndarray:
    """Return a one-channel image as [H, W]; a view."""
    return np.ndarray((message.height, message.width), dtype, buffer=message.data,
                      strides=(message.step, np.dtype(dtype).itemsize))


def main(arguments: Sequence[str] | None = None) -> int:
    """Fly until the flight has ended or SIGINT or SIGTERM; return the exit code."""
    flight = Flight()

    def create() -> DemoClient:
        nonlocal flight
        client = DemoClient()
        flight = client.flight
        client.create_timer(0.1, lambda: try_shutdown() if client.done else None)
        return client

    run_node(create, arguments, 1, lambda client: client.end('stopped'))
    print(flight.problem or f'landed after {flight.duration_s:.1f} s')
    return 0 if flight.touchdown_m is not None else NOT_LANDED
