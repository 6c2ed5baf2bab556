# SPDX-License-Identifier: Apache-2.0
"""Torch on a CUDA device: the network itself, compiled and replayed as CUDA graphs.

Two graphs make a frame: `image_encoder` from the camera's bytes to the image code, and `answer`
from the code and the prompts' FiLM pairs to the mask. They follow each other on one stream without
a word from the host, and a frame that is asked for again with other prompts replays the second
alone. Every input lies in a static buffer, so a new prompt set is a copy of a few kilobytes.
Numbers of prompts that are padded to one length (see `prompt_padding`) share a graph.
"""

import gc
import importlib.util
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.byte_cache import ByteCache
from blabberseg_ros.engines.base import (
    Availability,
    Engine,
    EngineKind,
    TensorSpec,
    Value,
    is_constant,
)
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.engines.module_probe import problem_with
from blabberseg_ros.engines.prompt_padding import (
    counts_prompts,
    fewest_padded_alike,
    filling,
    padded_shapes,
    prompt_count,
)
from blabberseg_ros.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)
# Captured graphs kept for each stage; each holds buffers of its own.
_GRAPHS = 8
_OUTBOXES = 16
# Stages whose outputs go to the host at once.
_TRANSIENT = frozenset({'answer'})
# Unchanging inputs that a captured graph keeps on the device, in bytes.
_CONSTANT_BYTES = 32_000_000
# Families whose stages were written for CUDA, and the module that has them; `torch_family` runs
# the others' as they are.
_STAGES = {'clipseg': 'torch_stages', 'fpseg': 'torch_fpseg',
           'segformer': 'torch_segformer'}
PRECISIONS = ('fp16', 'bf16', 'fp32')


class TorchCuda(EngineKind):
    """Torch on the first CUDA device."""

    name = 'torch-cuda'
    device = 'cuda'
    per_shape = True

    def __init__(self, precision: str = 'fp16', compiled: bool = True) -> None:
        """Choose the precision of the matrix products; sums and norms stay in fp32.

        Args:
            precision: `fp16`, `bf16` or `fp32`.
            compiled: run the networks through torch.compile, which takes a while at the start.
        """
        self.precision = precision
        self.compiled = compiled
        self._networks: dict[str, Any] = {}
        self._users: Counter[str] = Counter()

    def probe(self) -> Availability:
        """Return whether there is a CUDA driver and a torch that can use it."""
        driver = probe_cuda()
        if not driver.ok:
            return Availability(False, driver.reason)
        for module in ('torch', 'open_clip', 'triton'):
            if importlib.util.find_spec(module) is None:
                return Availability(False, f'{module} is not installed; '
                                           'pip install "blabberseg_ros[torch]"')
        if problem := problem_with('torch'):
            return Availability(False, f'torch {problem}; pip install "blabberseg_ros[torch]"')
        import torch

        if not torch.cuda.is_available():
            return Availability(False, f'torch {torch.__version__} does not see the GPU; install '
                                       'a build of torch for the CUDA version of the driver')
        return Availability(True, f'torch {torch.__version__}, {self.precision}, on '
                                  f'{torch.cuda.get_device_name()}')

    def takes(self, bundle: Bundle) -> Availability:
        """Return that every bundle holds a network."""
        return Availability(True, '')

    def fewest_alike(self, prompts: int) -> int:
        """Return the fewest prompts that share a graph with these."""
        return fewest_padded_alike(prompts)

    def extra_stages(self, bundle: Bundle) -> frozenset[str]:
        """Return the stage that does all that follows the image encoder."""
        own = bundle.manifest.family in _STAGES
        graphs = bundle.manifest.graphs or ('decoder',)  # benchmarks' bundles hold weights alone
        return _TRANSIENT if own or 'decoder' in graphs else frozenset()

    def create(self, bundle: Bundle, stage: str) -> Engine:
        """Return an inactive engine for one stage of a bundle."""
        return TorchCudaEngine(bundle, stage, self)

    def acquire(self, bundle: Bundle) -> Any:
        """Return the network of a bundle on the device; all stages share it.

        Each call needs a `release`.
        """
        if bundle.fingerprint not in self._networks:
            name = _STAGES.get(bundle.manifest.family, 'torch_family')
            module = import_module(f'blabberseg_ros.engines.{name}')
            self._networks[bundle.fingerprint] = module.CudaStages(
                bundle, self.precision, self.compiled)
        self._users[bundle.fingerprint] += 1
        return self._networks[bundle.fingerprint]

    def release(self, bundle: Bundle) -> None:
        """Free the network of a bundle with its last user."""
        import torch

        self._users[bundle.fingerprint] -= 1
        if self._users[bundle.fingerprint]:
            return
        del self._networks[bundle.fingerprint]
        # The network refers to itself, what was compiled refers to it, and what is frozen (see
        # `_capture`) is never collected.
        torch.compiler.reset()
        gc.unfreeze()
        gc.collect()
        torch.cuda.empty_cache()


