# SPDX-License-Identifier: Apache-2.0
"""A simulated drone with a camera that looks straight down.

The topics and axes are those of the simulator that DOVESEI flies with, so that its landing_module
or the demo's client can fly it.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from builtin_interfaces.msg import Time as TimeMessage
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, TransformStamped, Twist
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.utilities import try_shutdown
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool, Header

from blabberseg_ros.errors import BlabbersegError, ParameterError
from blabberseg_ros.nodes.camera_parameters import CAMERA_TABLE, WORLD, CameraParameters
from blabberseg_ros.nodes.images import to_message
from blabberseg_ros.nodes.spin import run_node
from blabberseg_ros.sim.flight import Vehicle, velocity_of_twist
from blabberseg_ros.sim.sources import FrameSource, WorldSource, open_recording
from blabberseg_ros.sim.world import FAMILIES, HELD_OUT_FAMILIES, generate_world

NODE_NAME = 'aerial_camera'
# The camera is not the part that touches the ground.
CAMERA_ABOVE_GROUND_M = 0.3
PROGRESS_INTERVAL_S = 2.0
DIAGNOSTICS_PERIOD_S = 1.0
SOURCE_FAILED = 1
# Meets reliable and best-effort publishers; a lost command is followed by the next one.
COMMAND_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class AerialCamera(Node):
    """Publishes what the camera sees, and flies as it is told."""

    def __init__(self) -> None:
        """Create all topics; the frames begin when the source is ready.

        Raises:
            ParameterError: a parameter is refused, or the source cannot be played.
        """
        super().__init__(NODE_NAME)
        values = self._values = CAMERA_TABLE.declare(self)
        self.problem = ''
        self._source: FrameSource | None = None
        self._vehicle: Vehicle | None = None
        self._made: list[FrameSource] = []
        self._maker: threading.Thread | None = None
        self._started_s = time.monotonic()
        self._frames = 0
        self._render_ms = 0.0
        self._rgb = self.create_publisher(Image, values.rgb_topic, 1)
        self._depth = self.create_publisher(Image, values.depth_topic, 1)
        self._info = self.create_publisher(CameraInfo, values.camera_info_topic, 1)
        self._pose = self.create_publisher(PoseStamped, '~/pose', 1)
        self._landed = self.create_publisher(Bool, '~/landed', LATCHED_QOS)
        self._landed_shown: bool | None = None
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 1)
        self._send_transform = _transform_broadcaster(self)
        self.create_subscription(Twist, values.twist_topic, self._on_twist, COMMAND_QOS)
        self.create_timer(1.0 / values.rate_hz, self._on_frame_due)
        self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics)
        if values.source != WORLD:
            self._start_with(open_recording(Path(values.source), values.size_px))
            return
        if values.family and values.family not in (*FAMILIES, *HELD_OUT_FAMILIES):
            raise ParameterError(
                f'family is {values.family!r}, of which there is none; use one of '
                f'{", ".join((*FAMILIES, *HELD_OUT_FAMILIES))}, or leave it empty')
        # A world takes seconds; the node answers meanwhile, and can be stopped.
        self._maker = threading.Thread(target=self._make_world, name='world', daemon=True)
        self._maker.start()
        self._progress = self.create_timer(PROGRESS_INTERVAL_S, self._log_progress)
        self.get_logger().info(f'making world {values.seed} {values.family}'.rstrip())

    @property
    def making_world(self) -> bool:
        """Return whether the world's thread still runs."""
        return self._maker is not None and self._maker.is_alive()

    def _make_world(self) -> None:
        values = self._values
        try:
            world = generate_world(values.seed, values.family or None, values.world_size_m)
            self._made.append(WorldSource(world, values.fov, values.size_px))
        # It is told on the executor's thread, which ends the node.
        except Exception as error:
            self.problem = f'world {values.seed} {values.family} cannot be made: {error!r}'

    def _log_progress(self) -> None:
        if self._vehicle is not None:
            self._progress.cancel()
            return
        elapsed_s = time.monotonic() - self._started_s
        self.get_logger().info(f'making the world: {elapsed_s:.0f} s so far')

    def _start_with(self, source: FrameSource) -> None:
        """Begin to fly."""
        values = self._values

        def ground_m(x_m: float, y_m: float) -> float:
            return source.ground_height_m(x_m, y_m) + CAMERA_ABOVE_GROUND_M

        self._vehicle = Vehicle(values.start_m, ground_m, values.limits(source.reach_m),
                                values.seed, time.monotonic())
        self._source = source
        self.get_logger().info(
            f'ready: {values.source}, {values.width_px}×{values.height_px} pixels at '
            f'{values.rate_hz:g} Hz on {self._rgb.topic_name}')

    def _on_twist(self, message: Twist) -> None:
        if self._vehicle is not None:
            linear = message.linear
            self._vehicle.command(velocity_of_twist(linear.x, linear.y, linear.z),
                                  time.monotonic())

    def _on_frame_due(self) -> None:
        if self.problem:
            self.get_logger().fatal(self.problem)
            try_shutdown()
            return
        if self._made:
            self._start_with(self._made.pop())
            self.get_logger().info(
                f'the world took {time.monotonic() - self._started_s:.1f} s')
        if self._vehicle is None or self._source is None:
            return
        state = self._vehicle.advance(time.monotonic())
        header = Header(stamp=self.get_clock().now().to_msg(),
                        frame_id=self._values.child_frame)
        self._publish_pose(state.position_m, header.stamp)
        if state.landed != self._landed_shown:
            self._landed_shown = state.landed
            self._landed.publish(Bool(data=state.landed))
        if any(publisher.get_subscription_count() for publisher in (self._rgb, self._depth)):
            self._publish_frame(self._source, state.position_m, header)
        self._info.publish(_camera_info(self._values, header))

    def _publish_frame(self, source: FrameSource, position_m: tuple[float, float, float],
                       header: Header) -> None:
        started_s = time.perf_counter()
        try:
            frame = source.frame(position_m)
        except BlabbersegError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        self._render_ms = (time.perf_counter() - started_s) * 1e3
        self._frames += 1
        self._rgb.publish(to_message(frame.rgb, 'rgb8', header))
        self._depth.publish(to_message(frame.depth_m, '32FC1', header))

    def _publish_pose(self, position_m: tuple[float, float, float], stamp: TimeMessage) -> None:
        """Publish the position; the vehicle keeps level and heads north (the y axis)."""
        x_m, y_m, z_m = position_m
        header = Header(stamp=stamp, frame_id=self._values.parent_frame)
        pose = PoseStamped(header=header)
        pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = x_m, y_m, z_m
        self._pose.publish(pose)
        if self._send_transform is None:
            return
        transform = TransformStamped(header=header, child_frame_id=self._values.child_frame)
        translation = transform.transform.translation
        translation.x, translation.y, translation.z = x_m, y_m, z_m
        self._send_transform(transform)

    def _publish_diagnostics(self) -> None:
        values = self._values
        shown = {'source': values.source, 'seed': values.seed, 'frames': self._frames,
                 'render_ms': f'{self._render_ms:.1f}'}
        if self._vehicle is None:
            level, message = DiagnosticStatus.WARN, 'making the world'
        else:
            state = self._vehicle.state
            level, message = DiagnosticStatus.OK, 'landed' if state.landed else 'flying'
            shown['landed'] = str(state.landed).lower()
            for name, triple in (('position_m', state.position_m),
                                 ('velocity_m_s', state.velocity_m_s)):
                shown[name] = ' '.join(f'{value:.2f}' for value in triple)
        status = DiagnosticStatus(
            level=level, name=f'{self.get_name()}: vehicle', message=message,
            values=[KeyValue(key=key, value=str(value)) for key, value in shown.items()])
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def _camera_info(values: CameraParameters, header: Header) -> CameraInfo:
    """Return the pinhole model: square pixels, no distortion."""
    width, height = values.size_px
    focal_px = width / 2 / math.tan(math.radians(values.fov) / 2)
    row_x = [focal_px, 0.0, (width - 1) / 2]
    row_y = [0.0, focal_px, (height - 1) / 2]
    return CameraInfo(
        header=header, width=width, height=height, distortion_model='plumb_bob', d=[0.0] * 5,
        k=[*row_x, *row_y, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[*row_x, 0.0, *row_y, 0.0, 0.0, 0.0, 1.0, 0.0])


def _transform_broadcaster(node: Node) -> Callable[[TransformStamped], None] | None:
    """Return what sends transforms, or None where tf2 is not installed (it is not on PyPI)."""
    try:
        from tf2_ros import TransformBroadcaster
    except ImportError:
        node.get_logger().info('tf2_ros is not installed: no TF, the pose is on ~/pose alone')
        return None
    send: Callable[[TransformStamped], None] = TransformBroadcaster(node).sendTransform
    return send


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; return the exit code."""
    problem, busy = '', False

    def stop(node: Any) -> None:
        nonlocal problem, busy
        problem, busy = node.problem, node.making_world

    code = run_node(AerialCamera, arguments, 1, stop)
    if busy:
        # The interpreter's end would tear the thread out of OpenCV, which aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return SOURCE_FAILED if problem else code
