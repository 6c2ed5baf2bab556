# SPDX-License-Identifier: Apache-2.0
"""Segformer's own stages on a real GPU: the answers of torch on the CPU."""

import numpy as np
import pytest
import torch

from blabberseg_ros.backends.segformer import SegformerBackend
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.torch_cuda import TorchCuda
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.parity.gate import check_parity
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.parity.report import Outcome

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason='gpu: there is none here')]


@pytest.fixture(scope='module')
def bundle(make_random_bundle):
    return load_bundle(make_random_bundle('segformer'))


@pytest.fixture(scope='module')
def reference(bundle):
    backend = SegformerBackend(bundle, TorchCpu())
    backend.activate()
    yield backend
    backend.deactivate()


@pytest.fixture(scope='module', params=['fp16', 'fp32', 'fp16, not compiled'])
def tested(request, bundle):
    precision, _, eager = request.param.partition(',')
    backend = SegformerBackend(bundle, TorchCuda(precision, compiled=not eager))
    backend.activate()
    yield backend
    backend.deactivate()


def test_the_gate_passes(reference, tested):
    report = check_parity(reference, tested)
    assert report.outcome is Outcome.PASS, report.reasons


def test_labels_are_those_of_the_cpu(reference, tested):
    image = moving_frames(1, (160, 120))[0]
    expected, found = (backend.label_map(backend.encode_image(image), (120, 160)).labels
                       for backend in (reference, tested))
    assert np.mean(expected == found) > 0.97
