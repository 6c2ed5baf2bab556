# SPDX-License-Identifier: Apache-2.0
"""From the start of the process to its end."""

import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import START_S, mask_of, scene, until
from lifecycle_msgs.msg import Transition
from std_msgs.msg import Header

from blabberseg_ros.nodes.images import to_message


def assert_refused_black(response, height=120, width=160):
    assert response.success is False
    mask = mask_of(response)
    assert mask.shape == (height, width)
    assert not mask.any()


def threads_of(pid):
    status = Path(f'/proc/{pid}/status').read_text()
    return int(next(line.split()[1] for line in status.splitlines()
                    if line.startswith('Threads:')))


def test_without_autostart_a_manager_leads(start_node):
    peer = start_node(autostart='false')
    assert_refused_black(peer.heatmap())
    assert peer.state() == 'unconfigured'
    status, values = peer.diagnostics()
    assert status.level == DiagnosticStatus.WARN
    assert values['lifecycle'] == 'unconfigured'
    # What takes effect when the node is configured can be set now, and later not.
    assert peer.set_parameters(load_timeout_s=60.0, engine='auto').successful

    assert peer.change_state(Transition.TRANSITION_CONFIGURE)
    assert peer.state() == 'inactive'
    assert_refused_black(peer.heatmap())
    refused = peer.set_parameters(engine='onnxruntime-cpu')
    assert not refused.successful
    assert 'configured' in refused.reason
    assert peer.get_parameter('engine') == 'auto'
    assert peer.set_prompts(['grass'], ['water']).success is False

    assert peer.change_state(Transition.TRANSITION_ACTIVATE)
    mask = mask_of(peer.heatmap())
    assert mask.any()

    assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
    assert_refused_black(peer.heatmap())
    assert peer.set_parameters(positive_prompts=['sand', 'mud']).successful
    assert peer.change_state(Transition.TRANSITION_CLEANUP)
    assert_refused_black(peer.heatmap())

    threads = []
    for _ in range(3):
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            assert peer.change_state(transition)
        # What was set while the node was down is in use now.
        assert list(peer.get_prompts().positive) == ['sand', 'mud']
        threads.append(threads_of(peer.process.pid))
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
            assert peer.change_state(transition)
    assert threads[-1] <= threads[0] + 1, 'a cycle leaves no thread behind'

    assert peer.change_state(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    assert peer.state() == 'finalized'
    assert_refused_black(peer.heatmap())
    assert peer.process.stop() == 0


def test_a_missing_bundle_is_waited_for(start_node, random_bundle, tmp_path):
    folder = tmp_path / 'late'
    peer = start_node(bundle=folder)
    assert_refused_black(peer.heatmap())
    status, _ = peer.diagnostics(lambda status, values: status.level == DiagnosticStatus.ERROR)
    assert 'late' in status.message
    assert 'active' not in peer.state()
    shutil.copytree(random_bundle, folder)
    until(lambda: peer.state() == 'active')
    assert peer.heatmap().success


@pytest.mark.parametrize(('parameters', 'reason'), [
    ({'backend': 'clipseg', 'engine': 'no-such-engine'}, 'no-such-engine'),
    ({'device': 'cuda', 'engine': 'onnxruntime-cpu'}, 'cuda'),
    ({'prompts_file': '/no/such/file.yaml'}, '/no/such/file.yaml'),
])
def test_what_cannot_be_configured_is_told_and_answered_black(start_node, parameters, reason):
    peer = start_node(**parameters)
    status, _ = peer.diagnostics(lambda status, values: status.level == DiagnosticStatus.ERROR)
    assert reason in status.message
    assert_refused_black(peer.heatmap())
    assert peer.process.stop() == 0


def test_a_damaged_bundle_is_refused(start_node, random_bundle, tmp_path):
    folder = tmp_path / 'damaged'
    shutil.copytree(random_bundle, folder)
    weights = folder / 'weights.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    peer = start_node(bundle=folder)
    status, _ = peer.diagnostics(lambda status, values: status.level == DiagnosticStatus.ERROR)
    assert 'damaged' in status.message
    assert_refused_black(peer.heatmap())
    assert peer.process.stop() == 0


def test_prompts_come_from_a_file(start_node, tmp_path):
    path = tmp_path / 'prompts.yaml'
    path.write_text('positive: [heath]\nnegative: [bog, "cliff; edge"]\ntemplate: "a {} below"\n')
    peer = start_node(prompts_file=path)
    peer.wait_active()
    prompts = peer.get_prompts()
    assert list(prompts.positive) == ['heath']
    assert list(prompts.negative) == ['bog', 'cliff; edge']
    assert prompts.prompt_template == 'a {} below'
    assert peer.get_parameter('positive_prompts') == ['heath']
    assert peer.heatmap().success
    assert peer.process.stop() == 0


@pytest.mark.parametrize(('parameters', 'reason'), [
    ({'safety_threshold': '1.5'}, 'safety_threshold'),
    ({'safety_threshold': '.nan'}, 'safety_threshold'),
    ({'stream': 'sometimes'}, 'stream'),
    ({'blur_kernel_size': 'wide'}, 'blur_kernel_size'),
    ({'backend': 'lseg2'}, 'backend'),
])
def test_bad_parameters_at_the_start_are_told_in_one_line(start_node, parameters, reason):
    process = start_node(**parameters).process
    assert process.wait() == 2
    assert 'The node does not start' in process.output
    assert reason in process.output
    assert 'Traceback' not in process.output


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('busy', [False, True])
def test_signals_end_it_cleanly(start_node, number, busy):
    peer = start_node(stream='always')
    peer.wait_active()
    if busy:
        publisher = peer.camera()
        message = to_message(scene(480, 640), 'rgb8', Header())

        def working():
            publisher.publish(message)
            return peer.counters()['frames_answered'] > 0

        until(working)
        for _ in range(10):
            publisher.publish(message)
    assert peer.process.stop(number) == 0
    assert 'Traceback' not in peer.process.output


def test_a_signal_during_loading_ends_it_cleanly(start_node):
    peer = start_node(autostart='true')
    until(lambda: peer.received['/diagnostics'], START_S, 'the node is up')
    assert peer.process.stop(signal.SIGINT) == 0
    assert 'Traceback' not in peer.process.output


def test_started_by_a_shell_in_the_background_it_still_hears_sigint(start_node):
    """A shell makes its background processes ignore SIGINT from birth."""
    peer = start_node()
    peer.wait_active()
    status = Path(f'/proc/{peer.process.pid}/status').read_text().splitlines()
    ignored = int(next(line.split()[1] for line in status if line.startswith('SigIgn')), 16)
    assert not ignored & 1 << (signal.SIGINT - 1)
    subprocess.run(['kill', '-INT', str(peer.process.pid)], check=True)
    assert peer.process.wait() == 0


def test_the_same_mask_after_a_restart_without_the_text_tower(start_node, tmp_path):
    first = start_node(cache_dir=tmp_path)
    first.wait_active()
    mask = mask_of(first.heatmap())
    assert first.counters()['text_encoder_runs'] > 0
    assert first.process.stop() == 0
    second = start_node(cache_dir=tmp_path)
    second.wait_active()
    np.testing.assert_array_equal(mask_of(second.heatmap()), mask)
    assert second.counters()['text_encoder_runs'] == 0
    assert second.process.stop() == 0
