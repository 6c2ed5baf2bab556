# SPDX-License-Identifier: Apache-2.0
"""LSeg on a GPU: the network's answers, at any size, replayed as CUDA graphs."""

import numpy as np
import pytest

from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.parity.gate import check_parity
from blabberseg_ros.parity.reference import TorchCpu

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not probe_cuda().ok, reason='gpu: none here')]


@pytest.fixture(scope='module')
def bundle(make_random_bundle):
    return load_bundle(make_random_bundle('lseg'))


@pytest.fixture(scope='module')
def reference(bundle):
    """Return the network in torch on the CPU, active."""
    backend = LSegBackend(bundle, TorchCpu())
    backend.activate()
    yield backend
    backend.deactivate()


def on_gpu(bundle, precision, compiled=False):
    from blabberseg_ros.engines.torch_cuda import TorchCuda

    backend = LSegBackend(bundle, TorchCuda(precision, compiled=compiled))
    backend.activate()
    return backend


@pytest.mark.parametrize(('precision', 'compiled'), [
    ('fp32', False), ('fp16', False), ('bf16', False), ('fp16', True)])
def test_the_gate_lets_the_engine_pass(bundle, reference, precision, compiled):
    backend = on_gpu(bundle, precision, compiled)
    report = check_parity(reference, backend)
    backend.deactivate()
    assert report.passed, report.summary()


def test_features_of_several_sizes_in_turn(bundle, reference):
    backend = on_gpu(bundle, 'fp16')
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    for height, width in ((96, 160), (128, 128), (96, 160), (256, 96)):
        got = backend.features(backend.encode_image_at(image, height, width))
        wanted = reference.features(reference.encode_image_at(image, height, width))
        assert got.shape == wanted.shape
        assert (got * wanted).sum(0).min() > 0.99
    backend.deactivate()
