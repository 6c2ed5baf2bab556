# SPDX-License-Identifier: Apache-2.0
"""Which model a node loads by itself, and options of one family."""

import numpy as np
import pytest
from harness import ROOT, mask_of, scene, until
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from blabberseg_ros.models.fpseg_prompts import ClassPrompt, write_prompts
from blabberseg_ros.nodes.images import to_message

FPSEG = pytest.mark.parametrize('family', ['fpseg'], scope='session')


@pytest.mark.parametrize(('parameters', 'bundle'), [
    ({}, 'clipseg_demo'),
    ({'params_file': ROOT / 'config' / 'segformer_node.yaml'}, 'segformer_demo')])
def test_the_bundles_that_ship_answer_without_a_word(start_node, parameters, bundle):
    peer = start_node(bundle='auto', **parameters)
    peer.wait_active()
    assert peer.heatmap(dynamic_threshold=0.0).success
    assert peer.diagnostics()[1]['bundle'] == bundle


@FPSEG
def test_classes_of_a_file_and_a_budget_of_time(start_node, tmp_path):
    path = tmp_path / 'more.safetensors'
    write_prompts(path, [ClassPrompt('quicksand', np.ones((3, 32)), np.zeros(32))])
    peer = start_node(classes_file=path, decode_budget_ms=0.001)
    peer.wait_active()
    assert peer.set_prompts(['grass'], ['quicksand', 'tree']).success

    # The first class is decoded in any case; the rest is told to whoever asks, and in the log.
    told = 'counted as unsafe: tree, grass'
    assert not mask_of(peer.heatmap()).any()
    assert told in peer.diagnostics()[1]['last_message']
    until(lambda: told in peer.process.output)

    # The stream tells it as well, not more often than each 5 s.
    so_far = len(peer.process.output)
    peer.listen(Image, '/generate_landing_heatmap/heatmap')
    camera = peer.camera()

    def told_again():
        camera.publish(to_message(scene(), 'rgb8', Header()))
        return told in peer.process.output[so_far:]

    until(told_again)
    assert peer.counters()['frames_answered'] > 0

    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        assert peer.change_state(transition)
    assert peer.set_parameters(decode_budget_ms=0.0).successful
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert peer.change_state(transition)
    assert peer.heatmap(dynamic_threshold=0.0, positive_prompts='grass',
                        negative_prompts='lava;tree', prompt_engineering='{}').success
    peer.diagnostics(lambda status, values: values['last_message'] == '')


@pytest.mark.parametrize(('family', 'prompt', 'reading'), [
    ('fpseg', 'open-area', "'open-area' stands for"),
    ('segformer', 'open-area', "'open-area' is read as")], scope='session')
def test_how_a_prompt_is_read_is_in_the_log(start_node, prompt, reading):
    peer = start_node(positive_prompts=f'["{prompt}"]', negative_prompts='["water"]')
    peer.wait_active()
    until(lambda: f'how the prompts are read: {reading}' in peer.process.output)
    assert peer.set_parameters(negative_prompts=['tree']).successful
    until(lambda: f'new prompts are in use; {reading}' in peer.process.output)
