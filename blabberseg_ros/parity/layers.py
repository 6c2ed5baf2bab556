# SPDX-License-Identifier: Apache-2.0
"""Where two engines part: every node of a stage, run by both on the same input.

ONNX Runtime gives every value of the graph as an output. Torch runs the same exported program
node by node; the exporter keeps its names, which is how the two are put side by side. TensorRT
builds a plan in which the values are outputs, which keeps it from fusing. So what torch and
TensorRT compile or fuse is not seen here, only their operators in the precision asked for.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.backends.values import Query
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Engine, EngineKind, TensorSpec, Value
from blabberseg_ros.engines.onnxruntime_gpu import ON_CPU, OnnxRuntimeCuda, refuse_fallback
from blabberseg_ros.engines.tensorrt import TensorRt
from blabberseg_ros.engines.tensorrt_trace import trace_plan
from blabberseg_ros.engines.traced_graph import every_value, imported
from blabberseg_ros.errors import EngineError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.parity import reference
from blabberseg_ros.prompts import PromptSet

# Relative to the length of the reference's value; rounding alone stays below.
TOLERANCE = {'fp32': 1e-4, 'fp16': 5e-3, 'bf16': 4e-2, 'int8': 0.1}
_ONNX_RUNTIME = ('onnxruntime-cpu', 'onnxruntime-cpu-int8', 'onnxruntime-cuda')
_TORCH_CUDA = 'torch-cuda'
# All others stay in fp32: their results are cached, or make the mask.
_HALF_STAGES = ('image_encoder', 'decoder')
Trace = dict[str, np.ndarray]


@dataclass(frozen=True)
class NodeDifference:
    """One value of a graph in two engines.

    Attributes:
        stage: of the model.
        name: of the value.
        shape: of the value.
        error: length of the difference, divided by the length of the reference; NaN if one holds
            NaN.
    """

    stage: str
    name: str
    shape: tuple[int, ...]
    error: float


@dataclass(frozen=True)
class Question:
    """What both engines are asked.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        prompts: what is safe and what is not.
        fusion: blur and threshold.
    """

    image: np.ndarray
    prompts: PromptSet
    fusion: FusionOptions


def compare_nodes(first: tuple[Bundle, EngineKind], second: tuple[Bundle, EngineKind],
                  question: Question) -> Iterator[NodeDifference]:
    """Compare all values that two engines have in common, stage by stage, in order.

    Each stage gets what torch in fp32 made of the first model's stages before it, so that a
    difference is that of its own.

    Args:
        first: model and engine of the reference.
        second: model and engine to test.
        question: what is asked.

    Raises:
        EngineError: an engine cannot show its nodes, or the networks are of different size.
    """
    if first[0].manifest.architecture != second[0].manifest.architecture:
        raise EngineError('--layers compares the nodes of one network, and these models have '
                          'networks of different size; leave it out')
    for stage, feeds in _feeds_of(first[0], question).items():
        wanted, got = (trace(bundle, kind, stage, feeds) for bundle, kind in (first, second))
        for name, value in wanted.items():
            if name in got and got[name].shape == value.shape:
                yield NodeDifference(stage, name, value.shape, _error(value, got[name]))


def _feeds_of(bundle: Bundle, question: Question) -> dict[str, dict[str, np.ndarray]]:
    """Answer a question with torch; return what each stage was fed, in the order of first use."""
    kind = _Recorder()
    backend = backend_class(bundle.manifest.family)(bundle, kind)
    height, width, _ = question.image.shape
    backend.activate()
    try:
        codes = backend.encode_prompts(backend.texts(question.prompts))
        backend.answer(backend.encode_image(question.image), codes, Query(
            question.prompts.is_positive, question.fusion, (height, width)))
    finally:
        backend.deactivate()
    return kind.feeds


class _Recorder(reference.TorchCpu):
    """Torch on the CPU that remembers the first inputs of each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.feeds: dict[str, dict[str, np.ndarray]] = {}

    def create(self, bundle: Bundle, stage: str) -> Engine:
        return _RecordingEngine(bundle, stage, self)


class _RecordingEngine(reference.TorchCpuEngine):
    """A stage of the recorder."""

    def __init__(self, bundle: Bundle, stage: str, kind: _Recorder) -> None:
        super().__init__(bundle, stage, kind)
        self._feeds = kind.feeds

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        self._feeds.setdefault(self.stage, {name: np.array(value)
                                            for name, value in feeds.items()})
        return super()._run(feeds)


