# SPDX-License-Identifier: Apache-2.0
"""Torch on a CUDA device: the network itself, compiled and replayed as CUDA graphs.

Two graphs make a frame: `image_encoder` from the camera's bytes to the image code, and `answer`
from the code and the prompts' FiLM pairs to the mask. They follow each other on one stream without
a word from the host, and a frame that is asked for again with other prompts replays the second
alone. Each graph begins by sending what changes on the host, and `answer` ends by sending the mask
back.
Numbers of prompts that are padded to one length (see `prompt_padding`) share a graph.
"""

import gc
import importlib.util
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from blabberseg_ros.bundle import Bundle
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
# Shapes of inputs whose padding is known.
_PADDINGS = 64
# Stages whose outputs are used at once, and which of them their graphs send to the host.
_TO_HOST = {'answer': ('mask', 'found')}
# Arrays up to this size are sent with every run, changed or not: a copy of its own for one that
# has changed keeps the host busy for longer.
_SMALL_BYTES = 65_536
# Of the parts of a block, in bytes.
_ALIGNMENT = 256
# Families whose stages were written for CUDA, and the module that has them; `torch_family` runs
# the others' as they are.
_STAGES = {'clipseg': 'torch_stages', 'fpseg': 'torch_fpseg',
           'segformer': 'torch_segformer'}
PRECISIONS = ('fp16', 'bf16', 'fp32')

