# SPDX-License-Identifier: Apache-2.0
"""Engines by name and precision, as benchmarks and comparisons ask for them."""

from dataclasses import dataclass

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import EngineKind
from blabberseg_ros.engines.choose import AUTO, engine_kinds, usable_engines
from blabberseg_ros.errors import EngineError, ParameterError
from blabberseg_ros.parity import reference

_TORCH_CUDA, _TENSORRT = 'torch-cuda', 'tensorrt'
_ONNXRUNTIME_CUDA = 'onnxruntime-cuda'


@dataclass(frozen=True)
class Variant:
    """A model on an engine.

    Attributes:
        bundle: folder or name; empty for the default.
        engine: name, or `auto` for the fastest.
        precision: empty for the engine's own.
    """

    bundle: str = ''
    engine: str = AUTO
    precision: str = ''

    def __str__(self) -> str:
        """Return what `parse` takes."""
        return f'{self.bundle}@{self.engine}' + (f':{self.precision}' if self.precision else '')

    @classmethod
    def parse(cls, text: str) -> 'Variant':
        """Read `[BUNDLE][@ENGINE[:PRECISION]]`."""
        bundle, _, rest = text.partition('@')
        engine, _, precision = rest.partition(':')
        return cls(bundle, engine or AUTO, precision)


def kind_of(engine: str, precision: str = '', bundle: Bundle | None = None) -> EngineKind:
    """Return a kind of engine that can be used here, in a precision.

    Args:
        engine: name; `torch-cpu`, the reference, is one as well.
        precision: empty for the engine's own.
        bundle: that it shall run, if that is known.

    Raises:
        EngineError: it cannot be used here or cannot run the bundle, or is unknown.
        ParameterError: it has no such precision.
    """
    if engine == AUTO:
        return usable_engines(bundle=bundle)[0]
    kind = _made(engine, precision)
    availability = kind.probe()
    if availability.ok and bundle is not None:
        # Or `onnxruntime-cpu-int8` would run fp32 under its name.
        availability = kind.takes(bundle)
    if not availability.ok:
        raise EngineError(f'{engine} cannot be used here: {availability.reason}')
    return kind


def _made(engine: str, precision: str) -> EngineKind:
    if engine == reference.NAME:
        return reference.TorchCpu(_checked(precision or 'fp32', ('fp32', 'fp16', 'bf16')))
    if engine == _TORCH_CUDA:
        from blabberseg_ros.engines.torch_cuda import PRECISIONS, TorchCuda

        return TorchCuda(_checked(precision or 'fp16', PRECISIONS))
    if engine == _TENSORRT and precision:
        from blabberseg_ros.engines.tensorrt import TensorRt
        from blabberseg_ros.engines.tensorrt_options import BuildOptions

        return TensorRt(BuildOptions(precision=precision))
    if engine == _ONNXRUNTIME_CUDA:
        from blabberseg_ros.engines.onnxruntime_gpu import OnnxRuntimeCuda

        return OnnxRuntimeCuda(_checked(precision or 'fp16', ('fp16', 'fp32')))
    kinds = {kind.name: kind for kind in engine_kinds()}
    if engine not in kinds:
        known = ', '.join(sorted({*kinds, reference.NAME, _TORCH_CUDA}))
        raise EngineError(f'there is no engine {engine!r}; there are {known}')
    _checked(precision or 'fp32', ('fp32',))
    return kinds[engine]


def _checked(precision: str, known: tuple[str, ...]) -> str:
    if precision not in known:
        raise ParameterError(f'the precision {precision!r} is not one of {", ".join(known)}')
    return precision
