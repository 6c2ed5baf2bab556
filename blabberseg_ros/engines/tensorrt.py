# SPDX-License-Identifier: Apache-2.0
"""TensorRT as an engine: plans from our graphs, kept in the store, built when they are missing.

The builder is tested with TensorRT-RTX, which needs no GPU. Nothing here has run on TensorRT yet.
"""

import contextlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blabberseg_ros.atomic import sha256_of
from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Availability, Engine, EngineKind, TensorSpec, Value
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.engines.graph_inputs import graph_inputs
from blabberseg_ros.engines.plan_record import NO_GPU, PlanKey, PlanRecord
from blabberseg_ros.engines.store import Obtained, PlanStore
from blabberseg_ros.engines.tensorrt_builder import TENSORRT, Library, build_plan, load_library
from blabberseg_ros.engines.tensorrt_options import (
    AUTO_PRECISION,
    BuildOptions,
    Profile,
    profiles_for,
)
from blabberseg_ros.errors import EngineError

_LOG = logging.getLogger(__name__)


def stage_precision(bundle: Bundle, stage: str, precision: str) -> str:
    """Return the precision that a stage is built in.

    A bundle has graphs named `STAGE_fp16` for the stages that gain from it; the others, such as
    the text tower, whose results are cached, stay fp32.

    Raises:
        EngineError: the bundle has no graph of this precision at all.
    """
    if precision in ('fp32', 'tf32'):
        return precision
    if precision == AUTO_PRECISION:
        return 'fp16' if f'{stage}_fp16' in bundle.manifest.graphs else 'fp32'
    if not any(name.endswith(f'_{precision}') for name in bundle.manifest.graphs):
        raise EngineError(
            f'the bundle {bundle.folder} has no {precision} graphs; import it again with this '
            'version, or build fp32')
    return precision if f'{stage}_{precision}' in bundle.manifest.graphs else 'fp32'


def stage_graph(bundle: Bundle, stage: str, precision: str, library: Library) -> Path:
    """Return the ONNX file to build a stage from.

    Args:
        bundle: the model.
        stage: of the model.
        precision: from `stage_precision`.
        library: that builds it; a weakly typed one takes the fp32 graph and a flag.
    """
    if precision in ('fp32', 'tf32') or library.weakly_typed:
        return bundle.graph(stage)
    return bundle.graph(f'{stage}_{precision}')


def obtain_plan(bundle: Bundle, stage: str, library: Library, options: BuildOptions,
                store: PlanStore) -> Obtained:
    """Return a stage's plan from the store, built now if there is none that fits.

    Raises:
        EngineError: it cannot be built or stored.
    """
    precision = stage_precision(bundle, stage, options.precision)
    graph = stage_graph(bundle, stage, precision, library)
    options = options.of_stage(precision)
    profiles = profiles_for(graph_inputs(graph), options)
    key = plan_key(bundle, stage, graph, precision, profiles, library, options)
    return store.obtain(key, lambda: build_plan(library, graph, profiles, options))


def remember_options(bundle: Bundle, options: BuildOptions, store: PlanStore) -> None:
    """Make the engine use these options for a bundle from now on, and so find plans built so.

    Raises:
        EngineError: the store cannot be written to.
    """
    store.write_options(_options_name(bundle), options.to_json())


def options_for(bundle: Bundle, store: PlanStore) -> BuildOptions:
    """Return the options that `remember_options` was given last; the defaults if none were."""
    try:
        text = store.read_options(_options_name(bundle))
        return BuildOptions() if text is None else BuildOptions.from_json(text)
    except EngineError as error:
        _LOG.warning('Plans of %s are built with the default options: %s. Run `blabberseg build` '
                     'again', bundle.manifest.name, error)
        return BuildOptions()


def _options_name(bundle: Bundle) -> str:
    return bundle.fingerprint[:32]


def plan_key(bundle: Bundle, stage: str, graph: Path, precision: str,
             profiles: tuple[Profile, ...], library: Library, options: BuildOptions) -> PlanKey:
    """Return the key of a plan for this machine."""
    gpu, compute_capability = NO_GPU, ''
    if library.name == TENSORRT:
        device = probe_cuda().devices[0]
        gpu, compute_capability = device.name, device.compute_capability
    return PlanKey(
        bundle=bundle.manifest.name, fingerprint=bundle.fingerprint, stage=stage,
        graph_sha256=sha256_of(graph), precision=precision,
        profiles=[profile.to_dict() for profile in profiles], builder=library.name,
        builder_version=library.version, gpu=gpu, compute_capability=compute_capability,
        options=options.settings())


