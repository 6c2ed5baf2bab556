# SPDX-License-Identifier: Apache-2.0
"""Pictures for the simulated camera: folders, videos, and what is refused."""

import cv2
import numpy as np
import pytest

from blabberseg_ros.errors import ParameterError
from blabberseg_ros.sim.sources import WorldSource, open_recording
from blabberseg_ros.sim.world import generate_world

HERE = (0.0, 0.0, 40.0)


def write_images(folder, values, suffix='.png'):
    for index, value in enumerate(values):
        cv2.imwrite(str(folder / f'{index:03}{suffix}'), np.full((60, 80, 3), value, np.uint8))


def test_a_folder_is_played_in_order_and_again(tmp_path):
    write_images(tmp_path, (10, 120, 240))
    source = open_recording(tmp_path, (32, 24))
    frames = [source.frame(HERE) for _ in range(5)]
    assert [int(frame.rgb[0, 0, 0]) for frame in frames] == [10, 120, 240, 10, 120]
    assert frames[0].rgb.shape == (24, 32, 3)
    assert frames[0].depth_m.shape == (24, 32)
    assert (frames[0].depth_m == 40.0).all()


def test_colours_are_red_green_blue(tmp_path):
    bgr = np.zeros((40, 40, 3), np.uint8)
    bgr[..., 2] = 200
    cv2.imwrite(str(tmp_path / 'red.png'), bgr)
    assert open_recording(tmp_path, (40, 40)).frame(HERE).rgb[0, 0].tolist() == [200, 0, 0]


def test_damaged_images_are_passed_over(tmp_path):
    write_images(tmp_path, (10, 20))
    (tmp_path / '0005.png').write_bytes(b'not an image')
    source = open_recording(tmp_path, (32, 24))
    assert [int(source.frame(HERE).rgb[0, 0, 0]) for _ in range(4)] == [10, 20, 10, 20]


@pytest.mark.parametrize(('make', 'why'), [
    (lambda path: None, 'neither a file nor a folder'),
    (lambda path: path.mkdir(), 'holds no images'),
    (lambda path: path.write_text('no video'), 'cannot play'),
])
def test_what_cannot_be_played_is_refused_with_a_reason(tmp_path, make, why):
    path = tmp_path / 'source'
    make(path)
    with pytest.raises(ParameterError, match=why):
        open_recording(path, (32, 24))


def test_a_folder_of_damaged_images_is_refused(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'no')
    with pytest.raises(ParameterError, match='none of the 1 images'):
        open_recording(tmp_path, (32, 24))


def test_a_real_video_is_played_and_again(shared_dir):
    path = sorted((shared_dir / 'data' / 'aerial' / 'videos').glob('*.mp4'))[0]
    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    source = open_recording(path, (352, 352))
    first = source.frame(HERE).rgb
    for _ in range(count - 1):
        last = source._next_rgb()
    assert not np.array_equal(first, last)
    assert np.array_equal(source.frame(HERE).rgb, first)


def test_the_world_carries_the_vehicle_on_its_roofs():
    world = generate_world(3, size_m=80.0)
    source = WorldSource(world, 73.0, (64, 48))
    row, column = np.unravel_index(np.argmax(world.height_m), world.height_m.shape)
    x_m = (column + 0.5) * world.resolution_m - world.size_m / 2
    y_m = world.size_m / 2 - (row + 0.5) * world.resolution_m
    assert source.ground_height_m(x_m, y_m) == pytest.approx(float(world.height_m.max()))
    view = source.frame((x_m, y_m, 50.0))
    assert view.rgb.shape == (48, 64, 3)
    assert view.depth_m[24, 32] < 50.0
    assert source.reach_m < world.size_m / 2
