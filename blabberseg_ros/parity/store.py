# SPDX-License-Identifier: Apache-2.0
"""Passes of the parity gate that are remembered, so that the next start need not compare again."""

import hashlib
import importlib.metadata
import importlib.resources
import json
import logging
import platform
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from blabberseg_ros import __version__
from blabberseg_ros.atomic import write_text
from blabberseg_ros.backends.base import Backend
from blabberseg_ros.bundle import user_cache_folder
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.errors import EngineError
from blabberseg_ros.parity.report import ParityReport

_LOG = logging.getLogger(__name__)
# Libraries that compute, or compile what computes.
_LIBRARIES = ('numpy', 'onnxruntime', 'onnxruntime-gpu', 'open_clip_torch', 'tensorrt', 'torch',
              'triton')
# Folders of the modules that do; those at the top of the package count as well.
_COMPUTING = ('backends', 'engines', 'models', 'parity')
# Lines of /proc/cpuinfo, on x86 and on ARM.
_CPU_MODEL = ('model name', 'CPU implementer', 'CPU part')


@dataclass(frozen=True)
class Identity:
    """Everything that a pass depends on; if one of these changes, it is void.

    Attributes:
        files: SHA-256 of each file of the bundle, by name.
        engine: name of the engine.
        precision: of the engine.
        artefacts: hashes of what was built, such as TensorRT's plans, by stage.
        reference: engine that it was compared with.
        libraries: version of each library, by name.
        devices: names of the GPUs with their compute capability and the driver's CUDA version.
        machine: architecture of the CPU, and its model for an engine that computes on it.
        package: version of this package, and a hash of the sources that compute.
        shapes: that it was compared for.
    """

    files: dict[str, str]
    engine: str
    precision: str
    artefacts: dict[str, str]
    reference: str
    libraries: dict[str, str]
    devices: tuple[str, ...]
    machine: str
    package: str
    shapes: str = ''

    @property
    def key(self) -> str:
        """Return a hash of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def identity_of(backend: Backend, reference: str, shapes: str = '') -> Identity:
    """Return what a comparison of this back-end depends on."""
    cuda = probe_cuda()
    on_cpu = backend.kind.device == 'cpu'
    devices = () if on_cpu else tuple(
        f'{device.name} {device.compute_capability} CUDA {cuda.cuda_version}'
        for device in cuda.devices)
    return Identity(
        {name: record.sha256 for name, record in backend.bundle.manifest.files.items()},
        backend.kind.name, backend.precision,
        {engine.stage: engine.artefact for engine in backend.active_engines if engine.artefact},
        reference, _versions(), devices,
        f'{platform.machine()} {_cpu_model()}' if on_cpu else platform.machine(),
        f'{__version__} {_source_hash()}', shapes)


class ParityStore:
    """A folder with one report for each pass. A damaged file counts as absent."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use a folder; None means `parity` in the user's cache folder."""
        self.folder = folder if folder is not None else user_cache_folder() / 'parity'

    def load(self, identity: Identity) -> ParityReport | None:
        """Return the report of an earlier pass, or None."""
        path = self._path(identity)
        try:
            report = ParityReport.from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, EngineError) as error:
            _LOG.warning('The parity report %s cannot be used (%s); comparing again', path, error)
            return None
        return report if report.passed else None

    def save(self, identity: Identity, report: ParityReport) -> None:
        """Keep a report; a disk that is full or read-only costs a comparison at the next start."""
        try:
            write_text(self._path(identity), report.to_json())
        except OSError as error:
            _LOG.warning('The parity report cannot be stored in %s (%s)', self.folder, error)

    def _path(self, identity: Identity) -> Path:
        return self.folder / f'{identity.engine}-{identity.precision}-{identity.key[:32]}.json'


@cache
def _source_hash() -> str:
    """Return a hash of the modules on the way from an image to a mask; 4 ms, once."""
    root = importlib.resources.files('blabberseg_ros')
    digest = hashlib.sha256()
    for entry in (root, *(root / folder for folder in _COMPUTING)):
        for module in sorted(entry.iterdir(), key=lambda item: item.name):
            if module.name.endswith('.py'):
                digest.update(module.name.encode() + module.read_bytes())
    return digest.hexdigest()[:16]


def _cpu_model() -> str:
    """Return what tells CPUs with other instructions apart, as far as the kernel says."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        return platform.processor()
    return ', '.join(dict.fromkeys(line.partition(':')[2].strip() for line in lines
                                   if line.startswith(_CPU_MODEL)))


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
