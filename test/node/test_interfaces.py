# SPDX-License-Identifier: Apache-2.0
"""The generated message types: names, order and types of fields are the wire format."""

import array

import pytest
from blabberseg_interfaces.srv import GetPrompts, SetPrompts
from rclpy.serialization import deserialize_message, serialize_message
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from sensor_msgs.msg import Image

FIELDS = [
    (GetLandingHeatmap.Request, [
        ('image', 'sensor_msgs/Image'), ('negative_prompts', 'string'),
        ('positive_prompts', 'string'), ('prompt_engineering', 'string'),
        ('safety_threshold', 'float'), ('blur_kernel_size', 'int8'),
        ('dynamic_threshold', 'float')]),
    (GetLandingHeatmap.Response, [
        ('heatmap', 'sensor_msgs/Image'), ('curr_threshold', 'float'), ('success', 'boolean')]),
    (SetPrompts.Request, [
        ('positive', 'sequence<string>'), ('negative', 'sequence<string>'),
        ('prompt_template', 'string')]),
    (SetPrompts.Response, [
        ('success', 'boolean'), ('message', 'string'), ('truncated', 'sequence<string>'),
        ('encode_ms', 'float'), ('since', 'builtin_interfaces/Time')]),
    (GetPrompts.Request, []),
    (GetPrompts.Response, [
        ('positive', 'sequence<string>'), ('negative', 'sequence<string>'),
        ('prompt_template', 'string'), ('since', 'builtin_interfaces/Time')]),
]


@pytest.mark.parametrize(('message', 'fields'), FIELDS, ids=lambda value: getattr(
    value, '__name__', ''))
def test_fields(message, fields):
    assert list(message.get_fields_and_field_types().items()) == fields


def test_request_survives_the_wire():
    image = Image(height=2, width=3, encoding='rgb8', step=9, data=array.array('B', range(18)))
    request = GetLandingHeatmap.Request(
        image=image, negative_prompts='roof;tree', positive_prompts='grass',
        prompt_engineering='a {}', safety_threshold=0.5, blur_kernel_size=127,
        dynamic_threshold=0.25)
    assert deserialize_message(serialize_message(request), GetLandingHeatmap.Request) == request
