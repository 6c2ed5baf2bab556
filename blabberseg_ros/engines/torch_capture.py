# SPDX-License-Identifier: Apache-2.0
"""A function of torch as a CUDA graph."""

from collections.abc import Callable
from typing import TypeVar

import torch

_WARM_UP_RUNS = 3

Result = TypeVar('Result')


def capture(function: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Record what a function does on the device, for inference.

    It runs a few times before: memory is taken, and what is to be compiled is.

    Args:
        function: reads and writes tensors that stay where they are, and does not wait for them.

    Returns:
        The graph, and what the function returned; its tensors hold the result of each replay.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(_WARM_UP_RUNS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        result = function()
    return graph, result
