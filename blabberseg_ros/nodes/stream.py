# SPDX-License-Identifier: Apache-2.0
"""The heatmap node's stream: from a camera topic to heatmaps, newest frame only."""

from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Time as TimeMessage
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from blabberseg_ros import viz
from blabberseg_ros.errors import BlabbersegError
from blabberseg_ros.nodes.diagnostics import Statistics
from blabberseg_ros.nodes.images import decode_compressed, to_message, to_rgb
from blabberseg_ros.nodes.work import Frame, Segmented
from blabberseg_ros.nodes.worker import Worker

if TYPE_CHECKING:
    from blabberseg_ros.nodes.heatmap_node import HeatmapNode

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
CAMERA_PERIOD_S = 0.5
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
        self._kind: type = CompressedImage if compressed else Image
        self._decode: Any = decode_compressed if compressed else to_rgb
        self._group = MutuallyExclusiveCallbackGroup()
        self._reliability = RELIABLE
        self._subscription = self._subscribe()
        node.create_timer(CAMERA_PERIOD_S, self._match_cameras,
                          callback_group=MutuallyExclusiveCallbackGroup())

    @property
    def running(self) -> bool:
        """Return whether frames are worked on."""
        mode = self._node.values.stream
        if not self._node.active or mode == 'off':
            return False
        return mode == 'always' or any(
            publisher.get_subscription_count()
            for publisher in (self._heatmap, self._probability, self._overlay))

    def _subscribe(self) -> Any:
        """Listen to the cameras, to the newest frame only."""
        return self._node.create_subscription(
            self._kind, self._topic, self._on_image,
            QoSProfile(depth=1, reliability=self._reliability), callback_group=self._group)

    def _match_cameras(self) -> None:
        """Listen reliably, or with best effort while a camera has no more to offer.

        Best effort alone would match every camera, but loses most frames of more than half a
        megabyte: 640 x 480 pixels overflow Fast DDS' default shared memory, 512 KB, and nobody
        sends them again (49 of 50 frames were lost on an idle machine, with reliable none).
        """
        offered = {publisher.qos_profile.reliability for publisher in
                   self._node.get_publishers_info_by_topic(self._subscription.topic_name)}
        if not offered:
            return
        wanted = BEST_EFFORT if BEST_EFFORT in offered else RELIABLE
        if wanted == self._reliability:
            return
        self._reliability = wanted
        self._node.get_logger().info(f'listening to {self._topic}: {wanted.name.lower()}')
        self._node.destroy_subscription(self._subscription)
        self._subscription = self._subscribe()

    def _on_image(self, message: Any) -> None:
        try:
            self._statistics.count('frames_received')
            stamp = message.header.stamp
            age_s = self._age_s(stamp)
            if self._is_out_of_date(age_s):
                return
            running = self.running
            self._statistics.frame_arrived(
                age_s if stamp.sec or stamp.nanosec else None, awaited=running)
            if running:
                self._worker.offer(Frame(
                    lambda: self._pixels(message), self._node.values.fusion,
                    self._probability.get_subscription_count() > 0,
                    lambda answer: self._publish(answer, message.header), self._on_failure))
        except Exception as error:  # nothing may leave a callback
            self._on_failure(error)

    def _pixels(self, message: Any) -> np.ndarray | None:
        """Return the frame, unless it has become too old or unwanted while it waited."""
        if not self.running or self._is_out_of_date(self._age_s(message.header.stamp)):
            return None
        pixels: np.ndarray = self._decode(message, self._node.values.max_megapixels)
        return pixels

    def _age_s(self, stamp: TimeMessage) -> float:
        """Return the time since a stamp, negative for one in the future."""
        return (self._node.get_clock().now().nanoseconds
                - Time.from_msg(stamp).nanoseconds) / NANOSECONDS_PER_SECOND

    def _is_out_of_date(self, age_s: float) -> bool:
        """Return whether a stamp is too old or too far ahead, and count it."""
        values = self._node.values
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
        self._node.note_answer(heatmap, 'frames')
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
