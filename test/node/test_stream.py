# SPDX-License-Identifier: Apache-2.0
"""The stream: camera frames in, heatmaps out, newest first and only while somebody listens."""

import time
from itertools import pairwise

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import scene, until
from rclpy.qos import ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from blabberseg_ros import viz
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.nodes.images import to_message
from blabberseg_ros.prompts import default_prompts

HEATMAP, PROBABILITY, OVERLAY = (
    f'/generate_landing_heatmap/{name}' for name in ('heatmap', 'probability', 'overlay'))


def stamp_of(message):
    """Return the stamp as (seconds, nanoseconds)."""
    return message.header.stamp.sec, message.header.stamp.nanosec


class Camera:
    """Publishes frames with stamps of our choice."""

    def __init__(self, live, publisher):
        self._live = live
        self.publisher = publisher
        self.stamps = []

    def send(self, image=None, age_s=0.0):
        now_ns = self._live.node.get_clock().now().nanoseconds - round(age_s * 1e9)
        header = Header(frame_id='down_camera')
        header.stamp.sec, header.stamp.nanosec = divmod(now_ns, 10**9)
        self.publisher.publish(to_message(scene() if image is None else image, 'rgb8', header))
        self.stamps.append((header.stamp.sec, header.stamp.nanosec))
        return self.stamps[-1]

    def send_until(self, probe, period_s=0.05, **arguments):
        """Keep sending until something has happened."""
        def send_and_probe():
            self._live.check_spinning()
            self.send(**arguments)
            time.sleep(period_s)  # the period of the camera
            return probe()

        return until(send_and_probe)


@pytest.fixture(autouse=True)
def _quiet_afterwards(live):
    """Let no frame of one test come out in the next."""
    yield
    live.diagnostics(lambda status, values: values['streaming'] == 'false')
    live.heatmap()  # comes after the frame that may be in work still


@pytest.fixture
def camera(live):
    publisher = live.camera()
    yield Camera(live, publisher)
    live.node.destroy_publisher(publisher)


@pytest.fixture
def listen(live):
    """Return a function that listens to a topic until the end of the test."""
    subscriptions = []

    def start(topic, kind=Image):
        subscriptions.append(live.listen(kind, topic))
        return live.received[topic]

    yield start
    for subscription in subscriptions:
        live.ignore(subscription)


@pytest.fixture
def parameters(live):
    """Return a function that sets parameters until the end of the test."""
    previous = {}

    def change(**values):
        previous.update({name: live.get_parameter(name) for name in values})
        assert live.set_parameters(**values).successful

    yield change
    if previous:
        assert live.set_parameters(**previous).successful


def test_outputs_are_those_of_the_segmenter(live, camera, listen, segmenter):
    outputs = {topic: listen(topic) for topic in (HEATMAP, PROBABILITY, OVERLAY)}
    image = scene(seed=3)
    camera.send_until(lambda: all(outputs.values()), image=image)
    direct = segmenter.segment(image, default_prompts(), FusionOptions())
    heatmap, probability, overlay = (outputs[topic][-1] for topic in
                                     (HEATMAP, PROBABILITY, OVERLAY))
    assert (heatmap.encoding, probability.encoding, overlay.encoding) == (
        'mono8', '32FC1', 'rgb8')
    height, width = image.shape[:2]
    np.testing.assert_array_equal(
        np.frombuffer(heatmap.data, np.uint8).reshape(height, width), direct.mask)
    np.testing.assert_allclose(
        np.frombuffer(probability.data, np.float32).reshape(height, width), direct.probability,
        atol=1e-5)
    np.testing.assert_array_equal(
        np.frombuffer(overlay.data, np.uint8).reshape(height, width, 3),
        viz.overlay(image, direct.mask))


def test_header_is_the_frames_own(camera, listen):
    received = listen(HEATMAP)
    camera.send_until(lambda: received)
    assert received[0].header.frame_id == 'down_camera'
    assert stamp_of(received[0]) in camera.stamps


