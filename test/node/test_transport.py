# SPDX-License-Identifier: Apache-2.0
"""Cameras that publish JPEG or PNG, or with another quality of service."""

import cv2
import pytest
from harness import CAMERA_TOPIC, scene, until
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from blabberseg_ros.nodes.images import to_message


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_compressed_transport(start_node, extension):
    peer = start_node(image_transport='compressed', stream='always')
    peer.wait_active()
    publisher = peer.node.create_publisher(
        CompressedImage, f'{CAMERA_TOPIC}/compressed',
        QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    _, data = cv2.imencode(extension, scene())
    message = CompressedImage(format=extension[1:], data=data.tobytes())

    def answered():
        publisher.publish(message)
        return peer.counters()['frames_answered'] > 0

    until(answered)
    assert peer.counters()['frames_refused'] == 0


def test_the_subscription_follows_the_cameras(start_node):
    """Large frames need a reliable one; a camera that sends with best effort would not match."""
    peer = start_node(stream='always')
    peer.wait_active()
    large = to_message(scene(480, 640), 'rgb8', Header())

    def hears(publisher, message):
        def heard():
            publisher.publish(message)
            return peer.counters()['frames_received'] > before

        before = peer.counters()['frames_received']
        return until(heard)

    reliable = peer.camera(ReliabilityPolicy.RELIABLE)
    assert hears(reliable, large)
    poor = peer.node.create_publisher(Image, CAMERA_TOPIC, QoSProfile(
        depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    assert hears(poor, to_message(scene(), 'rgb8', Header()))
    peer.node.destroy_publisher(poor)
    until(lambda: 'camera/image: reliable' in peer.process.output)
    until(reliable.get_subscription_count)
    assert hears(reliable, large)
