# SPDX-License-Identifier: Apache-2.0
"""The network itself in torch on the CPU, as an engine: what every other engine must equal."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Availability, Engine, EngineKind, TensorSpec, Value
from blabberseg_ros.errors import EngineError

NAME = 'torch-cpu'
Modify = Callable[[Any], None]


class TorchCpu(EngineKind):
    """Torch on the CPU, one operator after the other. Exact, and not meant to be fast."""

    name = NAME
    device = 'cpu'

    def __init__(self, precision: str = 'fp32', modify: Modify | None = None) -> None:
        """Choose the precision.

        Args:
            precision: of the networks that may run in half precision (their `half_methods`):
                `fp32`, or `fp16` and `bf16` by torch's autocast rules.
            modify: changes the network after it is loaded, to test what notices.
        """
        self.precision = precision
        self.modify = modify
        self._networks: dict[str, Any] = {}

    def probe(self) -> Availability:
        """Return whether torch and open_clip are installed."""
        for module in ('torch', 'open_clip'):
            if importlib.util.find_spec(module) is None:
                return Availability(False, f'{module} is not installed; '
                                           'pip install "blabberseg_ros[torch]"')
        import torch

        return Availability(True, f'torch {torch.__version__}, {self.precision}, on the CPU')

    def takes(self, bundle: Bundle) -> Availability:
        """Return that every bundle holds a network."""
        return Availability(True, '')

    def create(self, bundle: Bundle, stage: str) -> Engine:
        """Return an inactive engine for one stage of a bundle."""
        return TorchCpuEngine(bundle, stage, self)

    def network(self, bundle: Bundle) -> Any:
        """Return the network of a bundle; all stages share it."""
        from blabberseg_ros.models.families import load_network

        if bundle.fingerprint not in self._networks:
            model: Any = load_network(bundle)
            if self.modify is not None:
                self.modify(model)
            if self.precision != 'fp32':
                half = _autocast(self.precision)
                for method in model.half_methods:
                    setattr(model, method, half(getattr(model, method)))
            self._networks[bundle.fingerprint] = model
        return self._networks[bundle.fingerprint]

    def release(self, bundle: Bundle) -> None:
        """Forget the network of a bundle."""
        self._networks.pop(bundle.fingerprint, None)


class TorchCpuEngine(Engine):
    """One stage of the network.

    Attributes:
        module: of the stage; None while inactive.
    """

    def __init__(self, bundle: Bundle, stage: str, kind: TorchCpu) -> None:
        """Remember the stage."""
        super().__init__(bundle, stage)
        self.precision = kind.precision
        self._kind = kind
        self.module: Any = None

    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        from blabberseg_ros.models.families import stages_of

        stages = stages_of(self._kind.network(self.bundle))
        if self.stage not in stages:
            raise EngineError(f'torch has no stage {self.stage!r}; it has {", ".join(stages)}')
        stage = stages[self.stage]
        self.module = stage.module.eval()
        return list(stage.inputs), list(stage.outputs)

    def _unload(self) -> None:
        self.module = None
        self._kind.release(self.bundle)

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        import torch

        tensors = [torch.from_numpy(np.array(feeds[spec.name])) for spec in self.inputs]
        with torch.inference_mode():
            outputs = self.module(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {spec.name: output.to(getattr(torch, spec.dtype)).numpy()
                for spec, output in zip(self.outputs, outputs, strict=True)}


def _autocast(precision: str) -> Any:
    import torch

    return torch.autocast('cpu', {'fp16': torch.float16, 'bf16': torch.bfloat16}[precision])
