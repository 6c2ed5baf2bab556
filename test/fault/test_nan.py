# SPDX-License-Identifier: Apache-2.0
"""Networks that answer NaN, for one prompt or for all."""

import json
import shutil
import struct

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from harness import mask_of, scene

from blabberseg_ros.backends.registry import FAMILIES, backend_class
from blabberseg_ros.backends.values import PromptCode
from blabberseg_ros.bundle import WEIGHTS, load_bundle, write_manifest
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.prompt_store import PromptStore

POISON = {'positive_prompts': 'poisoned grass', 'negative_prompts': 'water',
          'prompt_engineering': '{}'}


# Families whose prompt codes are kept on disk.
CACHING = [family for family in FAMILIES if backend_class(family).keeps_codes]
# The layer that makes the logits: how the names of its weights begin.
LAST_LAYER = {'clipseg': 'trans_conv.4.weight', 'segformer': 'head.classifier.weight',
              'lseg': 'head.', 'fpseg': 'mask_decoder.output_hypernetworks'}


@pytest.fixture(scope='module')
def poisoned_cache(random_bundle, tmp_path_factory):
    """Return a prompt cache in which one prompt's code is NaN."""
    folder = tmp_path_factory.mktemp('poison')
    bundle = load_bundle(random_bundle)
    backend = backend_class(bundle.manifest.family)(bundle, OnnxRuntimeCpu())
    code, = backend.encode_prompts(['grass'])
    backend.deactivate()
    nan = PromptCode(tuple((name, np.full_like(array, np.nan)) for name, array in code.arrays))
    PromptStore(folder, bundle.fingerprint).save('poisoned grass', nan)
    return folder


def assert_black(response):
    assert response.success is False
    assert mask_of(response).shape == (120, 160)
    assert not mask_of(response).any()


@pytest.mark.parametrize('family', CACHING, scope='session')
def test_nan_for_some_requests_leaves_the_others_alone(start_node, poisoned_cache):
    peer = start_node(cache_dir=poisoned_cache)
    peer.wait_active()
    pid = peer.process.pid
    mask = mask_of(peer.heatmap())
    for _ in range(4):  # after the third the model is opened again
        assert_black(peer.heatmap(**POISON))
    status, _ = peer.diagnostics(lambda status, values: status.level == DiagnosticStatus.ERROR)
    assert 'NaN' in status.message
    assert 'opening it again' in peer.process.output
    response = peer.heatmap()
    assert response.success
    np.testing.assert_array_equal(mask_of(response), mask)
    assert peer.process.pid == pid
    assert peer.process.alive
    peer.diagnostics(lambda status, values: status.level == DiagnosticStatus.OK)


def with_nan_weights(source, folder):
    """Copy a bundle and set the weights of its last layer to NaN."""
    shutil.copytree(source, folder)
    weights = folder / WEIGHTS
    data = bytearray(weights.read_bytes())
    (length,) = struct.unpack_from('<Q', data)
    header = json.loads(data[8:8 + length])
    family = load_bundle(source).manifest.family
    last = [key for key in header if key.startswith(LAST_LAYER[family])]
    assert last, f'{family} has no weights called {LAST_LAYER[family]}'
    for key in last:
        begin, end = (8 + length + offset for offset in header[key]['data_offsets'])
        data[begin:end] = b'\xff' * (end - begin)  # NaN in half precision as in single
    weights.write_bytes(data)
    write_manifest(folder, load_bundle(source).manifest)
    return folder


def test_nan_for_every_request_is_answered_black(start_node, random_bundle, tmp_path):
    peer = start_node(bundle=with_nan_weights(random_bundle, tmp_path / 'nan'))
    peer.wait_active()
    pid = peer.process.pid
    for seed in range(5):
        assert_black(peer.heatmap(scene(seed=seed)))
    status, _ = peer.diagnostics(lambda status, values: status.level == DiagnosticStatus.ERROR)
    assert 'NaN' in status.message
    assert peer.process.pid == pid
    assert peer.process.alive
