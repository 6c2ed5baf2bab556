# SPDX-License-Identifier: Apache-2.0
"""What torch-cuda keeps when it is deactivated: nothing. Its graphs are stood in for."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from blabberseg_ros.engines import torch_cuda
from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.engines.torch_cuda import TorchCuda

INPUT, OUTPUT = (TensorSpec(name, 'float32', (2,)) for name in 'xy')


class Network:
    """Refers to itself, as every network does whose methods are compiled."""

    made: list[weakref.ref] = []  # noqa: RUF012

    def __init__(self, bundle, precision, compiled):
        self._own = self.run
        self.made.append(weakref.ref(self))

    def run(self, x):
        return {'y': torch.from_numpy(x)}

    def stage(self, name):
        return self._own, [INPUT], [OUTPUT]


class Graph:
    """A captured graph, which holds the network."""

    def __init__(self, function, specs, feeds, shapes, to_host):
        self._function = function

    def replay(self, feeds):
        return self._function(**feeds)


@pytest.fixture
def stages(monkeypatch):
    Network.made.clear()
    monkeypatch.setattr(torch_cuda, 'import_module', lambda name: SimpleNamespace(
        CudaStages=Network))
    monkeypatch.setattr(torch_cuda, '_CapturedGraph', Graph)
    bundle = SimpleNamespace(fingerprint='f', manifest=SimpleNamespace(family='clipseg'))
    kind = TorchCuda()
    yield [kind.create(bundle, name) for name in ('image_encoder', 'answer')]
    gc.unfreeze()


def test_each_reopening_frees_the_network_before(stages):
    for opening in range(1, 4):
        for engine in stages:
            engine.activate()
            engine.infer({'x': np.ones(2, np.float32)})
        assert gc.get_freeze_count() > 0, 'a capture freezes what there is'
        assert [network() is not None for network in Network.made] == [False] * (opening - 1) + [
            True], 'one network for all stages, and none of the old ones'
        stages[0].deactivate()
        assert Network.made[-1]() is not None, 'the other stage still runs it'
        stages[1].deactivate()
        stages[1].deactivate()
        assert Network.made[-1]() is None
        assert len(Network.made) == opening