def test_auto_works_only_while_somebody_listens(live, camera, listen):
    before = live.counters()
    camera.send_until(lambda: live.counters()['frames_received'] >= before['frames_received'] + 5,
                      period_s=0.01)
    idle = live.counters()
    assert idle['frames_answered'] == before['frames_answered']
    assert live.diagnostics()[1]['streaming'] == 'false'
    received = listen(HEATMAP)
    camera.send_until(lambda: received)
    assert live.diagnostics()[1]['streaming'] == 'true'


def test_off_works_never(live, camera, listen, parameters):
    parameters(stream='off')
    received = listen(HEATMAP)
    before = live.counters()
    camera.send_until(lambda: live.counters()['frames_received'] >= before['frames_received'] + 5,
                      period_s=0.01)
    assert live.counters()['frames_answered'] == before['frames_answered']
    assert not received


def test_always_works_without_a_listener(live, camera, parameters):
    parameters(stream='always')
    before = live.counters()
    camera.send_until(
        lambda: live.counters()['frames_answered'] > before['frames_answered'])
    assert live.counters()['frames_received'] > before['frames_received']


@pytest.mark.parametrize('reliability', [ReliabilityPolicy.RELIABLE,
                                         ReliabilityPolicy.BEST_EFFORT])
def test_both_kinds_of_cameras_are_heard(live, listen, reliability):
    received = listen(HEATMAP)
    publisher = live.camera(reliability)
    try:
        Camera(live, publisher).send_until(lambda: received)
        assert received[-1].encoding == 'mono8'
    finally:
        live.node.destroy_publisher(publisher)


def test_overload_drops_frames_and_keeps_the_newest(live, camera, listen):
    received = listen(HEATMAP)
    camera.send_until(lambda: received)
    before = live.counters()
    image = scene(480, 640, seed=9)

    def flood():
        for _ in range(30):
            camera.send(image)
        return live.counters()['frames_dropped'] > before['frames_dropped']

    until(flood)
    # Whatever was dropped: a frame sent now is answered at once, for there is no backlog.
    newest = camera.send()
    camera.send_until(lambda: any(stamp_of(item) >= newest for item in received))
    assert all(stamp_of(a) <= stamp_of(b) for a, b in pairwise(received))


def test_requests_are_answered_under_overload(live, camera, listen):
    received = listen(HEATMAP)
    camera.send_until(lambda: received)
    for seed in range(3):
        for _ in range(10):
            camera.send(scene(480, 640, seed=20))
        assert live.heatmap(scene(seed=seed)).success


def test_stale_and_future_frames_are_dropped_on_demand(live, camera, listen, parameters):
    received = listen(HEATMAP)
    camera.send_until(lambda: received, age_s=100.0)  # off by default
    parameters(max_frame_age_s=1.0, max_future_s=0.05)
    before = live.counters()
    camera.stamps.clear()
    camera.send_until(lambda: live.counters()['frames_stale'] >= before['frames_stale'] + 3,
                      age_s=2.0)
    camera.send_until(lambda: live.counters()['frames_future'] >= before['frames_future'] + 3,
                      age_s=-5.0)
    refused = set(camera.stamps)
    camera.send_until(lambda: stamp_of(received[-1]) in set(camera.stamps) - refused)
    assert not refused & {stamp_of(item) for item in received}


def test_max_rate_holds(live, camera, listen, parameters):
    parameters(max_rate_hz=2.0)
    received = listen(HEATMAP)
    camera.send_until(lambda: len(received) >= 4, period_s=0.02)
    first, last = (Time.from_msg(item.header.stamp).nanoseconds for item in
                   (received[0], received[3]))
    assert last - first > 1.0e9, 'three periods of half a second, less the wait of the first'


