# SPDX-License-Identifier: Apache-2.0
"""How the demo asks for heatmaps: what a request says, and one request at a time."""

from collections.abc import Callable
from typing import Any

from rclpy.client import Client
from rclpy.node import Node
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from sensor_msgs.msg import Image

from blabberseg_ros.demo.client_parameters import ClientParameters
from blabberseg_ros.demo.planner import Viewpoint
from blabberseg_ros.prompts import SEPARATOR, PromptSet

# Room that is asked for, in radii of the ground that a spot needs.
ROOM_RADII = 2.0
# Questions are put with a fixed, low threshold: what is looked for is the best of a few.
QUESTION_THRESHOLD = 0.3

# Is given an answer, and when it was asked for, on the node's clock.
Receive = Callable[[GetLandingHeatmap.Response, float], None]


def frame_request(frame: Image, view: Viewpoint,
                  values: ClientParameters) -> GetLandingHeatmap.Request:
    """Return a request about a frame, with the node's own prompts.

    It asks for never more safe ground than there need be. The threshold sinks until the share is
    found. A tenth of what is seen from 100 m are 2,200 m², and where there are not so many that
    are safe, others would be called so.

    Args:
        frame: of the camera.
        view: where it was taken.
        values: thresholds and blur.
    """
    needed = view.share_of(ROOM_RADII * values.safety_radius_m, (frame.width, frame.height))
    return GetLandingHeatmap.Request(
        image=frame, safety_threshold=values.safety_threshold,
        blur_kernel_size=values.blur_kernel_size,
        dynamic_threshold=min(values.dynamic_threshold, needed))


def question_request(frame: Image, question: PromptSet,
                     values: ClientParameters) -> GetLandingHeatmap.Request:
    """Return a request about a frame, with prompts of its own."""
    return GetLandingHeatmap.Request(
        image=frame, safety_threshold=QUESTION_THRESHOLD,
        blur_kernel_size=values.blur_kernel_size, dynamic_threshold=0.0,
        positive_prompts=SEPARATOR.join(question.positive),
        negative_prompts=SEPARATOR.join(question.negative),
        prompt_engineering=question.template)


class HeatmapClient:
    """Asks a heatmap node, one request at a time, and waits no longer than is worth it."""

    def __init__(self, node: Node, values: ClientParameters) -> None:
        """Connect.

        Args:
            node: that asks.
            values: whom to ask, and how long to wait.
        """
        self._node = node
        self._timeout_s = values.answer_timeout_s
        self._client: Client = node.create_client(GetLandingHeatmap, values.heatmap_node)
        self._pending: Any = None
        self._sent_s = 0.0

    @property
    def ready(self) -> bool:
        """Return whether a request can be sent now."""
        return self._pending is None and self._client.service_is_ready()

    def send(self, request: GetLandingHeatmap.Request, receive: Receive) -> None:
        """Send a request.

        Args:
            request: what is asked.
            receive: is given the answer, unless it comes too late.
        """
        sent_s = self._sent_s = self._now_s()
        future = self._pending = self._client.call_async(request)

        def finish(_: Any) -> None:
            if self._pending is future:
                self._pending = None
                receive(future.result(), sent_s)

        future.add_done_callback(finish)

    def give_up_late(self) -> bool:
        """Let go of a request that is not answered in time; return whether there was one."""
        if self._pending is None or self._now_s() - self._sent_s < self._timeout_s:
            return False
        self._client.remove_pending_request(self._pending)
        self._pending = None
        return True

    def _now_s(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9