class TorchCudaEngine(Engine):
    """One stage of the network, captured as one CUDA graph for each set of padded shapes."""

    def __init__(self, bundle: Bundle, stage: str, kind: TorchCuda) -> None:
        """Remember the stage."""
        super().__init__(bundle, stage)
        self.precision = kind.precision
        self._kind = kind
        self._holds_network = False
        self._counting: frozenset[str] = frozenset()
        self._function: Callable[..., dict[str, Tensor]] | None = None
        self._graphs: OrderedDict[tuple, _CapturedGraph] = OrderedDict()
        self._outboxes: OrderedDict[tuple, list[Tensor]] = OrderedDict()

    def _to_host(self, values: Sequence[Value]) -> tuple[np.ndarray, ...]:
        """Copy values through pinned memory and wait for the device once."""
        import torch

        outbox = self._outbox(values)
        for buffer, value in zip(outbox, values, strict=True):
            buffer.copy_(value, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return tuple([buffer.numpy().copy() for buffer in outbox])

    def concatenate(self, parts: Sequence[Value]) -> Value:
        """Join arrays along their first axis on the device."""
        import torch

        return torch.cat([torch.tensor(part, device='cuda') if isinstance(part, np.ndarray)
                          else part for part in parts])

    def _outbox(self, values: Sequence[Value]) -> 'list[Tensor]':
        """Return a pinned buffer for each value, kept for the next values of these shapes."""
        import torch

        key = tuple([(value.shape, value.dtype) for value in values])
        found = self._outboxes.get(key)
        if found is None:
            while len(self._outboxes) >= _OUTBOXES:
                self._outboxes.popitem(last=False)
            found = [torch.empty_like(value, device='cpu').pin_memory() for value in values]
            self._outboxes[key] = found
        return found

    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        stages = self._kind.acquire(self.bundle)
        self._holds_network = True
        self._function, inputs, outputs = stages.stage(self.stage)
        self._counting = frozenset(spec.name for spec in inputs if counts_prompts(spec))
        return inputs, outputs

    def _unload(self) -> None:
        self._function = None
        self._graphs.clear()
        self._outboxes.clear()
        if self._holds_network:
            self._holds_network = False
            self._kind.release(self.bundle)

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        import torch

        count = prompt_count(self._counting, feeds)
        shapes = padded_shapes(self._counting, feeds, count)
        key = tuple(shapes.values())
        try:
            graph = self._graphs.get(key)
            if graph is None:
                graph = self._capture(feeds, shapes)
                self._graphs[key] = graph
                while len(self._graphs) > _GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            outputs = graph.replay(feeds)
            if self.stage in _TRANSIENT:
                return outputs
            return {name: (output[:count] if counts_prompts(self._outputs[name]) else output
                           ).clone() for name, output in outputs.items()}
        except torch.cuda.OutOfMemoryError as error:
            self._graphs.clear()
            torch.cuda.empty_cache()
            raise EngineError(
                f'the GPU is out of memory in {self.stage}; use fewer prompts or smaller images, '
                'or free the GPU') from error

    def _capture(self, feeds: Mapping[str, Value],
                 shapes: Mapping[str, tuple[int, ...]]) -> '_CapturedGraph':
        started = time.perf_counter()
        if self._function is None:
            raise EngineError(f'{self.stage} is not active; call activate() first')
        graph = _CapturedGraph(self._function, self._inputs, feeds, shapes)
        # Compiling leaves so many objects that Python's full collections, which come at any time,
        # take 0.2 s. What is there now stays anyway; frozen, it is not walked again.
        gc.collect()
        gc.freeze()
        _LOG.info('Compiled and captured %s for %s in %.1f s', self.stage,
                  ', '.join(f'{name} {shape}' for name, shape in shapes.items()),
                  time.perf_counter() - started)
        return graph


class _CapturedGraph:
    """A function over static device buffers, replayed without the host."""

    def __init__(self, function: Callable[..., dict[str, 'Tensor']],
                 specs: Mapping[str, TensorSpec], feeds: Mapping[str, Value],
                 shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Allocate the buffers, warm up and capture.

        Args:
            function: takes one tensor an input, by name, and returns named tensors.
            specs: of the inputs.
            feeds: first inputs.
            shapes: of the buffers; a buffer may be longer than an input along its first axis.
        """
        import torch

        from blabberseg_ros.engines.torch_capture import capture

        self._buffers = {
            name: torch.empty(shape, device='cuda', dtype=getattr(torch, specs[name].dtype))
            for name, shape in shapes.items()}
        self._staging = {name: torch.empty_like(buffer, device='cpu').pin_memory()
                         for name, buffer in self._buffers.items()}
        self._last: dict[str, Value] = {}
        self._constants: ByteCache[tuple[np.ndarray, Tensor]] = ByteCache(_CONSTANT_BYTES)
        self._copied = torch.cuda.Event()
        self._feed(feeds)
        self._graph, self._outputs = capture(lambda: function(**self._buffers))

    def replay(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Copy the inputs in, run, and return the outputs, which the next run overwrites."""
        self._feed(feeds)
        self._graph.replay()
        return self._outputs

    def _feed(self, feeds: Mapping[str, Value]) -> None:
        """Bring the inputs into the static buffers; what lies there already is not copied."""
        for name, value in feeds.items():
            if value is self._last.get(name):
                continue
            self._last[name] = None
            target = self._target(name, value.shape[0])
            if not isinstance(value, np.ndarray):
                target.copy_(value)
            elif is_constant(value):
                target.copy_(self._constant(name, value))
            else:
                self._upload(name, value, target)
                continue  # it, or what it is a view of, may hold something else the next time
            self._last[name] = value

    def _target(self, name: str, length: int) -> 'Tensor':
        """Return the leading part of a buffer for an input; the rest is filled."""
        buffer = self._buffers[name]
        if length == buffer.shape[0]:
            return buffer
        # Each time: a longer input may have been there.
        buffer[length:].fill_(filling(name))
        return buffer[:length]

    def _constant(self, name: str, value: np.ndarray) -> 'Tensor':
        """Return an array that cannot change, on the device: matrices, thresholds, prompts.

        A robot goes back and forth between a few prompt sets; each is sent once.
        """
        import torch

        # The array is kept as well, so that no other gets its identity.
        return self._constants.obtain(
            (name, id(value)), lambda: (value, torch.from_numpy(value.copy()).to('cuda')),
            lambda kept: kept[0].nbytes)[1]

    def _upload(self, name: str, value: np.ndarray, target: 'Tensor') -> None:
        """Send an array through pinned memory.

        It is copied there by one thread. torch would take several, and as soon as one of them has
        to wait for its core the frame waits for milliseconds. Sending a frame in parts, each while
        the next is copied, was 0.07 ms slower on an H200.
        """
        import torch

        self._copied.synchronize()  # the pinned buffer may still be read by the last upload
        staging = self._staging[name]
        if target.shape != staging.shape:
            staging = staging[:target.shape[0]]
        np.copyto(staging.numpy(), value)
        target.copy_(staging, non_blocking=True)
        self._copied.record(torch.cuda.current_stream())
