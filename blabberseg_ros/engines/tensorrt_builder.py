# SPDX-License-Identifier: Apache-2.0
"""From an ONNX graph to a TensorRT plan.

One way through for three libraries that share an API:

* TensorRT 11 and later, and TensorRT-RTX: networks are strongly typed, the precision is that of
  the exported graph.
* TensorRT 10: networks are weakly typed, the precision is a flag (`_request_precision`, untested).

TensorRT-RTX's builder runs without a GPU, so the tests use it; its plans cannot be run here.
Every option is read back after it was set: a builder that ignores one is an error, not a surprise.
"""

import contextlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blabberseg_ros.atomic import write_bytes
from blabberseg_ros.engines.build_progress import Progress, run_with_progress
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.engines.tensorrt_options import BuildOptions, Profile
from blabberseg_ros.errors import EngineError

TENSORRT, TENSORRT_RTX = 'tensorrt', 'tensorrt_rtx'
# Library to the modules that may hold it, the first found is used.
_MODULES = {TENSORRT: ('tensorrt',), TENSORRT_RTX: ('tensorrt_rtx', 'tensorrt_rtx_bindings')}
_MIB = 1 << 20
_SHOWN_MESSAGES = 5


@dataclass(frozen=True)
class Library:
    """A TensorRT library that was imported.

    Attributes:
        name: TENSORRT or TENSORRT_RTX.
        module: its Python module.
    """

    name: str
    module: Any

    @property
    def version(self) -> str:
        """Return the library's version, for example `10.16.1.11`."""
        return self.module.__version__

    @property
    def weakly_typed(self) -> bool:
        """Return whether precision is a flag of the builder (TensorRT 10) and not of the graph."""
        return hasattr(self.module.BuilderFlag, 'FP16')

    def __str__(self) -> str:
        """Return name and version."""
        return f'{self.name} {self.version}'


def load_library(name: str) -> Library:
    """Import a TensorRT library.

    Args:
        name: TENSORRT, which needs a CUDA driver, or TENSORRT_RTX.

    Raises:
        EngineError: there is no driver, or the library is not installed or broken.
    """
    if name not in _MODULES:
        raise EngineError(f'there is no builder {name!r}; use one of {", ".join(_MODULES)}')
    if name == TENSORRT and not (probe := probe_cuda()).ok:
        # TensorRT ends the process where there is no driver.
        raise EngineError(f'TensorRT needs a GPU: {probe.reason}')
    errors = []
    for module in _MODULES[name]:
        try:
            return Library(name, importlib.import_module(module))
        except (ImportError, OSError, RuntimeError) as error:
            errors.append(f'{module}: {error}')
    raise EngineError(
        f'{name} cannot be imported ({"; ".join(errors)}). {_remedy(name)}')


def _remedy(name: str) -> str:
    if name == TENSORRT:
        return ('pip install "blabberseg_ros[tensorrt]"; on a Jetson it comes with JetPack '
                '(apt install python3-libnvinfer), and a virtual environment needs '
                '--system-site-packages')
    return 'pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings'


def build_plan(library: Library, graph: Path, profiles: Sequence[Profile],
               options: BuildOptions, model: bytes | None = None) -> bytes:
    """Build a plan and show the progress.

    Args:
        library: that builds it.
        graph: ONNX file; its weights lie next to it.
        profiles: ranges of its inputs.
        options: how to build it.
        model: a changed copy of the graph to build instead, with the same weights.

    Returns:
        The serialised plan.

    Raises:
        EngineError: the graph cannot be parsed or built, or an option is not taken.
    """
    trt = library.module
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(library))
    parse_graph(library, network, logger, graph, model)
    config = builder.create_builder_config()
    if library.weakly_typed:
        _request_precision(trt, network, config, options.precision)
    apply_options(library, builder, config, options)
    add_profiles(builder, config, network, profiles)
    progress = Progress(f'building {graph.stem} with {library}')
    config.progress_monitor = make_monitor(trt, progress)
    plan = run_with_progress(lambda: builder.build_serialized_network(network, config), progress)
    if plan is None:
        raise EngineError(
            f'{library} cannot build {graph}: {logger.summary()}. Use another engine '
            '(`blabberseg doctor` lists them) and report this with the versions')
    if options.timing_cache is not None:
        write_bytes(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def make_logger(trt: Any) -> Any:
    """Return a logger that keeps the library's errors; it must outlive what it is given to."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

        def summary(self) -> str:
            # The first error is the cause, the last ones are where the library gave up.
            return '; '.join(dict.fromkeys(self.errors[:_SHOWN_MESSAGES])) or 'no reason was given'

    return Logger()


def make_monitor(trt: Any, progress: Progress) -> Any:
    """Return the library's progress monitor, which reports to `progress`."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def parse_graph(library: Library, network: Any, logger: Any, graph: Path,
                model: bytes | None = None) -> None:
    """Parse an ONNX file, or a changed copy of it in memory, into a network.

    Raises:
        EngineError: it cannot be parsed; the message names the nodes.
    """
    parser = library.module.OnnxParser(network, logger)
    # The path tells where the weights are.
    if (parser.parse_from_file(str(graph)) if model is None
            else parser.parse(model, str(graph))):
        return
    errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
    raise EngineError(
        f'{library} cannot parse {graph}: {"; ".join(errors[:_SHOWN_MESSAGES]) or "no reason"}. '
        'Use another engine (`blabberseg doctor` lists them) and report this with the versions')


