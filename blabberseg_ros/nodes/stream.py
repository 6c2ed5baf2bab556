# SPDX-License-Identifier: Apache-2.0
"""The heatmap node's stream: from a camera topic to heatmaps, newest frame only."""

from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from blabberseg_ros import viz
from blabberseg_ros.errors import BlabbersegError
from blabberseg_ros.nodes.diagnostics import Statistics
from blabberseg_ros.nodes.images import decode_compressed, to_message, to_rgb
from blabberseg_ros.nodes.worker import Frame, Segmented, Worker

if TYPE_CHECKING:
    from blabberseg_ros.nodes.heatmap_node import HeatmapNode

# Best effort meets reliable and best-effort cameras alike.
CAMERA_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1,
                        reliability=ReliabilityPolicy.BEST_EFFORT)
NANOSECONDS_PER_SECOND = 1_000_000_000


class Stream:
    """Subscribes to the camera and publishes `~/heatmap`, `~/probability` and `~/overlay`."""

    def __init__(self, node: 'HeatmapNode', worker: Worker, statistics: Statistics) -> None:
        """Create the topics.

        Args:
            node: its parameters `img_topic` and `image_transport` choose the camera.
            worker: works on the frames.
            statistics: counts them.
        """
        self._node = node
        self._worker = worker
        self._statistics = statistics
        worker.min_period_s = node.values.min_period_s
        self._heatmap = node.create_lifecycle_publisher(Image, '~/heatmap', 1)
        self._probability = node.create_lifecycle_publisher(Image, '~/probability', 1)
        self._overlay = node.create_lifecycle_publisher(Image, '~/overlay', 1)
        compressed = node.values.image_transport == 'compressed'
        self._topic = node.values.img_topic + ('/compressed' if compressed else '')
        self._decode: Any = decode_compressed if compressed else to_rgb
        self._subscription = node.create_subscription(
            CompressedImage if compressed else Image, self._topic, self._on_image, CAMERA_QOS,
            callback_group=MutuallyExclusiveCallbackGroup(),
            event_callbacks=_events(self._on_incompatible_qos),
            qos_overriding_options=QoSOverridingOptions.with_default_policies())

    @property
    def running(self) -> bool:
        """Return whether frames are worked on."""
        mode = self._node.values.stream
        if not self._node.active or mode == 'off':
            return False
        return mode == 'always' or any(
            publisher.get_subscription_count()
            for publisher in (self._heatmap, self._probability, self._overlay))

    def _on_image(self, message: Any) -> None:
        try:
            self._statistics.count('frames_received')
            if self._is_out_of_date(message.header):
                return
            self._statistics.frame_arrived()
            if self.running:
                self._worker.offer(Frame(
                    lambda: self._pixels(message), self._node.values.fusion,
                    self._probability.get_subscription_count() > 0,
                    lambda answer: self._publish(answer, message.header), self._on_failure))
        except Exception as error:  # nothing may leave a callback
            self._on_failure(error)

    def _pixels(self, message: Any) -> np.ndarray | None:
        """Return the frame, unless it has become too old or unwanted while it waited."""
        if not self.running or self._is_out_of_date(message.header):
            return None
        pixels: np.ndarray = self._decode(message, self._node.values.max_megapixels)
        return pixels

    def _is_out_of_date(self, header: Header) -> bool:
        """Return whether a stamp is too old or too far ahead, and count it."""
        values = self._node.values
        age_s = (self._node.get_clock().now().nanoseconds
                 - Time.from_msg(header.stamp).nanoseconds) / NANOSECONDS_PER_SECOND
        if values.max_frame_age_s and age_s > values.max_frame_age_s:
            self._statistics.count('frames_stale')
            return True
        if values.max_future_s and -age_s > values.max_future_s:
            self._statistics.count('frames_future')
            return True
        return False

    def _publish(self, answer: Segmented, capture: Header) -> None:
        heatmap = answer.heatmap
        header = self._node.result_header(capture)
        self._statistics.answered(heatmap, 'frames')
        if self._heatmap.get_subscription_count():
            self._heatmap.publish(to_message(heatmap.mask, 'mono8', header))
        if heatmap.probability is not None:
            self._probability.publish(to_message(heatmap.probability, '32FC1', header))
        if self._overlay.get_subscription_count():
            self._overlay.publish(
                to_message(viz.overlay(answer.rgb, heatmap.mask), 'rgb8', header))

    def _on_failure(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, BlabbersegError) else f'internal error: {error!r}'
        self._statistics.refused('frames', reason)
        self._node.get_logger().warning(f'frame refused: {reason}', throttle_duration_sec=1.0)

    def _on_incompatible_qos(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self._node.get_logger().warning(
            f'a camera publishes {self._topic} with another {policy} quality of service, so none '
            f'of its frames arrive here. Start this node with the parameter '
            f'qos_overrides.{self._topic}.subscription.reliability set to best_effort (the '
            'default), or change the camera')


def _events(incompatible_qos: Any) -> Any:
    try:
        from rclpy.event_handler import SubscriptionEventCallbacks
    except ImportError:  # Humble
        from rclpy.qos_event import SubscriptionEventCallbacks
    return SubscriptionEventCallbacks(incompatible_qos=incompatible_qos)
