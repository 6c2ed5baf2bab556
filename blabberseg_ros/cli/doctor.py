# SPDX-License-Identifier: Apache-2.0
"""`blabberseg doctor`: what this machine can run, what it cannot, and why."""

import argparse
import importlib.metadata
import platform

from blabberseg_ros import __version__
from blabberseg_ros.bundle import installed_bundles, load_bundle
from blabberseg_ros.engines.choose import candidates
from blabberseg_ros.errors import BundleError

# Distribution names, with what each is for.
_PACKAGES = {
    'numpy': 'arrays', 'opencv-python-headless': 'images', 'opencv-python': 'images',
    'onnxruntime': 'engine, CPU', 'onnxruntime-gpu': 'engine, GPU', 'tokenizers': 'prompts',
    'ftfy': 'prompts', 'safetensors': 'weights', 'torch': 'engine, import and training',
    'open_clip_torch': 'import and training', 'tensorrt': 'engine, Jetson and NVIDIA GPUs',
    'pycuda': 'TensorRT runner'}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'doctor', help='tell what this machine can run and what is missing',
        description='Prints what was found, what was refused and why. Exit code 1 if nothing can '
                    'run here.')
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings."""
    print(f'blabberseg_ros {__version__}, Python {platform.python_version()}, '
          f'{platform.platform()}')
    print('\nPackages')
    for name, purpose in _PACKAGES.items():
        print(f'  {name:24} {_version(name) or "-":14} {purpose}')
    print('\nEngines, fastest first')
    verdicts = candidates()
    for candidate in verdicts:
        print(f'  {"yes" if candidate.ok else "no ":4}{candidate.kind.name:20} '
              f'{candidate.reason}')
    print('\nBundles')
    usable = 0
    for folder in installed_bundles():
        try:
            manifest = load_bundle(folder).manifest
            usable += 1
            print(f'  yes {folder.name:20} {manifest.family} {manifest.variant}')
        except BundleError as error:
            print(f'  no  {folder.name:20} {error}')
    if not usable:
        print('  none; `blabberseg import --help` tells how to make one')
    return 0 if usable and any(candidate.ok for candidate in verdicts) else 1


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