# Inputs by name, each with its shape.
_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


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
        return frozenset(_TO_HOST if own or 'decoder' in graphs else ())

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
        self._graphs: OrderedDict[_Shapes, _CapturedGraph] = OrderedDict()
        self._outboxes: OrderedDict[tuple, list[Tensor]] = OrderedDict()
        self._padded: dict[_Shapes, tuple[int, _Shapes]] = {}
        self._replayed: _CapturedGraph | None = None

    def _to_host(self, values: Sequence[Value]) -> tuple[np.ndarray, ...]:
        """Copy values through pinned memory, unless they lie there, and wait once."""
        waiting = [value for value in values if not isinstance(value, np.ndarray)]
        arrived = iter(self._fetch(waiting) if waiting else ())
        if self._replayed is not None:
            self._replayed.wait()
        return tuple([(value if isinstance(value, np.ndarray) else next(arrived).numpy()).copy()
                      for value in values])

    def concatenate(self, parts: Sequence[Value]) -> Value:
        """Join arrays along their first axis on the device."""
        import torch

        return torch.cat([torch.tensor(part, device='cuda') if isinstance(part, np.ndarray)
                          else part for part in parts])

    def _fetch(self, values: Sequence[Value]) -> 'list[Tensor]':
        """Return values in pinned memory, which is kept for the next ones of these shapes."""
        import torch

        key = tuple([(value.shape, value.dtype) for value in values])
        found = self._outboxes.get(key)
        if found is None:
            while len(self._outboxes) >= _OUTBOXES:
                self._outboxes.popitem(last=False)
            found = [torch.empty_like(value, device='cpu').pin_memory() for value in values]
            self._outboxes[key] = found
        for buffer, value in zip(found, values, strict=True):
            buffer.copy_(value, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return found

    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        stages = self._kind.acquire(self.bundle)
        self._holds_network = True
        self._function, inputs, outputs = stages.stage(self.stage)
        self._counting = frozenset(spec.name for spec in inputs if counts_prompts(spec))
        return inputs, outputs

    def _unload(self) -> None:
        self._function = None
        self._replayed = None
        self._graphs.clear()
        self._outboxes.clear()
        self._padded.clear()
        if self._holds_network:
            self._holds_network = False
            self._kind.release(self.bundle)

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        import torch

        count, key = self._padding_of(feeds)
        try:
            graph = self._graphs.get(key)
            if graph is None:
                graph = self._capture(feeds, dict(key))
                self._graphs[key] = graph
                while len(self._graphs) > _GRAPHS:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            outputs = graph.replay(feeds)
            self._replayed = graph
            if self.stage in _TO_HOST:
                return outputs
            return {name: (output[:count] if counts_prompts(self._outputs[name]) else output
                           ).clone() for name, output in outputs.items()}
        except torch.cuda.OutOfMemoryError as error:
            self._replayed = None
            self._graphs.clear()
            torch.cuda.empty_cache()
            raise EngineError(
                f'the GPU is out of memory in {self.stage}; use fewer prompts or smaller images, '
                'or free the GPU') from error

    def _padding_of(self, feeds: Mapping[str, Value]) -> tuple[int, _Shapes]:
        """Return the number of prompts in some inputs, and the inputs' shapes with padding."""
        given = tuple([(name, value.shape) for name, value in feeds.items()])
        found = self._padded.get(given)
        if found is None:
            count = prompt_count(self._counting, feeds)
            found = count, tuple(padded_shapes(self._counting, feeds, count).items())
            if len(self._padded) >= _PADDINGS:
                self._padded.clear()
            self._padded[given] = found
        return found

    def _capture(self, feeds: Mapping[str, Value],
                 shapes: Mapping[str, tuple[int, ...]]) -> '_CapturedGraph':
        started = time.perf_counter()
        if self._function is None:
            raise EngineError(f'{self.stage} is not active; call activate() first')
        graph = _CapturedGraph(self._function, self._inputs, feeds, shapes,
                               _TO_HOST.get(self.stage, ()))
        # Compiling leaves so many objects that Python's full collections, which come at any time,
        # take 0.2 s. What is there now stays anyway; frozen, it is not walked again.
        gc.collect()
        gc.freeze()
        _LOG.info('Compiled and captured %s for %s in %.1f s', self.stage,
                  ', '.join(f'{name} {shape}' for name, shape in shapes.items()),
                  time.perf_counter() - started)
        return graph


class _CapturedGraph:
    """A function over static device buffers, replayed without the host.

    What comes from the host and may change with every run (frames, prompts) lies in one pinned
    block, which the graph itself sends. What is on the device already, and large arrays that stay
    the same (resizing matrices), are copied into their buffers when they are others than before.
    """

    _device = 'cuda'

    def __init__(self, function: Callable[..., dict[str, 'Tensor']],
                 specs: Mapping[str, TensorSpec], feeds: Mapping[str, Value],
                 shapes: Mapping[str, tuple[int, ...]],
                 to_host: Collection[str]) -> None:
        """Allocate the buffers, warm up and capture.

        Args:
            function: takes one tensor an input, by name, and returns named tensors.
            specs: of the inputs.
            feeds: first inputs.
            shapes: of the buffers; a buffer may be longer than an input along its first axis.
            to_host: names of the outputs that the graph copies to pinned memory.
        """
        import torch

        from blabberseg_ros.engines.cuda_kernels import copy_bytes
        from blabberseg_ros.engines.torch_capture import capture

        types = {name: getattr(torch, specs[name].dtype) for name in shapes}
        sizes = {name: math.prod(shape) * types[name].itemsize for name, shape in shapes.items()}
        sent = {name: sizes[name] for name, value in feeds.items() if isinstance(value, np.ndarray)
                and (sizes[name] <= _SMALL_BYTES or not is_constant(value))}
        length = sum(map(_aligned, sent.values()))
        block = torch.empty(length, dtype=torch.uint8, device=self._device)
        pinned = torch.empty(length, dtype=torch.uint8).pin_memory()
        self._buffers: dict[str, Tensor] = {}
        self._staging: dict[str, np.ndarray] = {}
        start = 0
        for name, shape in shapes.items():
            if name in sent:
                part = slice(start, start + sizes[name])
                self._buffers[name] = block[part].view(types[name]).view(shape)
                self._staging[name] = pinned[part].view(types[name]).view(shape).numpy()
                start += _aligned(sizes[name])
            else:
                self._buffers[name] = torch.empty(shape, dtype=types[name], device=self._device)

        on_host: dict[str, Tensor] = {}

        def run() -> 'dict[str, Tensor]':
            copy_bytes(pinned, block)
            outputs = function(**self._buffers)
            for name in to_host:
                if name not in on_host:
                    on_host[name] = torch.empty_like(outputs[name], device='cpu').pin_memory()
                copy_bytes(outputs[name], on_host[name])
            return outputs

        self._last: dict[str, Value] = {}
        self._done = torch.cuda.Event()
        self._feed(feeds)
        self._graph, outputs = capture(run)
        self._outputs: dict[str, Value] = {
            **outputs, **{name: value.numpy() for name, value in on_host.items()}}

    def replay(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Take the inputs, run, and return the outputs, which the next run overwrites."""
        self._feed(feeds)
        self._graph.replay()
        self._done.record()
        return self._outputs

    def wait(self) -> None:
        """Wait until the last run is done, and with it what it sends to the host."""
        self._done.synchronize()

    def _feed(self, feeds: Mapping[str, Value]) -> None:
        """Bring the inputs to where the graph takes them from, unless they lie there already."""
        last, waited = self._last, False
        for name, value in feeds.items():
            if last.get(name) is value:
                continue
            last[name] = None
            if name in self._staging:
                if not waited:
                    self.wait()  # the last run may still read the pinned block
                    waited = True
                self._stage(name, value)
            else:
                self._copy(name, value)
            # Another array, or what a view looks at, may hold something else the next time.
            if not isinstance(value, np.ndarray) or is_constant(value):
                last[name] = value

    def _stage(self, name: str, value: Value) -> None:
        """Copy an input into the pinned block, and the filling behind it.

        One thread does it. torch would take several, and as soon as one of them has to wait for
        its core the frame waits for milliseconds. Sending a frame in parts, each while the next is
        copied, was slower on an H200.
        """
        staging = self._staging[name]
        np.copyto(staging[:len(value)],
                  value if isinstance(value, np.ndarray) else value.cpu().numpy())
        if len(value) < len(staging):
            staging[len(value):] = filling(name)

    def _copy(self, name: str, value: Value) -> None:
        """Copy an input into its own buffer, and the filling behind it."""
        import torch

        buffer = self._buffers[name]
        # Torch takes no array that is protected.
        buffer[:len(value)].copy_(torch.from_numpy(value.copy())
                                  if isinstance(value, np.ndarray) else value)
        if len(value) < len(buffer):
            buffer[len(value):].fill_(filling(name))


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