def _describe(error: Any) -> str:
    node = ' '.join(part for part in (error.node_operator(), error.node_name()) if part)
    return f'node {error.node()} ({node}): {error.desc()}' if node else error.desc()


def network_flags(library: Library) -> int:
    """Return the flags of a network whose types are those of the graph, where that is a choice."""
    flag = getattr(library.module.NetworkDefinitionCreationFlag, 'STRONGLY_TYPED', None)
    return 0 if library.weakly_typed or flag is None else 1 << int(flag)


def _request_precision(trt: Any, network: Any, config: Any, precision: str) -> None:
    """Ask a weakly typed builder (TensorRT 10) for a precision. Untested.

    In half precision, vision transformers overflow in layer norms and softmaxes (TensorRT issues
    4723 and 2564), and in the sums that these are made of; these layers stay fp32.
    """
    if precision not in ('fp16', 'bf16'):
        return
    config.set_flag(getattr(trt.BuilderFlag, precision.upper()))
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    kinds = (trt.LayerType.NORMALIZATION, trt.LayerType.SOFTMAX, trt.LayerType.REDUCE)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in kinds and layer.get_input(0).dtype == trt.float32:
            layer.precision = trt.float32
            for output in range(layer.num_outputs):
                layer.set_output_type(output, trt.float32)


def apply_options(library: Library, builder: Any, config: Any, options: BuildOptions) -> None:
    """Set the options on a builder configuration and read each back.

    Raises:
        EngineError: the library does not know an option that was asked for, or ignores it.
    """
    trt = library.module
    _set(library, config, 'builder_optimization_level', options.optimisation_level)
    if options.workspace_mib is not None:
        pool, wanted = trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB
        config.set_memory_pool_limit(pool, wanted)
        _check(library, 'workspace', wanted, config.get_memory_pool_limit(pool))
    _set_flag(library, config, 'TF32', options.precision == 'tf32')
    _set_flag(library, config, 'SPARSE_WEIGHTS', options.sparse)
    _set_flag(library, config, 'VERSION_COMPATIBLE', options.version_compatible)
    # Without it the plan would carry a run-time library, that is host code, which we never allow.
    _set_flag(library, config, 'EXCLUDE_LEAN_RUNTIME', options.version_compatible)
    if options.hardware_compatibility != 'none':
        level = _member(library, 'HardwareCompatibilityLevel',
                        options.hardware_compatibility.upper())
        _set(library, config, 'hardware_compatibility_level', level)
    if options.dla_core is not None:
        _use_dla(library, builder, config, options.dla_core)
    if options.timing_cache is not None:
        _use_timing_cache(config, options.timing_cache)


def _use_dla(library: Library, builder: Any, config: Any, core: int) -> None:
    if core >= builder.num_DLA_cores:
        raise EngineError(
            f'DLA core {core} was asked for, and {library} finds {builder.num_DLA_cores} here; '
            'leave the DLA out')
    _set(library, config, 'default_device_type', library.module.DeviceType.DLA)
    _set(library, config, 'DLA_core', core)
    _set_flag(library, config, 'GPU_FALLBACK', True)


def _use_timing_cache(config: Any, path: Path) -> None:
    """Start from the builder's earlier measurements; it checks them against this machine."""
    known = b''
    with contextlib.suppress(FileNotFoundError):
        known = path.read_bytes()
    # One of another machine or version is refused, and the build measures again.
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        config.set_timing_cache(config.create_timing_cache(b''), False)


def _set(library: Library, config: Any, attribute: str, wanted: Any) -> None:
    if not hasattr(config, attribute):
        raise EngineError(f'{library} has no option {attribute}; leave it out')
    setattr(config, attribute, wanted)
    _check(library, attribute, wanted, getattr(config, attribute))


def _set_flag(library: Library, config: Any, name: str, wanted: bool) -> None:
    if not wanted and not hasattr(library.module.BuilderFlag, name):
        return
    flag = _member(library, 'BuilderFlag', name)
    (config.set_flag if wanted else config.clear_flag)(flag)
    _check(library, name, wanted, config.get_flag(flag))


def _member(library: Library, enumeration: str, name: str) -> Any:
    try:
        return getattr(getattr(library.module, enumeration), name)
    except AttributeError:
        raise EngineError(f'{library} has no {enumeration}.{name}; leave the option out') from None


def _check(library: Library, name: str, wanted: Any, found: Any) -> None:
    if found != wanted:
        raise EngineError(
            f'{library} does not take the option {name}={wanted} (it stays {found}); leave it out')


def add_profiles(builder: Any, config: Any, network: Any,
                 profiles: Sequence[Profile]) -> list[Any]:
    """Add the optimisation profiles to a builder configuration and return them.

    Raises:
        EngineError: an input of the network has no range, or the library refuses one.
    """
    names = {network.get_input(index).name for index in range(network.num_inputs)}
    added = []
    for wanted in profiles:
        if names != {entry.name for entry in wanted.inputs}:
            raise EngineError(f'the network takes {", ".join(sorted(names))}, and the profile '
                              f'has {", ".join(entry.name for entry in wanted.inputs)}')
        profile = builder.create_optimization_profile()
        for entry in wanted.inputs:
            profile.set_shape(entry.name, entry.minimum, entry.optimum, entry.maximum)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f'the shapes {wanted.to_dict()} are refused; check the ranges')
        added.append(profile)
    return added
