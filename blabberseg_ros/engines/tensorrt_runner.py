# SPDX-License-Identifier: Apache-2.0
"""Running a TensorRT plan with pycuda: buffers, stream and CUDA graphs. Untested on a GPU.

pycuda is imported here alone, on the thread that runs the plans, and works in the primary context,
which torch and the CUDA run-time library use as well. All stages share one stream: what one stage
leaves on the device is the next one's input without a wait.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blabberseg_ros.engines.base import TensorSpec, Value, is_constant
from blabberseg_ros.engines.cuda_graph import CudaGraph
from blabberseg_ros.engines.tensorrt_builder import Library, make_logger
from blabberseg_ros.engines.tensorrt_options import Profile
from blabberseg_ros.errors import EngineError

_LOG = logging.getLogger(__name__)
# Combinations of input shapes that keep their buffers and CUDA graph.
_BINDINGS = 4


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor on the GPU.

    Attributes:
        pointer: address on the device.
        shape: of the tensor, row-major.
        dtype: of its elements.
        memory: the allocation; it lives as long as this.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    memory: Any

    @property
    def nbytes(self) -> int:
        """Return the length in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class Device:
    """The first GPU, as the engines of one model use it: context, stream and memory pool."""

    def __init__(self) -> None:
        """Touch nothing before `open`."""
        self.cuda: Any = None
        self.stream: Any = None
        self._context: Any = None
        self._pool: Any = None
        self._users = 0
        self._staging: dict[tuple[int, tuple[int, ...], np.dtype], np.ndarray] = {}

    def open(self) -> None:
        """Retain the primary context on this thread; each call needs a `close`."""
        if self._users:
            self._users += 1
            return
        import pycuda.driver as cuda
        from pycuda.tools import DeviceMemoryPool

        cuda.init()
        with contextlib.ExitStack() as undo:
            context = cuda.Device(0).retain_primary_context()
            undo.callback(context.detach)
            context.push()
            undo.callback(context.pop)
            self.stream, self._pool = cuda.Stream(), DeviceMemoryPool()
            undo.pop_all()
        self.cuda, self._context, self._users = cuda, context, 1

    def close(self) -> None:
        """Release the context with the last user."""
        self._users -= 1
        if self._users:
            return
        context, self._context = self._context, None
        with contextlib.ExitStack() as rest:
            rest.callback(context.detach)
            rest.callback(context.pop)
            stream, pool = self.stream, self._pool
            self.stream = self._pool = None
            self._staging.clear()
            stream.synchronize()
            pool.stop_holding()
            del stream, pool  # while their context is current

    def allocate(self, shape: Sequence[int], dtype: np.dtype) -> DeviceTensor:
        """Return memory on the device, from the pool."""
        size = max(int(np.prod(shape)) * dtype.itemsize, 1)
        memory = self._pool.allocate(size)
        return DeviceTensor(int(memory), tuple(shape), dtype, memory)

    def pinned(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Return page-locked host memory, which the GPU copies without the CPU."""
        return self.cuda.pagelocked_empty(tuple(shape), dtype)

    def copy(self, target: DeviceTensor, source: DeviceTensor) -> None:
        """Copy on the device, in stream order."""
        self.cuda.memcpy_dtod_async(target.pointer, source.pointer, source.nbytes, self.stream)

    def to_host(self, values: Sequence[DeviceTensor]) -> list[np.ndarray]:
        """Wait once and return copies of the values on the host."""
        pinned = []
        for index, value in enumerate(values):
            key = (index, value.shape, value.dtype)
            if key not in self._staging:
                self._staging[key] = self.pinned(value.shape, value.dtype)
            self.cuda.memcpy_dtoh_async(self._staging[key], value.pointer, self.stream)
            pinned.append(self._staging[key])
        self.stream.synchronize()
        return [array.copy() for array in pinned]


def deserialise(library: Library, data: bytes, logger: Any) -> tuple[Any, Any]:
    """Return the run-time and the engine of a plan; the caller keeps both alive.

    Args:
        library: the one that built the plan.
        data: the plan, checked by the store.
        logger: of the library.

    Raises:
        EngineError: the library refuses the plan.
    """
    runtime = library.module.Runtime(logger)
    # A plan may carry host code; ours never do, so one that does is not ours.
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(
            f'{library} refuses the plan: {logger.summary()}. Remove it with '
            '`blabberseg engines prune --all`; it is built again when it is needed')
    return runtime, engine


class _Binding:
    """Buffers, context and CUDA graph for one combination of input shapes.

    A captured graph holds addresses and the state of its context, so none of them is shared.
    """

    def __init__(self, device: Device, engine: Any, trt: Any, profile: int,
                 shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._device = device
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = engine.create_execution_context(strategy)
        if self._context is None:
            raise EngineError('TensorRT cannot create an execution context; is GPU memory short?')
        self._context.set_optimization_profile_async(profile, device.stream.handle)
        for name, shape in shapes.items():
            self._context.set_input_shape(name, shape)
        # Memory for these shapes only; the library would take it for the largest ones.
        size = self._context.update_device_memory_size_for_shapes()
        self._scratch = device.allocate((size,), np.dtype(np.uint8))
        self._context.set_device_memory(self._scratch.pointer, size)
        self._tensors: dict[str, DeviceTensor] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            tensor = device.allocate(tuple(self._context.get_tensor_shape(name)), dtype)
            self._context.set_tensor_address(name, tensor.pointer)
            self._tensors[name] = tensor
        self._outputs = [name for name in self._tensors if name not in shapes]
        self._pinned = {name: device.pinned(shape, self._tensors[name].dtype)
                        for name, shape in shapes.items()}
        self._uploaded = device.cuda.Event()
        self._constants: dict[str, np.ndarray] = {}
        self._graph: CudaGraph | None = None
        self._runs = 0

    def run(self, feeds: Mapping[str, Value]) -> dict[str, DeviceTensor]:
        for name, value in feeds.items():
            if isinstance(value, DeviceTensor):
                self._constants.pop(name, None)
                self._device.copy(self._tensors[name], value)
        self._upload({name: value for name, value in feeds.items()
                      if not isinstance(value, DeviceTensor)})
        self._launch()
        results = {}
        for name in self._outputs:
            # A copy, because a back-end keeps values beyond the next run.
            source = self._tensors[name]
            results[name] = self._device.allocate(source.shape, source.dtype)
            self._device.copy(results[name], source)
        return results

    def close(self) -> None:
        """Free the graph; the device has to be done with it."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _upload(self, arrays: Mapping[str, np.ndarray]) -> None:
        # The pinned buffers may still be read by the last run's copies.
        self._uploaded.synchronize()
        for name, array in arrays.items():
            if array is self._constants.get(name):
                continue
            self._constants.pop(name, None)
            if is_constant(array):
                self._constants[name] = array
            np.copyto(self._pinned[name], array, casting='no')
            self._device.cuda.memcpy_htod_async(
                self._tensors[name].pointer, self._pinned[name], self._device.stream)
        self._uploaded.record(self._device.stream)

    def _launch(self) -> None:
        """Run plainly at first, which captures need; capture when the shapes come back."""
        if self._runs == 1:
            self._capture()
        self._runs += 1
        if self._graph is not None:
            self._graph.launch()
        else:
            self._enqueue()

    def _capture(self) -> None:
        try:
            self._graph = CudaGraph(self._device.stream.handle, self._enqueue)
        except (self._device.cuda.Error, EngineError) as error:
            _LOG.warning('no CUDA graph for this plan, it runs more slowly: %s', error)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.stream.handle):
            raise EngineError('TensorRT cannot run the plan')


