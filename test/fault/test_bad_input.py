# SPDX-License-Identifier: Apache-2.0
"""Images, prompts, parameters and numbers that nobody should send, sent to a live node."""

import math

import pytest
from harness import NAME, mask_of, scene, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from blabberseg_ros.nodes.images import ENCODINGS, to_message
from blabberseg_ros.nodes.parameters import HEATMAP_TABLE

TABLE = HEATMAP_TABLE


def image(height=120, width=160, encoding='rgb8', step=None, data=None, is_bigendian=0):
    step = 3 * width if step is None else step
    return Image(height=height, width=width, encoding=encoding, step=step,
                 is_bigendian=is_bigendian, data=bytes(height * step) if data is None else data)


BAD_IMAGES = {
    'one pixel': (image(1, 1), (1, 1)),
    'one row': (image(1, 160), (1, 160)),
    'default message': (Image(), (0, 0)),
    'no data': (image(data=b''), (120, 160)),
    'one byte short': (image(data=bytes(120 * 480 - 1)), (120, 160)),
    'step too small': (image(step=479), (120, 160)),
    'step 0': (image(step=0, data=bytes(120 * 480)), (120, 160)),
    'step of 4 GB': (image(step=2**32 - 1, data=bytes(120 * 480)), (120, 160)),
    'odd step of 16 bits': (image(encoding='rgb16', step=961, data=bytes(120 * 961)), (120, 160)),
    '16 bits announced, 8 sent': (image(encoding='mono16', step=160), (120, 160)),
    'odd width of yuv422': (image(width=161, encoding='yuv422', step=322), (120, 161)),
    'odd height of nv21': (image(height=121, encoding='nv21', step=160), (121, 160)),
    'bayer of 2 by 2': (image(2, 2, 'bayer_rggb8', 2), (2, 2)),
    # Above the limit the mask is empty, for the size may be made up.
    '16384 squared': (image(16384, 16384, step=3 * 16384, data=bytes(100)), (0, 0)),
    'all ones': (image(2**32 - 1, 2**32 - 1, step=2**32 - 1, data=b''), (0, 0)),
}


@pytest.mark.parametrize('name', BAD_IMAGES)
def test_bad_images(survivor, name):
    message, (height, width) = BAD_IMAGES[name]
    response = survivor.heatmap(message)
    assert response.success is False
    assert mask_of(response).shape == (height, width)
    assert not mask_of(response).any()
    assert response.heatmap.header == message.header


