# SPDX-License-Identifier: Apache-2.0
"""An FPSeg bundle on an engine, ready to run."""

from pathlib import Path

from blabberseg_ros.backends.fpseg import FpSegBackend
from blabberseg_ros.bundle import find_bundle, load_bundle
from blabberseg_ros.engines.choose import usable_engines
from blabberseg_ros.errors import BundleError, EngineError

_FILES = ('.pt', '.pth', '.safetensors')
# Not an engine: the network itself, in torch.
TORCH = 'torch'


def open_on_engine(network: str, engine: str, device: str) -> FpSegBackend:
    """Load a bundle on an engine, the fastest usable one for `auto`.

    Args:
        network: name or folder of the bundle.
        engine: name, or `auto`.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        BundleError: it is no FPSeg bundle.
        EngineError: the engine cannot be used here.
    """
    bundle = load_bundle(find_bundle(network))
    if bundle.manifest.family != FpSegBackend.family:
        raise BundleError(f'{network} is a bundle of the family {bundle.manifest.family!r}, not '
                          f'{FpSegBackend.family!r}')
    failed = EngineError('no engine can be used here')
    for kind in usable_engines(engine, device, bundle):
        backend = FpSegBackend(bundle, kind)
        try:
            backend.activate()
            return backend
        except EngineError as error:
            backend.deactivate()
            failed = error
    raise failed


def is_bundle(network: str) -> bool:
    """Return whether a network is named as a bundle and not as a file; names may have dots."""
    return Path(network).suffix not in _FILES
