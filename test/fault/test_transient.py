# SPDX-License-Identifier: Apache-2.0
"""A device that fails once: the caller notices nothing."""

import os

import numpy as np
import pytest
from harness import ROOT, mask_of, scene

# Loaded by the node's Python at its start. While the file is there the next decoding fails.
HOOK = """
import os
import numpy as np
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpuEngine

run = OnnxRuntimeCpuEngine._run

def fail_once(self, feeds):
    answer = run(self, feeds)
    if self.stage != 'decoder' or not os.path.exists({path!r}):
        return answer
    os.remove({path!r})
    if {kind!r} == 'no memory':
        raise MemoryError('the device has no memory left')
    return {{name: np.full_like(value, np.nan) for name, value in answer.items()}}

OnnxRuntimeCpuEngine._run = fail_once
"""


@pytest.mark.parametrize('kind', ['no memory', 'NaN'])
def test_one_failure_is_made_good(start_node, tmp_path, kind):
    path = tmp_path / 'fail'
    (tmp_path / 'sitecustomize.py').write_text(HOOK.format(path=str(path), kind=kind))
    peer = start_node(environment={'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'})
    peer.wait_active()
    image = scene(seed=8)
    mask = mask_of(peer.heatmap(image))
    assert 0 < np.count_nonzero(mask) < mask.size
    path.touch()
    response = peer.heatmap(image)
    assert not path.exists(), 'it failed'
    assert response.success
    np.testing.assert_array_equal(mask_of(response), mask)
    counters = peer.counters()
    assert (counters['retries'], counters['requests_refused']) == (1, 0)
