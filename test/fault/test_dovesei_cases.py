# SPDX-License-Identifier: Apache-2.0
"""What ends or deceives DOVESEI's node, case by case, and what this one does."""

import numpy as np
import pytest
from harness import ANSWER_S, NAME, heatmap_request, mask_of, scene, until
from live_nodes import READING
from rclpy.qos import ReliabilityPolicy
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from blabberseg_ros.nodes.images import to_message
from blabberseg_ros.prompts import DEFAULT_NEGATIVE, DEFAULT_POSITIVE, DEFAULT_TEMPLATE

WIRE = {'positive_prompts': ';'.join(DEFAULT_POSITIVE),
        'negative_prompts': ';'.join(DEFAULT_NEGATIVE),
        'prompt_engineering': DEFAULT_TEMPLATE}


def assert_black(response, height=120, width=160):
    """Check that a reply says no, with a mask of the image's size on which nothing is safe."""
    assert response.success is False
    assert (response.heatmap.height, response.heatmap.width) == (height, width)
    assert not mask_of(response).any()


@pytest.mark.parametrize('fields', [
    {'positive_prompts': 'grass'}, {'negative_prompts': 'water'},
    {'positive_prompts': ';;', 'negative_prompts': ';;'},
    {'positive_prompts': 'grass', 'negative_prompts': ';;'},
    {'positive_prompts': ' ; ', 'negative_prompts': 'water'},
])
def test_case_1_no_prompts_of_one_kind(survivor, fields):
    assert_black(survivor.heatmap(prompt_engineering=DEFAULT_TEMPLATE, **fields))


@pytest.mark.parametrize('size', [0, -1, -128])
def test_case_2_blur_kernel_that_is_none(survivor, size):
    assert_black(survivor.heatmap(blur_kernel_size=size))


@pytest.mark.parametrize('size', [1, 2, 127])
def test_case_2_every_other_blur_kernel_works(survivor, size):
    assert survivor.heatmap(blur_kernel_size=size).success


@pytest.mark.parametrize('encoding', ['32FC1', '8UC3', '16UC1', '', 'jpeg', 'rgb8\n'])
def test_case_3_unknown_encodings(survivor, encoding):
    image = Image(height=120, width=160, encoding=encoding, step=640, data=bytes(120 * 640))
    assert_black(survivor.heatmap(image))


@pytest.mark.parametrize(('height', 'width'), [(0, 0), (0, 160), (120, 0)])
def test_case_3_images_of_no_size(survivor, height, width):
    image = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    assert_black(survivor.heatmap(image), height, width)


@pytest.mark.parametrize('template', ['view of {name}', 'view of {0}', '{} over {}', '{', '}'])
def test_case_4_templates_that_str_format_refuses(survivor, template):
    assert_black(survivor.heatmap(**{**WIRE, 'prompt_engineering': template}))


def test_case_4_stray_braces_are_text(survivor):
    assert survivor.heatmap(**{**WIRE, 'prompt_engineering': 'a {} with } and {'}).success


@pytest.mark.parametrize('template', ['', 'no place for a prompt'])
def test_case_5_template_without_a_place_for_the_prompt(survivor, template):
    """DOVESEI's node answers success and a full mask."""
    assert_black(survivor.heatmap(**{**WIRE, 'prompt_engineering': template}))


def test_case_6_template_that_reaches_for_attributes(survivor):
    assert_black(survivor.heatmap(
        **{**WIRE, 'prompt_engineering': '{0.__class__.__init__.__globals__}'}))
    # Beside a real placeholder it is text like any other.
    response = survivor.heatmap(
        **{**WIRE, 'prompt_engineering': '{} {0.__class__.__mro__} {a[b]!r:>9}'})
    assert response.success


@pytest.mark.parametrize('family', READING, scope='session')
def test_case_7_prompt_of_more_than_77_tokens(survivor):
    assert survivor.heatmap(positive_prompts='grass ' * 200, negative_prompts='water',
                            prompt_engineering='{}').success


@pytest.mark.parametrize('count', [256, 10_000])
def test_case_8_too_many_prompts(survivor, count):
    assert_black(survivor.heatmap(**many_prompts(count)))


def test_case_8_many_prompts(survivor):
    assert survivor.set_parameters(request_timeout_s=60.0).successful
    try:
        request = heatmap_request(**many_prompts(40))
        response = survivor.call(GetLandingHeatmap, NAME, request)
    finally:
        assert survivor.set_parameters(request_timeout_s=4.0).successful
    assert response.success


def many_prompts(count):
    """Return the fields of a request with one positive and `count` negative prompts."""
    return {'positive_prompts': 'grass', 'prompt_engineering': '{}', 'dynamic_threshold': 0.0,
            'negative_prompts': ';'.join(f'thing {index}' for index in range(count))}


def test_case_8_as_many_prompts_as_are_taken_hold_up_nobody(survivor):
    """A slow device breaks the work off at the deadline; `survivor` asks right afterwards."""
    response = survivor.heatmap(
        positive_prompts='grass', prompt_engineering='{} up to', dynamic_threshold=0.0,
        negative_prompts=';'.join(f'thing {index}' for index in range(255)))
    assert response.success or not mask_of(response).any()


@pytest.mark.parametrize('reliability', list(ReliabilityPolicy)[1:3])
def test_case_9_cameras_of_either_reliability(survivor, reliability):
    assert reliability in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT)
    publisher = survivor.camera(reliability)
    before = survivor.counters()['frames_received']

    def heard():
        publisher.publish(to_message(scene(), 'rgb8', Header()))
        return survivor.counters()['frames_received'] > before

    until(heard)
    survivor.node.destroy_publisher(publisher)


def test_case_12_repeated_prompts_are_not_encoded_again(survivor):
    fields = {'positive_prompts': 'straw', 'negative_prompts': 'fire', 'prompt_engineering': '{}'}
    survivor.heatmap(**fields)
    before = survivor.counters()
    for seed in range(3):
        survivor.heatmap(scene(seed=seed), **fields)
    after = survivor.counters()
    assert after['text_encoder_runs'] == before['text_encoder_runs']
    assert after['prompt_cache_hits'] == before['prompt_cache_hits'] + 6


def test_case_13_the_stamp_is_that_of_the_image(survivor):
    request = heatmap_request()
    assert survivor.send(request).heatmap.header.stamp == request.image.header.stamp
    refused = heatmap_request(blur_kernel_size=0)
    assert survivor.send(refused).heatmap.header == refused.image.header


@pytest.mark.parametrize(('height', 'width'), [(37, 211), (480, 640), (301, 2)])
def test_case_14_images_that_are_not_square(survivor, height, width):
    response = survivor.heatmap(scene(height, width), dynamic_threshold=0.0)
    assert response.success
    assert mask_of(response).shape == (height, width)


def test_case_15_more_clients_than_the_queue_holds(survivor):
    """Every one is answered within 5 s: with its mask, or at once that there are too many."""
    images = [scene(240, 320, seed=seed) for seed in range(4)]
    expected = [mask_of(survivor.heatmap(image)) for image in images]
    futures = [survivor.start_call(GetLandingHeatmap, NAME, heatmap_request(images[index % 4]))
               for index in range(40)]
    responses = [survivor.finish(future, ANSWER_S) for future in futures]
    answered = [index for index, response in enumerate(responses) if response.success]
    assert len(answered) >= 8
    for index, response in enumerate(responses):
        mask = mask_of(response)
        assert mask.shape == (240, 320)
        np.testing.assert_array_equal(
            mask, expected[index % 4] if response.success else np.zeros_like(mask))
