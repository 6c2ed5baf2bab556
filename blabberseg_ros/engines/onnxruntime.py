# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime as an engine."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Availability, Engine, EngineKind, TensorSpec, Value
from blabberseg_ros.engines.module_probe import problem_with
from blabberseg_ros.errors import EngineError

_DTYPES = {'tensor(float)': 'float32', 'tensor(float16)': 'float16', 'tensor(uint8)': 'uint8',
           'tensor(int32)': 'int32', 'tensor(int64)': 'int64', 'tensor(bool)': 'bool'}


class OnnxRuntimeCpuEngine(Engine):
    """A stage's graph on the CPU, in the precision of the graph."""

    def __init__(self, bundle: Bundle, stage: str, precision: str = 'fp32') -> None:
        """Remember the stage.

        Args:
            bundle: the model.
            stage: of the model.
            precision: of the graph to run; fp32 if the stage has none of it.
        """
        super().__init__(bundle, stage)
        graph = f'{stage}_{precision}'
        self._graph = graph if graph in bundle.manifest.graphs else stage
        self.precision = precision if self._graph == graph else 'fp32'
        self._session: Any = None

    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        import onnxruntime

        graph = self.bundle.graph(self._graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # A back-end chains several sessions. Threads that spin after one has finished would take
        # the cores from the next, and from the camera driver beside us.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        # The pattern of a shape is one more block beside the arena that has served its first run:
        # without it the demonstration model takes 128 MB less, in the same time.
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=['CPUExecutionProvider'])
        except Exception as error:  # its exception classes share no base but Exception
            raise EngineError(
                f'ONNX Runtime cannot load {graph}: {error}. Import the bundle again, or '
                'choose another engine (`blabberseg doctor` lists them)') from error
        return (tensor_specs(self._session.get_inputs()),
                tensor_specs(self._session.get_outputs()))

    def _unload(self) -> None:
        self._session = None

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        feeds = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        names = list(self._outputs)
        return dict(zip(names, self._session.run(names, feeds), strict=True))


class OnnxRuntimeCpu(EngineKind):
    """ONNX Runtime's CPU execution provider."""

    name = 'onnxruntime-cpu'
    device = 'cpu'
    # On two cores thirteen prompts in two runs take no longer than in one, and 47 MB less.
    decode_group = 8

    def probe(self) -> Availability:
        """Return whether ONNX Runtime is installed and loads."""
        if problem := problem_with('onnxruntime'):
            return Availability(False, f'onnxruntime {problem}; '
                                       'pip install "blabberseg_ros[cpu]"')
        return Availability(True, f'onnxruntime {runtime_version()} on the CPU')

    def create(self, bundle: Bundle, stage: str) -> Engine:
        """Return an inactive engine for one stage of a bundle."""
        return OnnxRuntimeCpuEngine(bundle, stage)


class OnnxRuntimeCpuInt8(OnnxRuntimeCpu):
    """The same with the image encoder on 8-bit integers; not every model survives that."""

    name = 'onnxruntime-cpu-int8'
    precision = 'int8'
    on_request_only = True

    def takes(self, bundle: Bundle) -> Availability:
        """Return whether the bundle has a graph on integers."""
        if any(name.endswith('_int8') for name in bundle.manifest.graphs):
            return Availability(True, '')
        return Availability(False, f'the bundle {bundle.manifest.name} has no int8 graph; write '
                                   'one with `blabberseg export --int8`')

    def create(self, bundle: Bundle, stage: str) -> Engine:
        """Return an inactive engine for one stage of a bundle."""
        return OnnxRuntimeCpuEngine(bundle, stage, self.precision)


def runtime_version() -> str:
    """Return the version of ONNX Runtime, whichever distribution it comes from."""
    for distribution in ('onnxruntime', 'onnxruntime-gpu'):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return '(version unknown)'


def tensor_specs(nodes: list) -> list[TensorSpec]:
    """Return what a session says of its inputs or outputs."""
    return [TensorSpec(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape))
            for node in nodes]
