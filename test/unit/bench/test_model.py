# SPDX-License-Identifier: Apache-2.0
"""Models for benchmarks are bundles that can be read, with graphs or without."""

import pytest
import torch

from blabberseg_ros.backends.registry import FAMILIES
from blabberseg_ros.bench.model import write_model
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.models.families import load_network, random_network
from blabberseg_ros.models.folding import fold_batch_norms


@pytest.mark.parametrize('family', FAMILIES)
def test_weights_alone_are_read_back(family, tmp_path):
    model = random_network(family)
    names = set(model.state_dict())
    assert not write_model(model, tmp_path, graphs=False)
    assert set(model.state_dict()) == names, "the caller's network is left as it was"
    bundle = load_bundle(tmp_path)
    back = load_network(bundle).state_dict()
    fold_batch_norms(model)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(back[name], weight.float(), rtol=0, atol=0)
    assert (bundle.manifest.family, bundle.manifest.graphs) == (family, {})
