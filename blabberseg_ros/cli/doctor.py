# SPDX-License-Identifier: Apache-2.0
"""`blabberseg doctor`: what this machine can run, what it cannot, and why."""

import argparse
import importlib.metadata
import platform
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from blabberseg_ros import __version__
from blabberseg_ros.bundle import installed_bundles, load_bundle
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.engines.module_probe import problem_with
from blabberseg_ros.errors import BundleError

if TYPE_CHECKING:
    from blabberseg_ros.engines.choose import Candidate

# Distribution names, with what each is for.
_PACKAGES = {
    'numpy': 'arrays', 'opencv-python-headless': 'images', 'opencv-python': 'images',
    'onnxruntime': 'engine, CPU', 'onnxruntime-gpu': 'engine, GPU', 'tokenizers': 'prompts',
    'ftfy': 'prompts', 'safetensors': 'weights', 'torch': 'engine, import and training',
    'triton': 'engine, GPU', 'open_clip_torch': 'import and training',
    'tensorrt': 'engine, Jetson and NVIDIA GPUs', 'pycuda': 'TensorRT runner'}
# Modules that every engine needs, and what pip calls them.
_NEEDED = {'ftfy': 'ftfy', 'numpy': 'numpy', 'safetensors': 'safetensors',
           'tokenizers': 'tokenizers', 'tqdm': 'tqdm', 'yaml': 'pyyaml'}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        'doctor',
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
    print(f'\nGPU\n  {probe_cuda().reason}')
    problems = {name: problem for name in _NEEDED if (problem := problem_with(name))}
    print('\nEngines, fastest first')
    verdicts = _engines(problems)
    print('\nBundles')
    usable = _print_bundles(problems)
    print('\nVerdict')
    for name, problem in problems.items():
        print(f'  {name} {problem}, and everything here needs it: pip install {_NEEDED[name]}')
    for line in _verdict(verdicts):
        print(f'  {line}')
    able = usable and not problems and any(candidate.ok for candidate in verdicts)
    return 0 if able else 1


def _engines(problems: Collection[str]) -> 'Sequence[Candidate]':
    """Print and return the verdict on each engine, if engines can be asked."""
    if 'numpy' in problems:
        print('  not asked: they need numpy')
        return ()
    from blabberseg_ros.engines.choose import candidates

    verdicts = candidates()
    for candidate in verdicts:
        print(f'  {"yes" if candidate.ok else "no ":4}{candidate.kind.name:20} '
              f'{candidate.reason}')
    return verdicts


def _print_bundles(problems: Collection[str]) -> int:
    """Print a line a bundle; return how many can be used."""
    if 'yaml' in problems:
        print(f'  not read, for want of yaml: '
              f'{", ".join(folder.name for folder in installed_bundles()) or "none found"}')
        return 0
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
    return usable


def _verdict(verdicts: 'Sequence[Candidate]') -> list[str]:
    """Return what will run, and what to install so that it runs at all, or on the GPU."""
    lines = []
    if problem := problem_with('cv2'):
        lines.append(f'OpenCV (cv2) {problem}: apt install python3-opencv, or pip install '
                     '"blabberseg_ros[opencv]"')
    if problem := problem_with('rclpy'):
        lines.append(f'rclpy {problem}: `blabberseg` works without, the nodes need a sourced '
                     'ROS 2')
    usable = [candidate.kind for candidate in verdicts if candidate.ok]
    if not usable:
        lines.append('no engine can run here; for a machine without a GPU, pip install '
                     '"blabberseg_ros[cpu]"')
    else:
        lines.append('engine:=auto uses the first of these that gives the answers of the '
                     f'network: {", ".join(kind.name for kind in usable)}')
    if probe_cuda().ok and not any(kind.device == 'cuda' for kind in usable):
        lines.append('there is a GPU that no engine can use: pip install "blabberseg_ros[torch]" '
                     'and triton, or see the reasons above')
    return lines


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