def test_age_of_the_last_frame_is_watched(live, camera, listen):
    received = listen(HEATMAP)
    camera.send_until(lambda: received)
    camera.send_until(
        lambda: live.diagnostics()[0].level == DiagnosticStatus.OK, period_s=0.01)
    # The camera falls silent.
    reports = []
    live.diagnostics(lambda status, values: reports.append((status, values))
                     or status.level == DiagnosticStatus.ERROR)
    for status, values in reports:
        # There is no stamp to judge before the first frame since the streaming began.
        age_s = max(float(values[name] or 0.0) for name in (
            'last_frame_age_s', 'last_stamp_age_s'))
        if 0.501 < age_s < 0.999:
            assert status.level == DiagnosticStatus.WARN
        assert (status.level == DiagnosticStatus.OK) <= (age_s < 0.501)
        assert (status.level == DiagnosticStatus.ERROR) <= (age_s > 0.999)
    assert 'no usable frame' in reports[-1][0].message


def test_delayed_stamps_are_told(live, camera, listen):
    received = listen(HEATMAP)
    camera.send_until(lambda: received, age_s=100.0)
    reports = live.received['/diagnostics']
    before = len(reports)

    def told():
        return [report.status[0] for report in reports[before:]
                if 'stamp' in report.status[0].message]

    camera.send_until(told, age_s=100.0)
    status = told()[0]
    assert status.level == DiagnosticStatus.ERROR
    values = {item.key: item.value for item in status.values}
    assert float(values['last_stamp_age_s']) > 100.0
    assert float(values['last_frame_age_s']) < 100.0
    # Time has to be right again, and all is well.
    camera.send_until(lambda: reports[-1].status[0].level == DiagnosticStatus.OK, period_s=0.01)


def test_frames_that_are_all_bad_are_told(live, camera, listen):
    listen(HEATMAP)
    bad = to_message(np.zeros((10, 10), np.float32), '32FC1', Header())
    reports, found = live.received['/diagnostics'], []

    def told():
        camera.publisher.publish(bad)
        time.sleep(0.02)  # the period of the camera
        status = reports[-1].status[0]
        if 'none was answered' in status.message:
            found.append(status)
        return found and found[-1].level == DiagnosticStatus.ERROR

    until(told)
    assert {status.level for status in found} <= {DiagnosticStatus.WARN, DiagnosticStatus.ERROR}
    assert all('32FC1' in status.message for status in found)
    camera.send_until(lambda: reports[-1].status[0].level == DiagnosticStatus.OK, period_s=0.01)


def test_diagnostics_tell_engine_rates_and_latencies(live, camera, listen):
    received = listen(HEATMAP)
    camera.send_until(lambda: len(received) >= 3)
    status, values = live.diagnostics()
    assert status.name == 'generate_landing_heatmap: heatmap'
    assert values['engine'] == 'onnxruntime-cpu'
    assert values['precision'] == 'fp32'
    assert values['lifecycle'] == 'active'
    assert float(values['rate_hz']) > 0
    for stage in ('encode_text', 'encode_image', 'decode', 'fuse', 'threshold', 'total'):
        assert 0 <= float(values[f'{stage}_p50_ms']) <= float(values[f'{stage}_p99_ms'])
    assert float(values['total_p50_ms']) > 0
    for counter in ('frames_dropped', 'image_cache_hits', 'prompt_cache_hits'):
        assert values[counter].isdecimal()


def test_bad_frames_are_counted_and_do_no_harm(live, camera, listen):
    received = listen(HEATMAP)
    camera.send_until(lambda: received)
    before = live.counters()
    bad = to_message(np.zeros((10, 10), np.float32), '32FC1', Header())

    def send_bad():
        camera.publisher.publish(bad)
        return live.counters()['frames_refused'] > before['frames_refused']

    until(send_bad)
    received.clear()
    camera.send_until(lambda: received)
    assert live.counters()['frames_refused'] > before['frames_refused']
    assert live.counters()['frames_answered'] > before['frames_answered']
