# SPDX-License-Identifier: Apache-2.0
"""What the measurements were made on and with."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from blabberseg_ros import __version__
from blabberseg_ros.engines.cuda_probe import probe_cuda

_LIBRARIES = ('numpy', 'onnxruntime', 'onnxruntime-gpu', 'tensorrt', 'torch', 'transformers',
              'triton')


def device_name(device: str) -> str:
    """Return the name of the first GPU (`cuda`) or of the CPU (`cpu`) with its cores."""
    if device == 'cuda':
        devices = probe_cuda().devices
        return devices[0].name if devices else 'no GPU'
    lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'{names[0] if names else platform.machine()}, {threads()} cores'


def threads() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def versions() -> str:
    """Return the versions of this package, Python and the libraries."""
    found = [f'blabberseg_ros {__version__}', f'python {platform.python_version()}']
    for name in _LIBRARIES:
        try:
            found.append(f'{name} {importlib.metadata.version(name)}')
        except importlib.metadata.PackageNotFoundError:
            continue
    return '; '.join(found)


def memory_mb(name: str, process: int | str = 'self') -> float:
    """Return one figure of a process's memory in MB (1e6 bytes).

    Args:
        name: as /proc/PID/status calls it: VmRSS, VmHWM, RssShmem, ...
        process: its id; this one by default.
    """
    for line in Path(f'/proc/{process}/status').read_text(encoding='utf-8').splitlines():
        if line.startswith(f'{name}:'):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return float('nan')


def commit() -> str:
    """Return the commit of the source, with `-dirty` if it was changed since; or `unknown`."""
    try:
        result = subprocess.run(
            ['git', 'describe', '--always', '--dirty', '--exclude', '*'],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    return result.stdout.strip() or 'unknown'
