# SPDX-License-Identifier: Apache-2.0
"""The values inside a stage, as TensorRT computes them. Untested on a GPU.

A plan is built in which they are outputs. Each has to be written to memory, which keeps TensorRT
from fusing: its operators are seen one by one, and not what it fuses of them in the plans of the
engine `tensorrt`. The plan is for inputs of one shape and is not kept.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.engines.base import Engine, TensorSpec, Value
from blabberseg_ros.engines.graph_inputs import graph_inputs
from blabberseg_ros.engines.tensorrt import TensorRt, stage_graph, stage_precision
from blabberseg_ros.engines.tensorrt_builder import TENSORRT, Library, build_plan, load_library
from blabberseg_ros.engines.tensorrt_options import BuildOptions, InputRange, Profile
from blabberseg_ros.engines.tensorrt_runner import Device, PlanRunner
from blabberseg_ros.engines.traced_graph import floating_values
from blabberseg_ros.errors import EngineError


def trace_plan(bundle: Bundle, kind: TensorRt, stage: str,
               feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a stage and return its floating values, in the order of computation.

    Args:
        bundle: the model.
        kind: says how plans of the bundle are built.
        stage: of the model.
        feeds: a tensor for each input; the plan is built for their shapes alone.

    Raises:
        EngineError: TensorRT is not usable here, or cannot build or run the plan.
    """
    if not (availability := kind.probe()).ok:
        raise EngineError(f'--layers cannot use {kind.name} here: {availability.reason}')
    engine = TracedEngine(bundle, stage, kind.options(bundle), feeds)
    engine.activate()
    try:
        values = engine.infer(feeds)
        on_host = engine.to_host(*(values[name] for name in engine.names))
    finally:
        engine.deactivate()
    return dict(zip(engine.names, on_host, strict=True))


class TracedEngine(Engine):
    """A stage whose values are all outputs, for inputs of one shape.

    Attributes:
        names: of the values, in the order of computation; empty before it is active.
    """

    def __init__(self, bundle: Bundle, stage: str, options: BuildOptions,
                 feeds: Mapping[str, np.ndarray]) -> None:
        """Remember the stage, how plans are built, and the shapes."""
        super().__init__(bundle, stage)
        self.precision = stage_precision(bundle, stage, options.precision)
        self.names: tuple[str, ...] = ()
        # What the builder measures of operators that stand alone is of no use to other plans.
        self._options = replace(options.of_stage(self.precision), timing_cache=None)
        self._profiles = (Profile(tuple(
            InputRange(name, value.shape, value.shape, value.shape)
            for name, value in feeds.items())),)
        self._device = Device()
        self._runner: Any = None
        self._held = contextlib.ExitStack()

    def build(self, library: Library) -> bytes:
        """Return the plan."""
        graph = stage_graph(self.bundle, self.stage, self.precision, library)
        traced = floating_values(graph)
        self.names = traced.names
        return build_plan(library, graph, self._profiles, self._options, traced.model)

    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        library = load_library(TENSORRT)
        plan = self.build(library)
        with contextlib.ExitStack() as undo:
            self._device.open()
            undo.callback(self._device.close)
            self._runner = PlanRunner(library, plan, self._profiles, self._device)
            undo.callback(self._runner.close)
            self._held = undo.pop_all()
        graph = stage_graph(self.bundle, self.stage, self.precision, library)
        return list(graph_inputs(graph)), self._runner.outputs

    def _unload(self) -> None:
        self._runner = None
        self._held.close()

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        return self._runner.run(feeds)

    def _to_host(self, values: Sequence[Value]) -> tuple[np.ndarray, ...]:
        return tuple(self._device.to_host(values))