def test_the_limit_on_megapixels_is_a_parameter(survivor):
    assert survivor.set_parameters(max_megapixels=0.01).successful
    try:
        response = survivor.heatmap(scene(120, 160))
        assert response.success is False
    finally:
        assert survivor.set_parameters(max_megapixels=64.0).successful
    assert survivor.heatmap(scene(120, 160)).success


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_encoding_of_the_table_is_answered(survivor, encoding):
    kind = ENCODINGS[encoding]
    step = 160 * kind.channels * kind.bytes_per_value + 8
    response = survivor.heatmap(image(
        encoding=encoding, step=step, data=bytes(step * 120 * kind.rows_per_2 // 2)),
        dynamic_threshold=0.0)
    assert response.success
    assert mask_of(response).shape == (120, 160)


def test_a_refusal_names_the_encodings(survivor):
    def refused_with_names():
        # Refusals that follow each other within a second are logged once.
        assert not survivor.heatmap(image(encoding='infrared')).success
        output = survivor.process.output
        return 'infrared' in output and 'bayer_rggb16' in output

    until(refused_with_names)


@pytest.mark.parametrize(('positive', 'negative', 'success'), [
    ('🌱;🌾', '🌊🏠', True),
    ('grass;grass;grass', 'grass', True),
    ('a', 'b', True),
    ('x' * 9_000, 'water', True),
    ('x' * 11_000, 'water', False),
    ('\t\n;\u2003', 'water', False),
    ('grass<end_of_text>', 'water', False),
    ('grass\x00moss', 'water', True),
    ('{}', '{0}', True),
])
def test_odd_prompts(survivor, positive, negative, success):
    response = survivor.heatmap(positive_prompts=positive, negative_prompts=negative,
                                prompt_engineering='{}', dynamic_threshold=0.0)
    assert response.success is success
    assert mask_of(response).shape == (120, 160)


@settings(max_examples=25, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(positive=st.text(max_size=60), negative=st.text(max_size=60), template=st.text(max_size=30))
def test_any_text_is_answered(survivor, positive, negative, template):
    response = survivor.heatmap(positive_prompts=positive, negative_prompts=negative,
                                prompt_engineering=template)
    assert response.success or not mask_of(response).any()


@pytest.mark.parametrize('fields', [
    {'safety_threshold': math.nan}, {'safety_threshold': math.inf},
    {'dynamic_threshold': math.nan}, {'dynamic_threshold': -math.inf},
    {'safety_threshold': 1e30}, {'dynamic_threshold': 1.01},
    {'safety_threshold': 0.0}, {'safety_threshold': -0.5},
])
def test_odd_thresholds_never_make_ground_safe(survivor, fields):
    response = survivor.heatmap(**fields)
    assert response.success is False
    assert not mask_of(response).any()


def bad_values():
    """Yield (parameter, value) pairs, each against a rule of the table."""
    for name, bounds in TABLE.bounds.items():
        default = TABLE.defaults[name]
        yield name, [] if isinstance(default, (bool, str, float, int)) else 5
        yield name, [1, 2]
        if bounds.choices:
            yield name, 'no such choice'
        if bounds.minimum is not None:
            number = int if isinstance(default, int) else float
            yield name, number(bounds.minimum - 1)
            yield name, number(bounds.maximum + 1)
        if isinstance(default, float):
            yield name, math.nan
            yield name, math.inf
    yield 'positive_prompts', []
    yield 'negative_prompts', ['  ']
    yield 'prompt_template', 'no place'
    yield 'no_such_parameter', 1


@pytest.mark.parametrize(('name', 'value'), [
    pytest.param(name, value, id=f'{name}={value!r}') for name, value in bad_values()])
def test_bad_parameters_are_refused_and_the_old_value_stays(live, good_mask, name, value):
    known = name in TABLE.bounds
    before = live.get_parameter(name) if known else None
    result = live.set_parameters(**{name: value})
    assert result.successful is False
    assert result.reason
    if known:
        assert live.get_parameter(name) == before


def test_refused_parameters_left_no_trace(survivor):
    """Give `survivor` its say after all the refusals above."""
    assert survivor.get_parameter('safety_threshold') == 0.8


def test_an_integer_is_taken_for_a_float(survivor):
    assert survivor.set_parameters(max_rate_hz=5).successful
    assert survivor.set_parameters(max_rate_hz=0.0).successful


def test_one_bad_parameter_among_good_ones_changes_none(survivor):
    result = survivor.set_parameters(safety_threshold=0.5, blur_kernel_size=0)
    assert result.successful is False
    assert survivor.get_parameter('safety_threshold') == 0.8


def test_a_malformed_parameter_message_ends_nothing(survivor):
    """Reach rclpy itself, which raises outside of any callback of the node."""
    survivor.set_parameter_messages(SetParameters.Request(parameters=[
        ParameterMessage(name='safety_threshold', value=ParameterValue(type=99))]))
    until(lambda: 'the node goes on' in survivor.process.output)


def test_a_request_dropped_by_its_client_is_no_harm(survivor):
    client = survivor.node.create_client(GetLandingHeatmap, NAME)
    assert client.wait_for_service(5.0)
    client.call_async(GetLandingHeatmap.Request(
        image=to_message(scene(480, 640), 'rgb8', Header()), safety_threshold=0.8,
        blur_kernel_size=15, dynamic_threshold=0.1))
    survivor.node.destroy_client(client)
