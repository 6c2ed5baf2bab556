# SPDX-License-Identifier: Apache-2.0
"""Between ROS image messages and NumPy arrays, in one table.

Frames come out as uint8 [H, W, 3] in RGB. An `rgb8` message is viewed without a copy, row padding
included. Values of 16 bits are reduced to their upper 8 (`>> 8`), whatever their byte order.

Sources: sensor_msgs/image_encodings.hpp for the names, OpenCV's `cvtColor` for the arithmetic.
OpenCV names Bayer patterns by their second row and column, ROS by their first.
"""

import array
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from blabberseg_ros.errors import ImageError

PIXELS_PER_MEGAPIXEL = 1_000_000
MAX_MEGAPIXELS = 64.0
# A single row or column of pixels cannot be resampled into a view of the ground.
MIN_SIDE_PX = 2


@dataclass(frozen=True)
class Encoding:
    """How the pixels of one encoding lie in a message.

    Attributes:
        channels: values per pixel in a row.
        bytes_per_value: 1 or 2.
        code: OpenCV colour conversion to RGB; None when the values are RGB already.
        rows_per_2: rows in the message for 2 rows of the image; more than 2 where the colour
            planes follow the brightness plane.
        min_side_px: smallest width and height that can be converted.
        even: whether width (and height, for planes) must be even.
    """

    channels: int
    bytes_per_value: int
    code: int | None
    rows_per_2: int = 2
    min_side_px: int = MIN_SIDE_PX
    even: bool = False


_COLOURS = {'rgb': (3, None), 'bgr': (3, cv2.COLOR_BGR2RGB), 'rgba': (4, cv2.COLOR_RGBA2RGB),
            'bgra': (4, cv2.COLOR_BGRA2RGB), 'mono': (1, cv2.COLOR_GRAY2RGB)}
_BAYER = {'rggb': cv2.COLOR_BayerBG2RGB, 'bggr': cv2.COLOR_BayerRG2RGB,
          'gbrg': cv2.COLOR_BayerGR2RGB, 'grbg': cv2.COLOR_BayerGB2RGB}
_YUV422 = {'yuv422': cv2.COLOR_YUV2RGB_UYVY, 'uyvy': cv2.COLOR_YUV2RGB_UYVY,
           'yuv422_yuy2': cv2.COLOR_YUV2RGB_YUY2, 'yuyv': cv2.COLOR_YUV2RGB_YUY2}
_YUV420 = {'nv12': cv2.COLOR_YUV2RGB_NV12, 'nv21': cv2.COLOR_YUV2RGB_NV21}

ENCODINGS: dict[str, Encoding] = {
    **{f'{name}{8 * size}': Encoding(channels, size, code)
       for size in (1, 2) for name, (channels, code) in _COLOURS.items()},
    **{f'bayer_{name}{8 * size}': Encoding(1, size, code, min_side_px=3)
       for size in (1, 2) for name, code in _BAYER.items()},
    **{name: Encoding(2, 1, code, even=True) for name, code in _YUV422.items()},
    **{name: Encoding(1, 1, code, rows_per_2=3, even=True) for name, code in _YUV420.items()},
}