class PlanRunner:
    """A plan on the device."""

    def __init__(self, library: Library, data: bytes, profiles: Sequence[Profile],
                 device: Device) -> None:
        """Load the plan.

        Args:
            library: the one that built it.
            data: the plan, checked by the store.
            profiles: that it was built for, in order.
            device: open on this thread.

        Raises:
            EngineError: the library refuses the plan.
        """
        self._library = library
        self._profiles = profiles
        self._device = device
        self._logger = make_logger(library.module)
        self._runtime, self._engine = deserialise(library, data, self._logger)
        self._bindings: OrderedDict[tuple, _Binding] = OrderedDict()

    @property
    def outputs(self) -> list[TensorSpec]:
        """Return what the plan gives."""
        trt, engine = self._library.module, self._engine
        specs = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_mode(name) != trt.TensorIOMode.OUTPUT:
                continue
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            shape = tuple(length if length >= 0 else f'{name}_{axis}'
                          for axis, length in enumerate(engine.get_tensor_shape(name)))
            specs.append(TensorSpec(name, dtype.name, shape))
        return specs

    def run(self, feeds: Mapping[str, Value]) -> dict[str, DeviceTensor]:
        """Run on checked inputs; the results stay on the device.

        Raises:
            EngineError: the plan was not built for these shapes.
        """
        shapes = {name: tuple(value.shape) for name, value in feeds.items()}
        profile = choose_profile(self._profiles, shapes)
        return self._binding(profile, shapes).run(feeds)

    def close(self) -> None:
        """Free the plan and its buffers."""
        self._device.stream.synchronize()
        while self._bindings:
            self._bindings.popitem()[1].close()
        self._engine = self._runtime = None

    def _binding(self, profile: int, shapes: dict[str, tuple[int, ...]]) -> _Binding:
        key = tuple(shapes.values())
        if key not in self._bindings:
            self._bindings[key] = _Binding(self._device, self._engine, self._library.module,
                                           profile, shapes)
        self._bindings.move_to_end(key)
        while len(self._bindings) > _BINDINGS:
            # Its buffers may be in use by what was enqueued last.
            self._device.stream.synchronize()
            self._bindings.popitem(last=False)[1].close()
        return self._bindings[key]


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the index of the first profile that takes these shapes.

    Raises:
        EngineError: none does; the message has the ranges.
    """
    for index, profile in enumerate(profiles):
        if all(entry.accepts(shapes[entry.name]) for entry in profile.inputs):
            return index
    ranges = '; '.join(
        f'{entry.name} {list(entry.minimum)} to {list(entry.maximum)}'
        for profile in profiles for entry in profile.inputs)
    raise EngineError(
        f'the plan was not built for inputs of the shapes {dict(shapes)}; it takes {ranges}. '
        'Build one with other ranges: `blabberseg build --help`')
