# SPDX-License-Identifier: Apache-2.0
"""The aerial camera in its own process: what it publishes, how it flies, what it refuses."""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped, Twist
from harness import ROOT, until
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Bool

from blabberseg_ros.demo.processes import NodeProcess
from blabberseg_ros.demo.run import EXECUTABLES
from blabberseg_ros.nodes.images import to_rgb

RGB = '/carla/flying_sensor/rgb_down/image'
DEPTH = '/carla/flying_sensor/depth_down/image'
INFO = '/carla/flying_sensor/rgb_down/camera_info'
TWIST = '/quadctrl/flying_sensor/ctrl_twist_sp'
# A small world is made in a second.
SMALL = {'world_size_m': 60.0, 'seed': 3, 'rate_hz': 20.0}
START_S = DEADLINE_S = 60.0


class Pilot:
    """Listens to the camera and sends it commands, spun by a thread."""

    def __init__(self) -> None:
        self.received: dict[str, list[Any]] = {}
        self._node = rclpy.create_node('test_pilot')
        for kind, topic in ((Image, RGB), (Image, DEPTH), (CameraInfo, INFO),
                            (PoseStamped, '/aerial_camera/pose')):
            self._listen(kind, topic, 10)
        self._listen(Bool, '/aerial_camera/landed', QoSProfile(
            depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
        self._twist = self._node.create_publisher(Twist, TWIST, 1)
        self._command: Twist | None = None
        self._node.create_timer(0.05, self._repeat)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _listen(self, kind: type, topic: str, qos: Any) -> None:
        messages = self.received[topic] = []

        def take(message: Any) -> None:
            messages.append(message)
            del messages[:-200]

        self._node.create_subscription(kind, topic, take, qos)

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def _repeat(self) -> None:
        if self._command is not None:
            self._twist.publish(self._command)

    def fly(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> None:
        """Repeat this command from now on."""
        command = Twist()
        command.linear.x, command.linear.y, command.linear.z = x, y, z
        self._command = command

    def fall_silent(self) -> None:
        self._command = None

    @property
    def position(self) -> tuple[float, float, float]:
        point = self.received['/aerial_camera/pose'][-1].pose.position
        return point.x, point.y, point.z

    def next(self, topic: str) -> Any:
        """Return a message that arrives from now on."""
        self.received[topic].clear()
        return until(lambda: self.received[topic] and self.received[topic][-1], START_S, topic)

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=5.0)
        self._thread.join(5.0)
        self._node.destroy_node()


def end(process: NodeProcess, number: signal.Signals = signal.SIGTERM) -> int:
    """Stop a camera, politely; return its exit code."""
    process.signal(number)
    return finish(process)


def finish(process: NodeProcess) -> int:
    try:
        until(lambda: process.exit_code is not None, DEADLINE_S, 'the camera ends')
    except AssertionError:
        process.kill()
        raise
    return process.exit_code


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., NodeProcess]]:
    """Return a function that starts a camera; parameters by keyword."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=':')
    processes: list[NodeProcess] = []

    def begin(**parameters: Any) -> NodeProcess:
        processes.append(NodeProcess('aerial_camera', EXECUTABLES, {**SMALL, **parameters},
                                     tmp_path, 'aerial_camera'))
        return processes[-1]

    yield begin
    for process in processes:
        if process.exit_code is None:
            assert end(process) == 0, process.last_lines(20)


@pytest.fixture
def pilot() -> Iterator[Pilot]:
    pilot = Pilot()
    yield pilot
    pilot.close()


def pixels(message: Image, dtype: type, channels: int = 1) -> np.ndarray:
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width, channels)


def stamp(message: Any) -> tuple[int, int]:
    return message.header.stamp.sec, message.header.stamp.nanosec


@pytest.mark.parametrize(('parameters', 'size'), [
    ({}, (352, 352)), ({'width_px': 640, 'height_px': 480}, (640, 480))])
def test_frames_depth_and_model_belong_together(start, pilot, parameters, size):
    start(z_init=40.0, **parameters)
    rgb = pilot.next(RGB)
    assert (rgb.width, rgb.height, rgb.encoding, rgb.step) == (*size, 'rgb8', 3 * size[0])
    assert rgb.header.frame_id == 'flying_sensor'
    assert to_rgb(rgb).std() > 10

    def same_stamp() -> list[Any]:
        wanted = {stamp(message) for message in pilot.received[RGB]}
        for topic in (DEPTH, INFO, '/aerial_camera/pose'):
            wanted &= {stamp(message) for message in pilot.received[topic]}
        return [next(message for message in pilot.received[topic] if stamp(message) in wanted)
                for topic in (DEPTH, INFO, '/aerial_camera/pose')] if wanted else []

    depth, info, pose = until(same_stamp, DEADLINE_S, 'one stamp on all topics')
    assert (depth.width, depth.height, depth.encoding) == (*size, '32FC1')
    metres = pixels(depth, np.float32)
    assert metres.max() == pytest.approx(40.0, abs=0.1)
    assert metres.min() > 0
    focal_px = size[0] / 2 / math.tan(math.radians(73 / 2))
    assert (info.width, info.height) == size
    assert info.k[0] == info.k[4] == pytest.approx(focal_px)
    assert info.header.frame_id == 'flying_sensor'
    assert pose.header.frame_id == 'map'
    assert pose.pose.position.z == pytest.approx(40.0)


def test_it_flies_in_doveseis_axes_and_hovers_when_nobody_commands(start, pilot):
    start(z_init=50.0)
    pilot.next(RGB)
    for command, axis, sign in (({'x': 3.0}, 1, 1), ({'y': 3.0}, 0, -1), ({'z': -3.0}, 2, -1)):
        moved = fly_and_stop(pilot, command, axis, sign)
        assert sorted(map(abs, moved))[:2] == pytest.approx([0.0, 0.0], abs=0.2)
    assert pilot.received['/aerial_camera/landed'][-1].data is False


def fly_and_stop(pilot: Pilot, command: dict[str, float], axis: int, sign: int) -> list[float]:
    """Fly 2 m along an axis, wait until it hovers, and return the way east, north and up."""
    before = pilot.position
    pilot.fly(**command)
    until(lambda: sign * (pilot.position[axis] - before[axis]) > 2.0, DEADLINE_S, str(command))
    pilot.fall_silent()
    until(lambda: at_rest(pilot), DEADLINE_S, 'it hovers')
    return [now - then for now, then in zip(pilot.position, before, strict=True)]


def at_rest(pilot: Pilot) -> bool:
    """Return whether the last ten poses, half a second, are one."""
    points = [message.pose.position for message in pilot.received['/aerial_camera/pose'][-10:]]
    return all(math.dist((p.x, p.y, p.z), (points[0].x, points[0].y, points[0].z)) < 0.01
               for p in points)


def test_it_touches_down_on_what_is_below(start, pilot):
    start(z_init=14.0)
    depth_m = float(np.median(pixels(pilot.next(DEPTH), np.float32)[170:182, 170:182]))
    pilot.fly(z=-5.0)
    until(lambda: any(m.data for m in pilot.received['/aerial_camera/landed']), START_S, 'landed')
    assert pilot.position[2] == pytest.approx(14.0 - depth_m + 0.3, abs=0.5)
    pilot.fly(x=5.0)
    resting = pilot.position
    pilot.next(RGB)
    assert pilot.position == pytest.approx(resting, abs=0.01)


def test_the_same_seed_shows_the_same_world(start, pilot):
    frames = []
    for _ in range(2):
        process = start(rate_hz=5.0)
        frames.append(to_rgb(pilot.next(RGB)).copy())
        assert end(process) == 0
    assert np.array_equal(*frames)


def test_a_folder_of_images_is_played(start, pilot, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for index, value in enumerate((40, 140, 240)):
        cv2.imwrite(str(folder / f'{index}.png'), np.full((90, 120, 3), value, np.uint8))
    start(source=str(folder), width_px=96, height_px=64, z_init=30.0)
    rgb, depth = pilot.next(RGB), pilot.next(DEPTH)
    assert (rgb.width, rgb.height) == (96, 64)
    assert (pixels(depth, np.float32) == 30.0).all()

    def shown() -> list[int]:
        return [int(message.data[0]) for message in pilot.received[RGB]]

    until(lambda: {40, 140, 240} <= set(shown()) and len(shown()) > 6, DEADLINE_S,
          'all images, over again')


def test_a_video_is_played(start, pilot, shared_dir):
    video = sorted((shared_dir / 'data' / 'aerial' / 'videos').glob('*.mp4'))[0]
    start(source=str(video))
    first = to_rgb(pilot.next(RGB)).copy()
    assert first.shape == (352, 352, 3)
    until(lambda: not np.array_equal(to_rgb(pilot.received[RGB][-1]), first), DEADLINE_S,
          'the picture changes')


@pytest.mark.parametrize(('parameters', 'why'), [
    ({'source': '/nowhere/at/all'}, 'neither a file nor a folder'),
    ({'source': str(Path(__file__))}, 'cannot play'),
    ({'family': 'moon'}, "family is 'moon'"),
    ({'rate_hz': 0.0}, 'rate_hz out of range'),
    ({'width_px': 'wide'}, 'width_px must be a int'),
])
def test_what_it_cannot_do_is_said_at_the_start(start, parameters, why):
    process = start(**parameters)
    assert finish(process) == 2
    output = process.log.read_text()
    assert why in output
    assert 'Traceback' not in output


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(start, pilot, number):
    process = start()
    pilot.next(RGB)
    assert end(process, number) == 0
    assert 'Traceback' not in process.log.read_text()


def test_it_can_be_ended_while_the_world_is_being_made(start, pilot):
    process = start(world_size_m=600.0)
    until(lambda: 'making world' in process.log.read_text(), START_S, 'it has begun')
    assert end(process) == 0
    assert not pilot.received[RGB]