def to_rgb(message: Image, max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Return the pixels of an image message.

    Args:
        message: in one of `ENCODINGS`, or in one that an installed cv_bridge can convert.
        max_megapixels: images with more pixels are refused before they are touched.

    Returns:
        uint8 [H, W, 3], RGB, not writable. For `rgb8` it is a view of the message's data.

    Raises:
        ImageError: the message contradicts itself, is too large or too small, or its encoding
            is not supported.
    """
    check_size(message.width, message.height, max_megapixels)
    encoding = ENCODINGS.get(message.encoding)
    rgb = (_through_cv_bridge(message) if encoding is None else
           _to_rgb(_plane(message, encoding), encoding))
    rgb.flags.writeable = False
    return rgb


def decode_compressed(message: CompressedImage,
                      max_megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Return the pixels of a JPEG or PNG message.

    The size is read from the file's header first: a few kilobytes can hold a picture that fills
    the memory.

    Args:
        message: what image_transport's `compressed` plugin publishes.
        max_megapixels: images with more pixels are refused before they are decoded.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        ImageError: the data are not a JPEG or PNG image, are damaged, or are too large.
    """
    data = np.frombuffer(message.data, np.uint8)
    size = _png_size(data.tobytes()[:24]) or _jpeg_size(data)
    if size is None:
        raise ImageError(
            f'a compressed image of format {message.format!r} and {data.size} bytes is neither '
            'JPEG nor PNG, so it was not decoded; publish one of these (compressedDepth is not a '
            'colour image)')
    check_size(*size, max_megapixels)
    try:
        # The camera's orientation tag is ignored: image centre and axes belong to the sensor.
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        bgr = None
    if bgr is None:
        raise ImageError(
            f'a compressed image of {data.size} bytes is damaged and could not be decoded; '
            'check the link to the camera')
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def check_size(width: int, height: int, max_megapixels: float) -> None:
    """Refuse sizes that cannot be segmented.

    Raises:
        ImageError: naming the size and the limit.
    """
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(
            f'the image is {width}×{height} pixels; there is nothing to segment in it. It must '
            f'have at least {MIN_SIDE_PX}×{MIN_SIDE_PX} pixels')
    if width * height > max_megapixels * PIXELS_PER_MEGAPIXEL:
        raise ImageError(
            f'the image is {width}×{height} pixels; at most {max_megapixels:g} megapixels are '
            'taken. Publish it smaller, or raise max_megapixels')


def to_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Return an image message of an array.

    Args:
        pixels: uint8 [H, W] for mono8, uint8 [H, W, 3] for rgb8 or bgr8, float32 [H, W] for
            32FC1.
        encoding: name of the layout, written into the message.
        header: copied as it is: stamp and frame of the capture belong to the result.
    """
    pixels = np.ascontiguousarray(pixels)
    # An array.array goes into the message as it is; assigning an ndarray takes 98 ms for
    # 640×480×3 bytes, because each element is checked in Python.
    data = array.array('B')
    data.frombytes(pixels.data.cast('B') if pixels.size else b'')
    height, width, *channels = pixels.shape
    message = Image(height=height, width=width, encoding=encoding, is_bigendian=0,
                    step=width * math.prod(channels) * pixels.itemsize, data=data)
    message.header = header
    return message


def black_mask(width: int, height: int, header: Header, max_megapixels: float) -> Image:
    """Return a mono8 mask on which nothing is safe.

    Args:
        width: of the image that could not be segmented, as its message says.
        height: likewise.
        header: copied.
        max_megapixels: for an image above this limit the mask is empty (0×0), because its size
            may be made up.
    """
    if width * height > max_megapixels * PIXELS_PER_MEGAPIXEL:
        width = height = 0
    return to_message(np.zeros((height, width), np.uint8), 'mono8', header)


def _plane(message: Image, encoding: Encoding) -> np.ndarray:
    """Return the message's data as uint8 [rows, W, channels], a view where possible."""
    width, height = message.width, message.height
    if min(width, height) < encoding.min_side_px or (encoding.even and width % 2):
        raise ImageError(_contradiction(
            message, f'{message.encoding} needs at least {encoding.min_side_px}×'
            f'{encoding.min_side_px} pixels' + (' and an even width' if encoding.even else '')))
    if encoding.rows_per_2 > 2 and height % 2:
        raise ImageError(_contradiction(message, f'{message.encoding} needs an even height'))
    rows = height * encoding.rows_per_2 // 2
    value_size = encoding.bytes_per_value
    row_size = width * encoding.channels * value_size
    if message.step < row_size or message.step % value_size:
        raise ImageError(_contradiction(
            message, f'step must be a multiple of {value_size} and at least {row_size} bytes'))
    # Some drivers leave out the padding after the last row.
    needed = message.step * (rows - 1) + row_size
    if len(message.data) < needed:
        raise ImageError(_contradiction(message, f'{needed} bytes of data are needed'))
    # Of a 16-bit value only the upper byte is kept: the first one in big-endian order.
    first = 1 if value_size == 2 and not message.is_bigendian else 0
    return np.ndarray(
        (rows, width, encoding.channels), np.uint8, buffer=message.data, offset=first,
        strides=(message.step, encoding.channels * value_size, value_size))


def _to_rgb(plane: np.ndarray, encoding: Encoding) -> np.ndarray:
    if encoding.code is None:
        return plane if encoding.bytes_per_value == 1 else np.ascontiguousarray(plane)
    return cv2.cvtColor(np.ascontiguousarray(plane), encoding.code)


def _contradiction(message: Image, reason: str) -> str:
    return (f'the image message contradicts itself: encoding {message.encoding}, '
            f'{message.width}×{message.height} pixels, step {message.step}, '
            f'{len(message.data)} bytes of data, but {reason}. Check the camera driver')


def _through_cv_bridge(message: Image) -> np.ndarray:
    reason = 'cv_bridge, which may know it, is not installed'
    convert = _cv_bridge()
    if convert is not None:
        try:
            return np.asarray(convert(message), np.uint8).copy()
        # cv_bridge raises whatever it meets (KeyError with OpenCV 5, for one), and a frame that
        # it cannot convert is no more than a bad frame.
        except Exception as error:
            reason = f'cv_bridge cannot convert it either ({error})'
    raise ImageError(
        f'the encoding {message.encoding!r} is not supported: {reason}. Publish one of '
        f'{", ".join(ENCODINGS)}')


def _cv_bridge() -> Callable[[Image], np.ndarray] | None:
    try:
        from cv_bridge import CvBridge
    # Its binary may have been built for another NumPy, which is an ImportError, an
    # AttributeError or a SystemError depending on the versions.
    except Exception:
        return None
    return lambda message: CvBridge().imgmsg_to_cv2(message, 'rgb8')


def _png_size(head: bytes) -> tuple[int, int] | None:
    if head[:8] != b'\x89PNG\r\n\x1a\n' or len(head) < 24:
        return None
    return int.from_bytes(head[16:20], 'big'), int.from_bytes(head[20:24], 'big')


def _jpeg_size(data: np.ndarray) -> tuple[int, int] | None:
    """Return width and height from the frame header (SOF marker) of a JPEG file."""
    if data.size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return None
    position = 2
    while position + 9 <= data.size and data[position] == 0xFF:
        marker = int(data[position + 1])
        if marker == 0xFF:
            position += 1
            continue
        length = int(data[position + 2]) << 8 | int(data[position + 3])
        # C4, C8 and CC lie among the frame headers but are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int(data[position + i]) << 8 | int(data[position + i + 1])
                             for i in (5, 7))
            return width, height
        position += 2 + length
    return None
