# SPDX-License-Identifier: Apache-2.0
"""Times of calls on the host, and of graphs and kernels on a CUDA device."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blabberseg_ros.bench.kernel_groups import KernelTime
from blabberseg_ros.bench.timing import Limits, repeat
from blabberseg_ros.engines.torch_capture import capture

_WARM_UP, _PROFILED = 10, 20
# A captured graph, and its inputs and outputs by name.
Graph = tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]


def on_device(value: Any) -> Tensor:
    """Return a copy on the device that is no tensor of inference mode, as the engine's are."""
    source = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
    return torch.empty(source.shape, dtype=source.dtype, device='cuda').copy_(source)


def capture_stage(function: Callable[..., dict[str, Tensor]],
                  feeds: dict[str, Tensor]) -> Graph:
    """Capture a stage over buffers that stay."""
    graph, outputs = capture(lambda: function(**feeds))
    # The feeds are kept, for the graph reads them.
    return graph, {**feeds, **outputs}


def wall_ms(call: Callable[[int], object], repeats: int) -> list[float]:
    """Return wall-clock times of a call that waits for its result."""
    return repeat(call, Limits(repeats, math.inf, _WARM_UP))


def device_ms(call: Callable[[], object], repeats: int) -> list[float]:
    """Return times on the device, one call queued behind the other."""
    for _ in range(_WARM_UP):
        call()
    marks = []
    for _ in range(repeats):
        marks.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        marks[-1][0].record()
        call()
        marks[-1][1].record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in marks]


def kernel_times(replay: Callable[[], object]) -> list[KernelTime]:
    """Return what a replay runs on the device."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(_PROFILED):
            replay()
        torch.cuda.synchronize()
    calls: Counter[str] = Counter()
    time_us: dict[str, float] = {}
    for event in profile.events():
        if (event.device_type == torch.autograd.DeviceType.CUDA
                and not getattr(event, 'is_user_annotation', False)):
            calls[event.name] += 1
            time_us[event.name] = time_us.get(event.name, 0.0) + event.time_range.elapsed_us()
    return [KernelTime(name, count / _PROFILED, time_us[name] / _PROFILED)
            for name, count in calls.items()]
