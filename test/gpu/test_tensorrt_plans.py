# SPDX-License-Identifier: Apache-2.0
"""Bad plans and TensorRT's own run-time library, which loads only where there is a GPU.

`tensorrt_lean` is enough (42 MB). The plan that they are made of is one of TensorRT-RTX, so that
each of them is foreign, besides being cut or changed.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.cuda_probe import probe_cuda
from blabberseg_ros.engines.store import PlanStore
from blabberseg_ros.engines.tensorrt import obtain_plan
from blabberseg_ros.engines.tensorrt_builder import TENSORRT_RTX, load_library
from blabberseg_ros.engines.tensorrt_options import BuildOptions

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARY = next((name for name in ('tensorrt', 'tensorrt_lean')
                if importlib.util.find_spec(name) is not None), '')
LIMIT_S = 120.0
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not probe_cuda().ok or not LIBRARY, reason='gpu: no GPU, or no TensorRT')]


def fault_tests():
    """Return the module with the bad plans and the script that reads them."""
    path = ROOT / 'test' / 'fault' / 'test_engine_files.py'
    spec = importlib.util.spec_from_file_location('test_engine_files', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_library_refuses_bad_plans_with_our_error(random_bundle, tmp_path):
    faults = fault_tests()
    plan = obtain_plan(load_bundle(random_bundle), faults.STAGE, load_library(TENSORRT_RTX),
                       BuildOptions(), PlanStore(tmp_path / 'plans')).plan.data
    paths = []
    for name, data in {'foreign': plan, **faults.bad_plans(plan)}.items():
        paths.append(tmp_path / f'{name}.plan')
        paths[-1].write_bytes(data)
    script = faults.DESERIALISE.replace(
        "load_library('tensorrt_rtx')", f"Library('tensorrt', __import__('{LIBRARY}'))").replace(
        'import load_library,', 'import Library,')
    child = subprocess.run(
        [sys.executable, '-c', script, *paths], capture_output=True, text=True, timeout=LIMIT_S,
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=False)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == len(paths)
    for line, path in zip(lines, paths, strict=True):
        assert line.startswith(f'refused {path} tensorrt '), line
