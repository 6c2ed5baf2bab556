# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of a stream, through the driver's own library: pycuda has streams, but no graphs."""

import ctypes
from collections.abc import Callable
from typing import Any

from blabberseg_ros.engines.cuda_probe import DRIVER_LIBRARY
from blabberseg_ros.errors import EngineError

# CUstreamCaptureMode: only calls of this thread that cannot be captured spoil the capture.
_THREAD_LOCAL = 1


class CudaGraph:
    """What a function enqueues on a stream, recorded once and launched as a whole."""

    def __init__(self, stream: int, enqueue: Callable[[], None],
                 load: Callable[[str], Any] = ctypes.CDLL) -> None:
        """Record; nothing runs yet.

        Args:
            stream: handle of the stream (CUstream); its context is current on this thread.
            enqueue: enqueues the work on that stream alone, without waiting for it.
            load: opens a shared library by name.

        Raises:
            EngineError: the driver cannot record or instantiate it. Errors of `enqueue` pass.
        """
        self._driver = load(DRIVER_LIBRARY)
        self._stream = ctypes.c_void_p(stream)
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        self._call('cuStreamBeginCapture_v2', self._stream, _THREAD_LOCAL)
        try:
            enqueue()
        finally:
            # Also after an error: a stream that still records can do nothing else.
            status = self._driver.cuStreamEndCapture(self._stream, ctypes.byref(graph))
        _check('cuStreamEndCapture', status)
        try:
            self._call('cuGraphInstantiateWithFlags', ctypes.byref(self._executable), graph,
                       ctypes.c_ulonglong(0))
        finally:
            self._driver.cuGraphDestroy(graph)

    def launch(self) -> None:
        """Enqueue the recorded work on the stream.

        Raises:
            EngineError: the driver refuses it.
        """
        self._call('cuGraphLaunch', self._executable, self._stream)

    def close(self) -> None:
        """Free the graph; the work that was launched has to be done."""
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        _check(name, getattr(self._driver, name)(*arguments))


def _check(name: str, status: int) -> None:
    if status:
        raise EngineError(f'the CUDA driver refuses a graph: {name} gives error {status} (see '
                          'CUresult in the CUDA driver API)')
