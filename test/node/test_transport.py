# SPDX-License-Identifier: Apache-2.0
"""Cameras that publish JPEG or PNG, or with another quality of service."""

import cv2
import pytest
from harness import CAMERA_TOPIC, NAME, scene, until
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


def test_maps_larger_than_the_default_shared_memory_are_not_lost(start_node):
    """A lost one is not sent again to a best-effort listener, and an answer only 3 s later."""
    peer = start_node(stream='always')
    peer.wait_active()
    camera = peer.camera(ReliabilityPolicy.RELIABLE)
    topic = f'{NAME}/probability'
    peer.listen(Image, topic, QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT))
    maps = peer.received[topic]

    def found():
        camera.publish(to_message(scene(), 'rgb8', Header()))
        return maps

    until(found, what='a small map comes')
    for number in range(10):
        answered = peer.counters()['frames_answered']
        camera.publish(to_message(scene(480, 640, number), 'rgb8', Header()))
        until(lambda answered=answered: peer.counters()['frames_answered'] > answered)
    until(lambda: sum(each.width == 640 for each in maps) == 10, 10.0, 'all maps come')
    assert [each.height for each in maps if each.width == 640] == [480] * 10