class TensorRtEngine(Engine):
    """A stage's plan on the first GPU. Untested on a GPU."""

    def __init__(self, bundle: Bundle, stage: str, options: BuildOptions, store: PlanStore,
                 device: Any) -> None:
        """Remember the stage.

        Args:
            bundle: the model.
            stage: of the model.
            options: how plans are built.
            store: where plans are kept.
            device: `tensorrt_runner.Device`, shared by all stages of a model.
        """
        super().__init__(bundle, stage)
        self.precision = stage_precision(bundle, stage, options.precision)
        self._options = options
        self._store = store
        self._device = device
        self._runner: Any = None
        self._record: PlanRecord | None = None

    @property
    def artefact(self) -> str:
        """Return the SHA-256 of the plan in use."""
        return self._record.sha256 if self._record is not None else ''

    def record_parity(self, figures: Mapping[str, float]) -> None:
        """Keep the figures of the parity gate in the plan's record."""
        if self._record is not None:
            self._store.record_parity(self._record.key, figures)

    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        from blabberseg_ros.engines.tensorrt_runner import PlanRunner

        library = load_library(TENSORRT)
        obtained = obtain_plan(self.bundle, self.stage, library, self._options, self._store)
        graph = stage_graph(self.bundle, self.stage, self.precision, library)
        inputs = graph_inputs(graph)
        with contextlib.ExitStack() as undo:
            self._device.open()
            undo.callback(self._device.close)
            self._runner = PlanRunner(library, obtained.plan.data,
                                      profiles_for(inputs, self._options), self._device)
            undo.pop_all()
        self._record = obtained.plan.record
        return list(inputs), self._runner.outputs

    def _unload(self) -> None:
        runner, self._runner, self._record = self._runner, None, None
        if runner is not None:
            try:
                runner.close()
            finally:
                self._device.close()

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        return self._runner.run(feeds)

    def _to_host(self, values: Sequence[Value]) -> tuple[np.ndarray, ...]:
        return tuple(self._device.to_host(values))


class TensorRt(EngineKind):
    """TensorRT 10 or later on an NVIDIA GPU."""

    name = 'tensorrt'
    device = 'cuda'
    per_shape = True

    def __init__(self, options: BuildOptions | None = None,
                 store: PlanStore | None = None) -> None:
        """Use build options and a store.

        Args:
            options: None means those of the last `blabberseg build` of a bundle, else the
                defaults.
            store: None means the user's.
        """
        self._options = options
        self._remembered: dict[str, BuildOptions] = {}
        self._store = store if store is not None else PlanStore()
        self._shared_device: Any = None

    def probe(self) -> Availability:
        """Return whether there are a GPU, TensorRT and pycuda, asked in this order."""
        cuda = probe_cuda()
        if not cuda.ok:
            return Availability(False, cuda.reason)
        try:
            library = load_library(TENSORRT)
        except EngineError as error:
            return Availability(False, str(error))
        if importlib.util.find_spec('pycuda') is None:
            return Availability(
                False, 'pycuda is not installed; pip install "blabberseg_ros[pycuda]"')
        return Availability(True, f'TensorRT {library.version} on {cuda.reason}')

    def options(self, bundle: Bundle) -> BuildOptions:
        """Return how the plans of a bundle are built; what is read once stays."""
        if self._options is not None:
            return self._options
        name = bundle.fingerprint
        if name not in self._remembered:
            self._remembered[name] = options_for(bundle, self._store)
        return self._remembered[name]

    def takes(self, bundle: Bundle) -> Availability:
        """Return whether the bundle has graphs, of the precision asked for."""
        availability = super().takes(bundle)
        if availability.ok:
            try:
                stage_precision(bundle, 'image_encoder', self.options(bundle).precision)
            except EngineError as error:
                return Availability(False, str(error))
        return availability

    def nearest_shapes(self, bundle: Bundle, width_px: int, height_px: int,
                       rows: int) -> tuple[int, int, int]:
        """Return the image size and the number of prompts nearest to these that plans take."""
        return self.options(bundle).nearest(width_px, height_px, rows)

    def create(self, bundle: Bundle, stage: str) -> Engine:
        """Return an inactive engine for one stage of a bundle; all share one stream."""
        from blabberseg_ros.engines.tensorrt_runner import Device

        if self._shared_device is None:
            self._shared_device = Device()
        return TensorRtEngine(bundle, stage, self.options(bundle), self._store,
                              self._shared_device)
