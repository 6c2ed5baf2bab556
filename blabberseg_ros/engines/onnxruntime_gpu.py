# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CUDA and TensorRT execution providers.

Inputs and outputs are bound to buffers on the device, so that stages chain without host copies,
and runs are captured as CUDA graphs where the provider can. ONNX Runtime falls back to the CPU
without a word where a library is missing or a node is not supported: here that is an error.
"""

import ctypes
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blabberseg_ros.bundle import Bundle, user_cache_folder
from blabberseg_ros.engines.base import (
    Availability,
    Engine,
    EngineKind,
    TensorSpec,
    Value,
    is_constant,
)
from blabberseg_ros.engines.cuda_probe import DRIVER_LIBRARY, probe_cuda
from blabberseg_ros.engines.module_probe import problem_with
from blabberseg_ros.engines.onnxruntime import runtime_version, tensor_specs
from blabberseg_ros.errors import EngineError

_LOG = logging.getLogger(__name__)
CPU = 'CPUExecutionProvider'
# Arithmetic on shapes, which the CUDA provider leaves to the CPU on purpose: the operators that
# our graphs have on integers. Neither ONNX Runtime nor the graphs tell the types of a node.
_SHAPE_OPERATORS = frozenset({
    'Add', 'Concat', 'Div', 'Mul', 'Range', 'Reshape', 'Shape', 'Squeeze', 'Unsqueeze'})
# Tells which node runs where; ONNX Runtime has it from 1.24 on.
_ASSIGNMENT = 'get_provider_graph_assignment_info'
# Combinations of input shapes that keep their buffers.
_BINDINGS = 8
_NO_CAPTURE = '-1'


@dataclass(frozen=True)
class Provider:
    """An execution provider and how it is set up.

    Attributes:
        name: of the provider, as ONNX Runtime calls it.
        device: where its tensors lie, as ONNX Runtime calls it.
        options: of the provider.
        fallback: providers for the nodes that it does not support, besides the CPU's.
        graph_option: name of the option that turns CUDA graphs on; empty if there is none.
    """

    name: str
    device: str
    options: Mapping[str, str]
    fallback: tuple[str, ...] = ()
    graph_option: str = ''


ON_CPU = Provider(CPU, 'cpu', {})


@dataclass(frozen=True)
class DeviceValue:
    """A tensor on the device: ONNX Runtime's value, and its shape."""

    value: Any
    shape: tuple[int, ...]


class OnnxRuntimeGpuEngine(Engine):
    """A stage's graph on a GPU."""

    def __init__(self, bundle: Bundle, stage: str, provider: Provider, precision: str) -> None:
        """Remember the stage."""
        super().__init__(bundle, stage)
        graph = f'{stage}_{precision}'
        self._graph = graph if graph in bundle.manifest.graphs else stage
        self.precision = precision if self._graph == graph else 'fp32'
        self._provider = provider
        self._session: Any = None
        self._captures = False
        self._bindings: OrderedDict[tuple, _Binding] = OrderedDict()
        self._made = 0

    def _to_host(self, values: Sequence[Value]) -> tuple[np.ndarray, ...]:
        return tuple(each.value.numpy() for each in values)

    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        self._captures = bool(self._provider.graph_option)
        try:
            self._session = self._open(self._captures)
        except EngineError as error:
            if not self._captures:
                raise
            _LOG.info('%s runs without a CUDA graph: %s', self.stage, error)
            self._captures = False
            self._session = self._open(captures=False)
        refuse_fallback(self._session, self._provider, self.stage)
        return (tensor_specs(self._session.get_inputs()),
                tensor_specs(self._session.get_outputs()))

    def _open(self, captures: bool) -> Any:
        import onnxruntime

        path = self.bundle.graph(self._graph)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry('session.record_ep_graph_assignment_info', '1')
        chosen = dict(self._provider.options)
        if captures:
            chosen[self._provider.graph_option] = '1'
        try:
            return onnxruntime.InferenceSession(
                str(path), options,
                providers=[(self._provider.name, chosen), *self._provider.fallback])
        except Exception as error:  # its exception classes share no base but Exception
            raise EngineError(
                f'ONNX Runtime cannot load {path} with {self._provider.name}: {error}. Choose '
                'another engine (`blabberseg doctor` lists them)') from error

    def _unload(self) -> None:
        self._bindings.clear()
        self._session = None

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        key = tuple(tuple(value.shape) for value in feeds.values())
        if key not in self._bindings:
            while len(self._bindings) >= _BINDINGS:
                self._bindings.popitem(last=False)
            self._made += 1
            self._bindings[key] = _Binding(self._session, self._provider.device, self.inputs,
                                           feeds, self._made if self._captures else None)
        self._bindings.move_to_end(key)
        return self._bindings[key].run(feeds)


