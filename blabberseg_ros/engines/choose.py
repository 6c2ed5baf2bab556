# SPDX-License-Identifier: Apache-2.0
"""Which engine runs the graphs on this machine."""

from dataclasses import dataclass

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Availability, EngineKind
from blabberseg_ros.errors import EngineError

AUTO = 'auto'
DEVICES = (AUTO, 'cpu', 'cuda')


@dataclass(frozen=True)
class Candidate:
    """An engine that was considered: its kind, whether it can be used, and why (not)."""

    kind: EngineKind
    ok: bool
    reason: str


def engine_kinds() -> list[EngineKind]:
    """Return every kind of engine, fastest first."""
    from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCpuInt8
    from blabberseg_ros.engines.onnxruntime_gpu import OnnxRuntimeCuda, OnnxRuntimeTensorRt
    from blabberseg_ros.engines.tensorrt import TensorRt
    from blabberseg_ros.engines.torch_cuda import TorchCuda

    return [TensorRt(), TorchCuda(), OnnxRuntimeTensorRt(), OnnxRuntimeCuda(),
            OnnxRuntimeCpuInt8(), OnnxRuntimeCpu()]


def candidates(engine: str = AUTO, device: str = AUTO,
               bundle: Bundle | None = None) -> list[Candidate]:
    """Return every engine with its verdict, fastest first.

    Args:
        engine: name of the only one wanted, or `auto`.
        device: `cpu`, `cuda` or `auto`.
        bundle: that it shall run, if that is known.
    """
    result = []
    for kind in engine_kinds():
        if engine not in (AUTO, kind.name):
            result.append(Candidate(kind, False, f'engine {engine} was asked for'))
        elif engine == AUTO and kind.on_request_only:
            result.append(Candidate(kind, False, 'it is used only if it is asked for by name'))
        elif device not in (AUTO, kind.device):
            result.append(Candidate(kind, False, f'device {device} was asked for'))
        else:
            availability = _probed(kind)
            if availability.ok and bundle is not None and not kind.takes(bundle).ok:
                availability = kind.takes(bundle)
            result.append(Candidate(kind, availability.ok, availability.reason))
    return result


def _probed(kind: EngineKind) -> Availability:
    """Ask a kind; a library that is there but cannot be loaded rules out this kind alone."""
    try:
        return kind.probe()
    except (ImportError, OSError, RuntimeError) as error:
        return Availability(False, f'a library that it needs is broken ({error}); install it '
                                   'again')


def usable_engines(engine: str = AUTO, device: str = AUTO,
                   bundle: Bundle | None = None) -> list[EngineKind]:
    """Return the engines that can be used here, fastest first; at least one.

    Args:
        engine: name of the only one wanted, or `auto`.
        device: `cpu`, `cuda` or `auto`.
        bundle: that they shall run, if that is known.

    Raises:
        EngineError: none can be used; the message has the reason for each.
    """
    considered = candidates(engine, device, bundle)
    usable = [candidate.kind for candidate in considered if candidate.ok]
    if usable:
        return usable
    reasons = '; '.join(f'{candidate.kind.name}: {candidate.reason}' for candidate in considered)
    raise EngineError(f'no engine can be used here ({reasons})')
