# SPDX-License-Identifier: Apache-2.0
"""An update of a small network as one CUDA graph.

It launches some thousand kernels, each of a few microseconds: launched from Python one by one, the
GPU waits for the host most of the time.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

_WARM_UP_CALLS = 3

Result = TypeVar('Result')


class Replay(Generic[Result]):
    """A function that is called again and again, captured on a GPU after a few calls.

    It takes no arguments: what changes from call to call lies in tensors that stay where they are.
    What is run must not depend on their values.
    """

    def __init__(self, function: Callable[[], Result], device: torch.device) -> None:
        """Take a function; on another device than a GPU it is called as it is."""
        self._function = function
        self._is_captured = device.type == 'cuda'
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0
        self._result: Result | None = None
        if self._is_captured:
            self._stream = torch.cuda.Stream(device)

    def __call__(self) -> Result:
        """Run the function; on a GPU the next call overwrites the tensors of the result."""
        if not self._is_captured:
            return self._function()
        self._calls += 1
        if self._calls <= _WARM_UP_CALLS:
            return self._warm_up()
        if self._graph is None:
            self._result = None
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._result = self._function()
        self._graph.replay()
        return self._result  # type: ignore[return-value]

    def forget(self) -> None:
        """Capture anew, because the function will do something else."""
        self._graph, self._calls = None, 0

    def _warm_up(self) -> Result:
        """Run the function on a side stream, as capturing wants it done before."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = self._function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result