def trace(bundle: Bundle, kind: EngineKind, stage: str,
          feeds: Mapping[str, np.ndarray]) -> Trace:
    """Run a stage and return all its floating values, in the order of computation.

    Raises:
        EngineError: the engine cannot show its nodes.
    """
    if kind.name in _ONNX_RUNTIME:
        return _trace_onnx(bundle, kind, stage, feeds)
    if kind.name in (reference.NAME, _TORCH_CUDA):
        return _trace_torch(bundle, kind, stage, feeds)
    if isinstance(kind, TensorRt):
        return trace_plan(bundle, kind, stage, feeds)
    known = (*_ONNX_RUNTIME, reference.NAME, _TORCH_CUDA, TensorRt.name)
    raise EngineError(f'{kind.name} cannot show its nodes; --layers works with '
                      f'{", ".join(known)}')


def _trace_onnx(bundle: Bundle, kind: EngineKind, stage: str,
                feeds: Mapping[str, np.ndarray]) -> Trace:
    """Run a copy of the graph that the engine runs, in which every value is an output."""
    onnxruntime = imported('onnxruntime')
    reduced = f'{stage}_{getattr(kind, "precision", "fp32")}'
    path = bundle.graph(reduced if reduced in bundle.manifest.graphs else stage)
    provider = kind.settings() if isinstance(kind, OnnxRuntimeCuda) else ON_CPU
    traced = every_value(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry('session.record_ep_graph_assignment_info', '1')
    options.add_session_config_entry(
        'session.model_external_initializers_file_folder_path', str(path.parent))
    session = onnxruntime.InferenceSession(
        traced.model, options, providers=[(provider.name, dict(provider.options))])
    refuse_fallback(session, provider, stage)
    values = session.run(traced.names, {name: np.ascontiguousarray(value)
                                        for name, value in feeds.items()})
    return {name: value for name, value in zip(traced.names, values, strict=True)
            if _is_float(value)}


def _trace_torch(bundle: Bundle, kind: EngineKind, stage: str,
                 feeds: Mapping[str, np.ndarray]) -> Trace:
    """Export the stage as for ONNX and interpret the program node by node."""
    import torch

    from blabberseg_ros.models.graphs import steady_names

    device = 'cuda' if kind.name == _TORCH_CUDA else 'cpu'
    modify = kind.modify if isinstance(kind, reference.TorchCpu) else None
    engine = reference.TorchCpuEngine(bundle, stage, reference.TorchCpu(modify=modify))
    engine.activate()
    module = engine.module.to(device)
    tensors = tuple(torch.from_numpy(np.array(feeds[spec.name])).to(device)
                    for spec in engine.inputs)
    values: Trace = {}
    precision = _precision_of(kind, stage)

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            # The only plain products are those that resize, which no engine does in half.
            resizes = n.target is torch.ops.aten.matmul.default
            with _autocast(torch, device, 'fp32' if resizes else precision):
                value = super().run_node(n)
            if (n.op == 'call_function' and isinstance(value, torch.Tensor)
                    and value.is_floating_point()):
                values[names.get(n.name, n.name)] = value.float().cpu().numpy()
            return value

    with torch.no_grad():
        program = torch.export.export(
            module, tensors, dynamic_shapes=tuple(_dynamic(spec) for spec in engine.inputs))
        names = steady_names(program.graph)
        outputs = Recorder(program.module()).run(*tensors)
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    for spec, output in zip(engine.outputs, outputs, strict=True):
        values[spec.name] = output.float().cpu().numpy()
    engine.deactivate()
    return values


def _precision_of(kind: EngineKind, stage: str) -> str:
    return getattr(kind, 'precision', 'fp32') if stage in _HALF_STAGES else 'fp32'


def _autocast(torch: Any, device: str, precision: str) -> contextlib.AbstractContextManager:
    if precision == 'fp32':
        return contextlib.nullcontext()
    dtype = {'fp16': torch.float16, 'bf16': torch.bfloat16}[precision]
    return torch.autocast(device, dtype, cache_enabled=False)


def _dynamic(spec: TensorSpec) -> dict[int, Any]:
    import torch

    return {axis: torch.export.Dim.DYNAMIC for axis, length in enumerate(spec.shape)
            if isinstance(length, str)}


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def _error(wanted: np.ndarray, got: np.ndarray) -> float:
    # Infinities, as in a causal mask, are equal or they are not; they have no difference.
    differ = wanted != got
    apart = np.linalg.norm(wanted[differ].astype(np.float64) - got[differ].astype(np.float64))
    length = np.linalg.norm(wanted[np.isfinite(wanted)].astype(np.float64))
    return float(apart / length) if length else float(apart)
