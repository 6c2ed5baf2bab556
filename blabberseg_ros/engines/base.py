# SPDX-License-Identifier: Apache-2.0
"""The seam between back-ends and run-time libraries: named tensors in, named tensors out."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from blabberseg_ros.bundle import Bundle
from blabberseg_ros.errors import BlabbersegError, EngineError

_LOG = logging.getLogger(__name__)
# Names, shapes and types of inputs that an engine need not check again.
_REMEMBERED_KINDS = 64

# A tensor where the engine keeps it: a NumPy array for the CPU, a device tensor elsewhere.
# Only the engine that made it, and `Engine.to_host`, look inside.
Value = Any


@dataclass(frozen=True)
class TensorSpec:
    """Name, NumPy dtype name and shape of an input or output; a text stands for a free axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape can be fed."""
        return len(shape) == len(self.shape) and all(
            isinstance(wanted, str) or wanted == given
            for wanted, given in zip(self.shape, shape, strict=True))


@dataclass(frozen=True)
class Availability:
    """Whether an engine can be used on this machine, and why (not)."""

    ok: bool
    reason: str


class Engine(ABC):
    """One stage of a bundle on one device, used by one thread.

    The life cycle is `activate`, any number of `infer`, `deactivate`; both ends may be repeated.

    Attributes:
        bundle: the model.
        stage: name of the stage, for example `image_encoder`.
        precision: of the computation, for example `fp32`.
        runs: how often `infer` has run since construction.
    """

    precision = 'fp32'

    def __init__(self, bundle: Bundle, stage: str) -> None:
        """Remember the stage; nothing is loaded before `activate`."""
        self.bundle = bundle
        self.stage = stage
        self.runs = 0
        self._inputs: dict[str, TensorSpec] = {}
        self._outputs: dict[str, TensorSpec] = {}
        self._accepted: set[tuple[Any, ...]] = set()
        self._running = _Failures(stage, 'failed')

    @property
    def active(self) -> bool:
        """Return whether the stage is loaded."""
        return bool(self._inputs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return what the stage takes; empty while inactive."""
        return tuple(self._inputs.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return what the stage gives; empty while inactive."""
        return tuple(self._outputs.values())

    @property
    def artefact(self) -> str:
        """Return the hash of what was built for this stage; empty where nothing is kept."""
        return ''

    def record_parity(self, figures: Mapping[str, float]) -> None:  # noqa: B027
        """Keep the figures of the parity gate beside what was built, if anything was."""

    def activate(self) -> None:
        """Load the stage onto the device.

        Raises:
            EngineError: the library or the device refuses it.
        """
        if self.active:
            return
        with _Failures(self.stage, 'cannot be loaded'):
            inputs, outputs = self._load()
        self._inputs = {spec.name: spec for spec in inputs}
        self._outputs = {spec.name: spec for spec in outputs}

    def deactivate(self) -> None:
        """Free what `activate` took; what a broken device does not give back is logged."""
        self._inputs, self._outputs = {}, {}
        self._accepted.clear()
        try:
            with _Failures(self.stage, 'was not freed cleanly'):
                self._unload()
        except EngineError as error:
            _LOG.warning('%s', error)

    def infer(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run the stage.

        Args:
            feeds: one tensor for each input, by name; NumPy arrays, or values of this engine.

        Returns:
            One value for each output, by name, where the engine keeps them.

        Raises:
            EngineError: the engine is inactive, an input is missing, unknown or of the wrong
                shape or type, or the library fails.
        """
        # A camera's frames are all alike: what has been checked once is recognised.
        kinds = tuple([(name, value.shape, isinstance(value, np.ndarray) and value.dtype)
                       for name, value in feeds.items()])
        if kinds not in self._accepted:
            self._check(feeds)
            if len(self._accepted) >= _REMEMBERED_KINDS:
                self._accepted.clear()
            self._accepted.add(kinds)
        self.runs += 1
        with self._running:
            return self._run(feeds)

    def _check(self, feeds: Mapping[str, Value]) -> None:
        """Refuse inputs that the stage does not take; see `infer`."""
        if not self.active:
            raise EngineError(f'{self.stage} is not active; call activate() first')
        if feeds.keys() != self._inputs.keys():
            raise EngineError(
                f'{self.stage} takes {", ".join(self._inputs)} and was given '
                f'{", ".join(feeds) or "nothing"}')
        for name, value in feeds.items():
            spec = self._inputs[name]
            if not spec.accepts(value.shape):
                raise EngineError(f'{self.stage} takes {name} of shape {spec.shape} and was '
                                  f'given {tuple(value.shape)}')
            # What comes from a stage on the device is of the type that the stage declares.
            if isinstance(value, np.ndarray) and value.dtype.name != spec.dtype:
                raise EngineError(
                    f'{self.stage} takes {name} as {spec.dtype} and was given {value.dtype}')

    def to_host(self, *values: Value) -> tuple[np.ndarray, ...]:
        """Return values of this engine as NumPy arrays, waiting for the device once.

        Raises:
            EngineError: the device fails, perhaps in what was asked of it before.
        """
        with self._running:
            return self._to_host(values)

    def _to_host(self, values: Sequence[Value]) -> tuple[np.ndarray, ...]:
        """Copy values to the host; an engine for a device has its own way."""
        return tuple(np.asarray(value) for value in values)

    def concatenate(self, parts: Sequence[Value]) -> Value:
        """Join arrays or values of this engine along their first axis; by way of the host here."""
        return np.concatenate([
            part if isinstance(part, np.ndarray) else self.to_host(part)[0] for part in parts])

    @abstractmethod
    def _load(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        """Load the stage and return its inputs and outputs."""

    @abstractmethod
    def _unload(self) -> None:
        """Free the device; called when nothing is loaded as well."""

    @abstractmethod
    def _run(self, feeds: Mapping[str, Value]) -> dict[str, Value]:
        """Run on checked inputs."""


class _Failures:
    """Makes an EngineError of everything else that a library raises within a `with` block.

    Their exceptions (of ONNX Runtime, Triton, pycuda, compilers that torch starts) share no base
    but Exception, and only an EngineError lets the next engine be tried.
    """

    def __init__(self, stage: str, what: str) -> None:
        """Remember what is tried.

        Args:
            stage: name of the stage.
            what: the end of a sentence that begins with it.
        """
        self._stage = stage
        self._what = what

    def __enter__(self) -> None:
        """Do nothing; one object serves any number of blocks."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Raise what is not ours as ours."""
        if isinstance(error, Exception) and not isinstance(error, BlabbersegError):
            raise EngineError(
                f'{self._stage} {self._what} ({type(error).__name__}: {error}). Free the device, '
                'or choose another engine (`blabberseg doctor` lists them)') from error


class EngineKind(ABC):
    """A way to run models on this machine, before any is loaded."""

    name = ''
    device = ''
    # Whether it compiles or captures anew for each set of input shapes, each of which may be wrong
    # on its own.
    per_shape = False
    # Whether `auto` passes it over.
    on_request_only = False
    # Most prompts that share one run of a decoder; None leaves it to the back-end.
    decode_group: int | None = None

    @abstractmethod
    def probe(self) -> Availability:
        """Return whether this kind can be used here, without loading more than needed to know."""

    def takes(self, bundle: Bundle) -> Availability:
        """Return whether this kind can run a bundle's family; most run whatever has graphs."""
        if bundle.manifest.graphs:
            return Availability(True, '')
        return Availability(False, f'the bundle {bundle.manifest.name} has no graphs; write it '
                                   'again with `blabberseg export`')

    def nearest_shapes(self, bundle: Bundle, width_px: int, height_px: int,
                       rows: int) -> tuple[int, int, int]:
        """Return the shapes nearest to these that this kind takes; most take all.

        Args:
            bundle: the model.
            width_px: of the image.
            height_px: of the image.
            rows: of the logits.

        Returns:
            Width, height and rows.
        """
        return width_px, height_px, rows

    def fewest_alike(self, prompts: int) -> int:
        """Return the fewest prompts that run on what is built for these.

        Numbers with the same answer share all that is built; most kinds build for each.
        """
        return prompts

    def extra_stages(self, bundle: Bundle) -> frozenset[str]:
        """Return the stages that this kind runs besides those of the bundle's graphs."""
        return frozenset()

    @abstractmethod
    def create(self, bundle: Bundle, stage: str) -> Engine:
        """Return an inactive engine for one stage of a bundle."""


def is_constant(value: np.ndarray) -> bool:
    """Return whether an array can never change, so that a device need not be sent it again.

    Resize matrices, thresholds and prompts are; a view is not, for what it looks at may change,
    and no image is worth keeping.
    """
    return value.flags.owndata and not value.flags.writeable and value.dtype != np.uint8
