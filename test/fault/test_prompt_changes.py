# SPDX-License-Identifier: Apache-2.0
"""Prompts that change while requests are running."""

import threading
import time

import numpy as np
import pytest
from blabberseg_interfaces.srv import SetPrompts
from harness import NAME, heatmap_request, mask_of, scene
from live_nodes import READING
from ros2_open_voc_landing_heatmap_srv.srv import GetLandingHeatmap

from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.prompts import DEFAULT_NEGATIVE, DEFAULT_POSITIVE, DEFAULT_TEMPLATE, PromptSet

OPTIONS = FusionOptions(float(np.float32(0.8)), 15, float(np.float32(0.1)))


@pytest.fixture(autouse=True)
def _default_prompts(survivor):
    """Put the default prompts back before `survivor` looks at the node."""
    yield
    assert survivor.set_prompts(list(DEFAULT_POSITIVE), list(DEFAULT_NEGATIVE),
                                DEFAULT_TEMPLATE).success


def test_prompts_that_change_under_requests(survivor, segmenter):
    """Each answer belongs to one whole set, whatever the rate of changes; the last one stays."""
    sets = [(['grass', 'lawn'], ['water', 'roof']), (['asphalt'], ['tree', 'grass', 'car'])]
    image = scene(seed=5)
    expected = [segmenter.segment(image, PromptSet(tuple(a), tuple(b), '{}'), OPTIONS).mask
                for a, b in sets]
    assert not np.array_equal(*expected)
    assert survivor.set_prompts(*sets[0], '{}').success
    stop = threading.Event()
    changes = []

    def change():
        while not stop.wait(0.01):  # 100 changes a second
            changes.append(survivor.set_prompts(*sets[len(changes) % 2], '{}'))

    changer = threading.Thread(target=change)
    changer.start()
    try:
        deadline_s = time.monotonic() + 3.0
        seen = set()
        while time.monotonic() < deadline_s:
            response = survivor.heatmap(image)
            assert response.success
            mask = mask_of(response)
            matches = [np.array_equal(mask, each) for each in expected]
            assert any(matches)
            seen.add(matches.index(True))
    finally:
        stop.set()
        changer.join()
    assert seen == {0, 1}
    assert all(change.success for change in changes)
    last = sets[(len(changes) - 1) % 2]
    prompts = survivor.get_prompts()
    assert (list(prompts.positive), list(prompts.negative)) == last


@pytest.mark.parametrize('family', READING, scope='session')
def test_the_old_prompts_serve_while_new_ones_are_encoded(survivor):
    """Each new prompt takes a while; requests go on with the old set."""
    image = scene(seed=6)
    old = mask_of(survivor.heatmap(image))
    future = survivor.start_call(SetPrompts, f'{NAME}/set_prompts', SetPrompts.Request(
        positive=[f'new ground {index}' for index in range(8)],
        negative=[f'new danger {index}' for index in range(8)], prompt_template='a {} here'))
    answers = 0
    while not future.done():
        mask = mask_of(survivor.heatmap(image))
        if not future.done():
            np.testing.assert_array_equal(mask, old)
            answers += 1
    change = survivor.finish(future)
    assert change.success, change.message
    assert answers >= 2


def test_a_flood_of_changes_is_answered(survivor):
    futures = [survivor.start_call(SetPrompts, f'{NAME}/set_prompts', SetPrompts.Request(
        positive=[f'flood {index}'], negative=['water'])) for index in range(60)]
    requests = [survivor.start_call(GetLandingHeatmap, NAME, heatmap_request())
                for _ in range(3)]
    responses = [survivor.finish(future) for future in futures]
    assert all(survivor.finish(request).success for request in requests)
    assert responses[-1].success or any(response.success for response in responses)
    assert all(response.success or 'later change' in response.message for response in responses)