class _Binding:
    """Buffers on the device for one combination of input shapes.

    They stay where they are, because a captured graph holds their addresses.
    """

    def __init__(self, session: Any, device: str, inputs: tuple[TensorSpec, ...],
                 feeds: Mapping[str, Value], graph: int | None) -> None:
        import onnxruntime

        self._session, self._device = session, device
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        self._constants: dict[str, np.ndarray] = {}
        self._copy = copier(device)
        self._inputs = {spec.name: self._allocate(tuple(feeds[spec.name].shape), spec.dtype)
                        for spec in inputs}
        for name, buffer in self._inputs.items():
            self._binding.bind_ortvalue_input(name, buffer)
        self._outputs = self._measured(feeds, graph)
        if graph is not None:
            self._options = onnxruntime.RunOptions()
            self._options.add_run_config_entry('gpu_graph_id', str(graph))

    def run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        self._feed(feeds)
        self._session.run_with_iobinding(self._binding, self._options)
        results = {}
        for name, buffer in self._outputs.items():
            # A copy, because a back-end keeps values beyond the next run.
            shape = tuple(buffer.shape())
            kept = self._allocate(shape, _dtype_of(buffer))
            self._copy(kept, buffer)
            results[name] = DeviceValue(kept, shape)
        return results

    def _measured(self, feeds: Mapping[str, Value], graph: int | None) -> dict[str, Any]:
        """Run once to learn the shapes of the outputs, and bind buffers for them."""
        names = [node.name for node in self._session.get_outputs()]
        for name in names:
            self._binding.bind_output(name, self._device, 0)
        if graph is not None:
            self._options.add_run_config_entry('gpu_graph_id', _NO_CAPTURE)
        self._feed(feeds)
        self._session.run_with_iobinding(self._binding, self._options)
        found = dict(zip(names, self._binding.get_outputs(), strict=True))
        self._binding.clear_binding_outputs()
        for name, value in found.items():
            self._binding.bind_ortvalue_output(name, value)
        return found

    def _feed(self, feeds: Mapping[str, Value]) -> None:
        for name, value in feeds.items():
            if isinstance(value, DeviceValue):
                self._constants.pop(name, None)
                self._copy(self._inputs[name], value.value)
            elif value is not self._constants.get(name):
                self._inputs[name].update_inplace(np.ascontiguousarray(value))
                self._constants.pop(name, None)
                if is_constant(value):
                    self._constants[name] = value

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            shape, np.dtype(dtype).type, self._device, 0)


def _dtype_of(value: Any) -> str:
    return {'tensor(float)': 'float32', 'tensor(int32)': 'int32', 'tensor(int64)': 'int64',
            'tensor(uint8)': 'uint8'}[value.data_type()]


def copier(device: str) -> Callable[[Any, Any], None]:
    """Return a function that copies one value over another on their device, and waits.

    ONNX Runtime has none. Its streams wait for nobody, so the copy is over when this returns.
    """
    if device != 'cuda':
        return _copy_on_host
    driver = ctypes.CDLL(DRIVER_LIBRARY)

    def copy(target: Any, source: Any) -> None:
        status = driver.cuMemcpyDtoD_v2(
            ctypes.c_uint64(target.data_ptr()), ctypes.c_uint64(source.data_ptr()),
            ctypes.c_size_t(source.tensor_size_in_bytes()))
        status = status or driver.cuStreamSynchronize(None)
        if status:
            raise EngineError(f'the CUDA driver cannot copy a tensor: error {status} (see '
                              'CUresult in the CUDA driver API)')

    return copy


def _copy_on_host(target: Any, source: Any) -> None:
    ctypes.memmove(target.data_ptr(), source.data_ptr(), source.tensor_size_in_bytes())


