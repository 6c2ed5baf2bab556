# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back, against vectors written by hand."""

import sys
import types

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from blabberseg_ros.errors import ImageError
from blabberseg_ros.nodes.images import (
    ENCODINGS,
    black_mask,
    decode_compressed,
    to_message,
    to_rgb,
)

RED, GREEN, BLUE, GREY = (200, 0, 0), (0, 150, 0), (0, 0, 100), (50, 50, 50)
# Two rows of two pixels.
PIXELS = np.array([[RED, GREEN], [BLUE, GREY]], np.uint8)


def message(data, encoding, width=2, height=2, step=None, is_bigendian=0):
    data = bytes(data)
    return Image(width=width, height=height, encoding=encoding, is_bigendian=is_bigendian,
                 step=len(data) // height if step is None else step, data=data)


@pytest.mark.parametrize(('encoding', 'data'), [
    ('rgb8', [200, 0, 0, 0, 150, 0, 0, 0, 100, 50, 50, 50]),
    ('bgr8', [0, 0, 200, 0, 150, 0, 100, 0, 0, 50, 50, 50]),
    ('rgba8', [200, 0, 0, 9, 0, 150, 0, 9, 0, 0, 100, 9, 50, 50, 50, 9]),
    ('bgra8', [0, 0, 200, 9, 0, 150, 0, 9, 100, 0, 0, 9, 50, 50, 50, 9]),
    ('rgb16', [7, 200, 7, 0, 7, 0, 7, 0, 7, 150, 7, 0, 7, 0, 7, 0, 7, 100, 7, 50, 7, 50, 7, 50]),
    ('bgr16', [7, 0, 7, 0, 7, 200, 7, 0, 7, 150, 7, 0, 7, 100, 7, 0, 7, 0, 7, 50, 7, 50, 7, 50]),
    ('rgba16', [7, 200, 7, 0, 7, 0, 7, 9, 7, 0, 7, 150, 7, 0, 7, 9,
                7, 0, 7, 0, 7, 100, 7, 9, 7, 50, 7, 50, 7, 50, 7, 9]),
    ('bgra16', [7, 0, 7, 0, 7, 200, 7, 9, 7, 0, 7, 150, 7, 0, 7, 9,
                7, 100, 7, 0, 7, 0, 7, 9, 7, 50, 7, 50, 7, 50, 7, 9]),
])
def test_colour_vectors(encoding, data):
    np.testing.assert_array_equal(to_rgb(message(data, encoding)), PIXELS)


@pytest.mark.parametrize(('encoding', 'data', 'big'), [
    ('mono8', [1, 2, 3, 4], 0),
    ('mono16', [255, 1, 0, 2, 7, 3, 0, 4], 0),
    ('mono16', [1, 255, 2, 0, 3, 7, 4, 0], 1),
])
def test_grey_vectors(encoding, data, big):
    expected = np.repeat(np.array([[[1], [2]], [[3], [4]]], np.uint8), 3, axis=2)
    np.testing.assert_array_equal(to_rgb(message(data, encoding, is_bigendian=big)), expected)


def test_16_bits_keep_their_upper_byte_in_either_byte_order():
    values = np.array([[[0x1234, 0x5678, 0x9ABC], [0xFFFF, 0x00FF, 0x0100]]] * 2, np.uint16)
    expected = (values >> 8).astype(np.uint8)
    for order, big in (('<u2', 0), ('>u2', 1)):
        frame = message(values.astype(order).tobytes(), 'rgb16', is_bigendian=big)
        np.testing.assert_array_equal(to_rgb(frame), expected)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('bits', [8, 16])
def test_bayer_patterns_name_their_first_two_rows(pattern, bits):
    """A sensor that sees one colour everywhere answers that colour everywhere."""
    colour = {'r': 200, 'g': 120, 'b': 40}
    height, width = 7, 9
    mosaic = np.array([[colour[pattern[2 * (y % 2) + x % 2]] for x in range(width)]
                       for y in range(height)])
    data = (mosaic * (256 if bits == 16 else 1)).astype(f'<u{bits // 8}').tobytes()
    rgb = to_rgb(message(data, f'bayer_{pattern}{bits}', width, height))
    np.testing.assert_array_equal(rgb, np.broadcast_to([200, 120, 40], (height, width, 3)))


# Y, U, V of BT.601 video range for red, as (R, G, B) = (255, 0, 0).
Y, U, V = 82, 90, 240


@pytest.mark.parametrize(('encoding', 'data', 'rows'), [
    ('yuv422', [U, Y, V, Y] * 2, 2), ('uyvy', [U, Y, V, Y] * 2, 2),
    ('yuv422_yuy2', [Y, U, Y, V] * 2, 2), ('yuyv', [Y, U, Y, V] * 2, 2),
    ('nv12', [Y] * 4 + [U, V], 3), ('nv21', [Y] * 4 + [V, U], 3),
])
def test_yuv_vectors(encoding, data, rows):
    rgb = to_rgb(message(data, encoding, step=len(data) // rows))
    np.testing.assert_allclose(rgb, np.broadcast_to([255, 0, 0], (2, 2, 3)), atol=3)


@pytest.mark.parametrize('encoding', ENCODINGS)
@pytest.mark.parametrize('padding', [0, 6])
def test_row_padding_changes_nothing(encoding, padding):
    """Padding in every encoding, and odd sizes where the encoding allows them."""
    kind = ENCODINGS[encoding]
    width, height = (8, 6) if kind.even else (9, 7)
    rows, row = height * kind.rows_per_2 // 2, width * kind.channels * kind.bytes_per_value
    pixels = np.random.default_rng(0).integers(0, 256, (rows, row), dtype=np.uint8)
    tight = to_rgb(message(pixels.tobytes(), encoding, width, height, step=row))
    padded = np.pad(pixels, ((0, 0), (0, padding)), constant_values=255)
    frame = message(padded.tobytes(), encoding, width, height, step=row + padding)
    assert tight.shape == (height, width, 3)
    assert tight.dtype == np.uint8
    np.testing.assert_array_equal(to_rgb(frame), tight)
    # Without the padding of the last row, as some drivers send it.
    frame.data = frame.data[:len(frame.data) - padding]
    np.testing.assert_array_equal(to_rgb(frame), tight)


@pytest.mark.parametrize('step', [6, 8])
def test_rgb8_is_a_view(step):
    frame = message(bytes(2 * step), 'rgb8', step=step)
    rgb = to_rgb(frame)
    assert np.shares_memory(rgb, np.frombuffer(frame.data, np.uint8))
    assert not rgb.flags.writeable


@pytest.mark.parametrize(('change', 'reason'), [
    ({'width': 0}, 'nothing to segment'), ({'height': 0}, 'nothing to segment'),
    ({'width': 1, 'height': 1}, 'nothing to segment'),
    ({'step': 5}, 'step must be'), ({'step': 0}, 'step must be'),
    ({'height': 3}, '18 bytes of data are needed'), ({'data': b''}, '12 bytes of data'),
    ({'encoding': 'rgb16', 'step': 13}, 'multiple of 2'),
    ({'width': 16384, 'height': 16384}, '64 megapixels'),
    ({'width': 2**32 - 1, 'height': 2**32 - 1}, '64 megapixels'),
    ({'encoding': 'bayer_rggb8'}, 'at least 3×3'),
    ({'encoding': 'uyvy', 'width': 3}, 'even width'),
    ({'encoding': 'nv21', 'height': 3}, 'even height'),
])
def test_contradictions_are_refused(change, reason):
    frame = message(PIXELS.tobytes(), 'rgb8')
    for name, value in change.items():
        setattr(frame, name, value)
    with pytest.raises(ImageError, match=reason):
        to_rgb(frame)


def test_the_limit_can_be_lowered():
    with pytest.raises(ImageError, match='max_megapixels'):
        to_rgb(message(PIXELS.tobytes(), 'rgb8'), max_megapixels=3e-6)


@pytest.mark.parametrize('encoding', ['32FC1', '8UC3', '16UC1', '', 'RGB8'])
def test_unknown_encodings_are_refused_and_the_known_ones_listed(encoding):
    with pytest.raises(ImageError) as refusal:
        to_rgb(message(bytes(12), encoding))
    assert repr(encoding) in str(refusal.value)
    assert all(name in str(refusal.value) for name in ENCODINGS)


def fake_cv_bridge(monkeypatch, convert):
    module = types.ModuleType('cv_bridge')
    module.CvBridge = type('CvBridge', (), {'imgmsg_to_cv2': lambda *arguments: convert()})
    monkeypatch.setitem(sys.modules, 'cv_bridge', module)


def test_cv_bridge_is_asked_for_what_the_table_lacks(monkeypatch):
    fake_cv_bridge(monkeypatch, lambda: PIXELS)
    np.testing.assert_array_equal(to_rgb(message(bytes(12), 'nv24')), PIXELS)


def test_cv_bridge_may_fail_in_any_way(monkeypatch):
    def fail():
        raise KeyError(16)

    fake_cv_bridge(monkeypatch, fail)
    with pytest.raises(ImageError, match='cv_bridge cannot convert it either'):
        to_rgb(message(bytes(12), 'nv24'))


@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 3), (0, 0), (0, 4)])
def test_arrays_to_messages(shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    header = Header(frame_id='camera')
    encoding = 'rgb8' if len(shape) == 3 else 'mono8'
    result = to_message(pixels, encoding, header)
    assert (result.height, result.width) == shape[:2]
    assert result.step == shape[1] * (3 if len(shape) == 3 else 1)
    assert result.header is header
    assert bytes(result.data) == pixels.tobytes()


def test_floats_and_strided_arrays_to_messages():
    probability = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    result = to_message(probability, '32FC1', Header())
    assert result.step == 8
    np.testing.assert_array_equal(
        np.frombuffer(result.data, np.float32).reshape(3, 2), probability)


def test_round_trip():
    np.testing.assert_array_equal(to_rgb(to_message(PIXELS, 'rgb8', Header())), PIXELS)


def test_black_mask_is_empty_where_the_size_may_be_made_up():
    mask = black_mask(4, 3, Header(), 64.0)
    assert (mask.height, mask.width, bytes(mask.data)) == (3, 4, bytes(12))
    assert black_mask(10**6, 10**6, Header(), 64.0).height == 0


SMOOTH = cv2.resize(PIXELS, (64, 48), interpolation=cv2.INTER_LINEAR)


def compressed(extension):
    _, data = cv2.imencode(extension, SMOOTH[..., ::-1])
    return data.tobytes()


@pytest.mark.parametrize(('extension', 'tolerance'), [('.png', 0), ('.jpg', 12)])
def test_compressed_images(extension, tolerance):
    rgb = decode_compressed(CompressedImage(format='whatever', data=compressed(extension)))
    np.testing.assert_allclose(rgb.astype(int), SMOOTH, atol=tolerance)


def png_of(width, height):
    return (b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR' + width.to_bytes(4, 'big')
            + height.to_bytes(4, 'big') + bytes(100))


def jpeg_of(width, height):
    return (b'\xff\xd8\xff\xe0\x00\x04ab\xff\xc0\x00\x11\x08' + height.to_bytes(2, 'big')
            + width.to_bytes(2, 'big') + bytes(100))


@pytest.mark.parametrize(('data', 'reason'), [
    (b'', 'neither'), (b'GIF89a' + bytes(50), 'neither'), (b'\xff\xd8', 'neither'),
    (b'\xff\xd8' + b'\xff' * 50, 'neither'), (b'\x89PNG\r\n\x1a\n', 'neither'),
    (png_of(60_000, 60_000), 'megapixels'), (jpeg_of(60_000, 60_000), 'megapixels'),
    (png_of(64, 48), 'damaged'), (jpeg_of(64, 48), 'damaged'),
])
def test_bad_compressed_images_are_refused(data, reason):
    with pytest.raises(ImageError, match=reason):
        decode_compressed(CompressedImage(format='jpeg', data=data))
