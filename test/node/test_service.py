# SPDX-License-Identifier: Apache-2.0
"""The landing heatmap service, as DOVESEI's landing module calls it."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import NAME, heatmap_request, mask_of, scene
from live_nodes import READING
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap
from sensor_msgs.msg import Image

from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.prompts import DEFAULT_NEGATIVE, DEFAULT_POSITIVE, PromptSet, default_prompts

WIRE = {'positive_prompts': ';'.join(DEFAULT_POSITIVE),
        'negative_prompts': ';'.join(DEFAULT_NEGATIVE),
        'prompt_engineering': default_prompts().template}


@pytest.mark.parametrize(('height', 'width'), [(120, 160), (352, 352), (99, 701)])
def test_mask_is_the_segmenters_own(live, segmenter, height, width):
    image = scene(height, width, seed=1)
    direct = segmenter.segment(
        image, default_prompts(), FusionOptions(float(np.float32(0.8)), 15,
                                                float(np.float32(0.1))))
    response = live.heatmap(image, **WIRE)
    assert response.success is direct.success is True
    assert response.curr_threshold == pytest.approx(direct.threshold, abs=1e-6)
    np.testing.assert_array_equal(mask_of(response), direct.mask)
    assert 0 < np.count_nonzero(direct.mask) < direct.mask.size


def test_empty_prompt_fields_mean_the_nodes_own_prompts(live):
    np.testing.assert_array_equal(mask_of(live.heatmap()), mask_of(live.heatmap(**WIRE)))


def test_prompts_of_a_request_decide(live, segmenter):
    prompts = PromptSet(('mud', 'sand'), ('lava',), 'a photo of {}')
    direct = segmenter.segment(scene(), prompts, FusionOptions(
        float(np.float32(0.8)), 15, float(np.float32(0.1))))
    response = live.heatmap(positive_prompts='mud;sand', negative_prompts='lava',
                            prompt_engineering='a photo of {}')
    np.testing.assert_array_equal(mask_of(response), direct.mask)


def test_header_is_copied_untouched(live):
    request = heatmap_request()
    response = live.send(request)
    assert response.heatmap.header == request.image.header


def test_stamp_now_is_an_option(live):
    request = heatmap_request()
    assert live.set_parameters(stamp='now').successful
    try:
        header = live.send(request).heatmap.header
    finally:
        assert live.set_parameters(stamp='capture').successful
    assert header.frame_id == request.image.header.frame_id
    now_s = live.node.get_clock().now().nanoseconds / 1e9
    assert header.stamp.sec == pytest.approx(now_s, abs=10)


@pytest.mark.parametrize('success', [True, False])
def test_each_answer_is_published_as_final_heatmap(live, success):
    subscription = live.listen(Image, '/final_heatmap')
    try:
        count = live.node.count_publishers('/final_heatmap')
        assert count == 1
        response = None
        for _ in range(50):  # discovery of the new subscription may take a few answers
            response = live.heatmap(**({} if success else {'blur_kernel_size': 0}))
            if live.received['/final_heatmap']:
                break
        assert response.success is success
        assert live.received['/final_heatmap'][-1] == response.heatmap
    finally:
        live.ignore(subscription)


def test_failed_search_is_black_and_dovesei_white_on_demand(live):
    black = live.heatmap(dynamic_threshold=1.5)
    assert black.success is False
    assert not mask_of(black).any()
    assert live.set_parameters(on_failure='dovesei').successful
    try:
        white = live.heatmap(dynamic_threshold=1.5)
    finally:
        assert live.set_parameters(on_failure='unsafe').successful
    assert white.success is False
    assert mask_of(white).all()


def test_min_threshold_is_a_floor_for_requests(live):
    low = live.heatmap(dynamic_threshold=0.9)
    assert low.success
    assert low.curr_threshold < 0.7
    assert live.set_parameters(min_threshold=0.7).successful
    try:
        refused = live.heatmap(dynamic_threshold=0.9)
    finally:
        assert live.set_parameters(min_threshold=0.0).successful
    assert refused.success is False
    assert not mask_of(refused).any()


@pytest.mark.parametrize('family', READING, scope='session')
def test_requests_that_are_never_answered_in_time_are_told(live):
    # No machine reads and decodes hundreds of new prompts within a tenth of a second.
    slow = {'positive_prompts': 'grass', 'prompt_engineering': '{} too late',
            'negative_prompts': ';'.join(f'thing {index}' for index in range(255))}
    assert live.set_parameters(request_timeout_s=0.1).successful
    try:
        late = live.heatmap(scene(2000, 3000), **slow)
    finally:
        assert live.set_parameters(request_timeout_s=4.0).successful
    assert late.success is False
    assert not mask_of(late).any()
    status, _ = live.diagnostics()
    assert status.level == DiagnosticStatus.ERROR
    assert 'not answered in time' in status.message
    assert live.heatmap().success
    live.diagnostics(lambda status, values: status.level == DiagnosticStatus.OK)


@pytest.mark.parametrize('family', READING, scope='session')
def test_runs_of_the_encoders(live):
    """Counted inside the engines: what is known is never computed again."""
    live.heatmap(scene(seed=50))
    start = live.counters()

    def runs_since(before):
        now = live.counters()
        return now, tuple(now[f'{stage}_encoder_runs'] - before[f'{stage}_encoder_runs']
                          for stage in ('image', 'text'))

    live.heatmap(scene(seed=51))
    state, runs = runs_since(start)
    assert runs == (1, 0), 'a new frame with 13 known prompts'

    live.heatmap(scene(seed=51), safety_threshold=0.4, blur_kernel_size=3, dynamic_threshold=0.3)
    state, runs = runs_since(state)
    assert runs == (0, 0), 'the same frame with other thresholds and blur'

    known = {**WIRE, 'positive_prompts': ';'.join(DEFAULT_POSITIVE[:2])}
    live.heatmap(scene(seed=51), **known)
    state, runs = runs_since(state)
    assert runs == (0, 0), 'the same frame with other, known prompts'

    live.heatmap(scene(seed=51), **{
        **WIRE, 'positive_prompts': ';'.join((*DEFAULT_POSITIVE[:2], 'moss'))})
    state, runs = runs_since(state)
    assert runs == (0, 1), 'one new prompt among 13'
    assert state['prompts_encoded'] - start['prompts_encoded'] == 1


def test_many_clients_at_once_are_all_answered(live):
    requests = [heatmap_request(scene(seed=seed)) for seed in range(6)]
    futures = [live.start_call(GetLandingHeatmap, NAME, request) for request in requests]
    masks = [mask_of(live.finish(future)) for future in futures]
    for request, mask in zip(requests, masks, strict=True):
        np.testing.assert_array_equal(mask, mask_of(live.send(request)))


def test_the_executable_expects_its_family(live, family):
    assert live.get_parameter('backend') == ('auto' if family == 'clipseg' else family)
