# SPDX-License-Identifier: Apache-2.0
"""Cases 10, 11 and 16 of what breaks DOVESEI's node: those of the start."""


def test_case_10_and_16_the_first_request_needs_no_camera_and_no_warm_up(start_node, family):
    peer = start_node()
    peer.wait_active()
    before = peer.counters()
    assert before['frames_received'] == 0
    assert peer.heatmap().success
    # Prompts were encoded and every graph was run before the node called itself active.
    assert before['image_encoder_runs'] == 1
    assert before['decoder_runs'] > 0
    assert peer.counters()['text_encoder_runs'] == before['text_encoder_runs']
    # Two families know DOVESEI's words by the aliases of their labels.
    assert (before['text_encoder_runs'] > 0) is (family in ('clipseg', 'lseg'))


def test_case_11_no_network(start_node, tmp_path):
    """A process that looks up a host name, or connects to one, writes it down and fails."""
    trace = tmp_path / 'connections.txt'
    (tmp_path / 'sitecustomize.py').write_text(f"""
import socket

def refuse(*arguments, **keywords):
    with open({str(trace)!r}, 'a') as file:
        file.write(repr(arguments) + '\\n')
    raise OSError('no network in this test')

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
open({str(tmp_path / 'loaded')!r}, 'w').close()
""")
    peer = start_node(environment={'PYTHONPATH': f'{tmp_path}'})
    peer.wait_active()
    assert (tmp_path / 'loaded').exists()
    assert peer.heatmap().success
    assert not trace.exists(), trace.read_text()