def refuse_fallback(session: Any, provider: Provider, stage: str) -> None:
    """Refuse a session that would run on the CPU, wholly or for more than shapes.

    Raises:
        EngineError: it would.
    """
    if session.get_providers()[0] != provider.name:
        raise EngineError(
            f'ONNX Runtime cannot use {provider.name} and fell back to '
            f'{session.get_providers()[0]} for {stage}. A library of CUDA or cuDNN is missing or '
            'of another version than it was built for; `blabberseg doctor` tells more')
    if provider.name == CPU:
        return
    strays = sorted({
        node.op_type for part in getattr(session, _ASSIGNMENT)()
        if part.ep_name == CPU for node in part.get_nodes()} - _SHAPE_OPERATORS)
    if strays:
        raise EngineError(f'ONNX Runtime would run parts of {stage} on the CPU: '
                          f'{", ".join(strays)}. Choose another engine')


class OnnxRuntimeCuda(EngineKind):
    """ONNX Runtime's CUDA execution provider."""

    name = 'onnxruntime-cuda'
    device = 'cuda'
    per_shape = True
    provider = 'CUDAExecutionProvider'

    def __init__(self, precision: str = 'fp16') -> None:
        """Choose the precision of the graphs that every frame runs: `fp16` or `fp32`."""
        self.precision = precision

    def probe(self) -> Availability:
        """Return whether there are a GPU and an ONNX Runtime with this provider."""
        cuda = probe_cuda()
        if not cuda.ok:
            return Availability(False, cuda.reason)
        if problem := problem_with('onnxruntime'):
            return Availability(False, f'onnxruntime-gpu {problem}; '
                                       'pip install "blabberseg_ros[gpu]"')
        import onnxruntime

        if self.provider not in onnxruntime.get_available_providers():
            return Availability(
                False, f'the installed onnxruntime {runtime_version()} has no {self.provider}; '
                       'pip uninstall onnxruntime, then pip install "blabberseg_ros[gpu]"')
        if not hasattr(onnxruntime.InferenceSession, _ASSIGNMENT):
            return Availability(
                False, f'onnxruntime {runtime_version()} does not tell which nodes it runs on the '
                       'CPU after all; pip install "onnxruntime-gpu>=1.24"')
        # Of the CUDA that pip brought. Without it they are looked up in the system's folders.
        onnxruntime.preload_dlls()
        problem = _cannot_load(Path(onnxruntime.__file__).parent / 'capi', self.library)
        if problem:
            return Availability(False, f'{self.provider} cannot be loaded: {problem}')
        return Availability(True, f'onnxruntime {runtime_version()}, {self.precision}, on '
                                  f'{cuda.reason}')

    @property
    def library(self) -> str:
        """Return the file that holds the provider."""
        return 'libonnxruntime_providers_cuda.so'

    def create(self, bundle: Bundle, stage: str) -> Engine:
        """Return an inactive engine for one stage of a bundle."""
        return OnnxRuntimeGpuEngine(bundle, stage, self.settings(), self.precision)

    def settings(self) -> Provider:
        """Return how the provider is set up."""
        # TensorFloat-32 would round fp32 to 10 bits, behind the back of who asked for fp32.
        return Provider(self.provider, 'cuda', {'device_id': '0', 'use_tf32': '0'},
                        graph_option='enable_cuda_graph')


class OnnxRuntimeTensorRt(OnnxRuntimeCuda):
    """ONNX Runtime's TensorRT execution provider. Untested: no TensorRT could be installed."""

    name = 'onnxruntime-tensorrt'
    on_request_only = True
    provider = 'TensorrtExecutionProvider'

    @property
    def library(self) -> str:
        """Return the file that holds the provider."""
        return 'libonnxruntime_providers_tensorrt.so'

    def settings(self) -> Provider:
        """Return how the provider is set up; its engines are kept in our cache."""
        folder = user_cache_folder() / 'onnxruntime-tensorrt'
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Provider(self.provider, 'cuda', {
            'device_id': '0', 'trt_fp16_enable': '0', 'trt_engine_cache_enable': '1',
            'trt_engine_cache_path': str(folder), 'trt_timing_cache_enable': '1',
            'trt_timing_cache_path': str(folder)}, fallback=('CUDAExecutionProvider',))


def _cannot_load(folder: Path, name: str) -> str:
    """Return why a library of ONNX Runtime cannot be loaded; empty if it can.

    ONNX Runtime itself only logs that, and then runs on the CPU.
    """
    try:
        # Providers need what this one exports.
        ctypes.CDLL(str(folder / 'libonnxruntime_providers_shared.so'), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / name))
    except OSError as error:
        return str(error)
    return ''
