# SPDX-License-Identifier: Apache-2.0
"""Cameras that publish JPEG or PNG, or with another quality of service."""

import cv2
import pytest
from harness import CAMERA_TOPIC, scene, until
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image


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

    until(answered, 20.0)


def test_a_camera_that_cannot_be_heard_is_told_with_the_remedy(start_node):
    reliability = f'qos_overrides.{CAMERA_TOPIC}.subscription.reliability'
    peer = start_node(**{reliability: 'reliable'})
    peer.wait_active()
    peer.node.create_publisher(
        Image, CAMERA_TOPIC, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    until(lambda: 'RELIABILITY' in peer.process.output and reliability in peer.process.output)
