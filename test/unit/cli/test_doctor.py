# SPDX-License-Identifier: Apache-2.0
"""`blabberseg doctor` on three machines: an empty laptop, a box without a GPU, an H200."""

import argparse
import importlib.util
import sys
from types import SimpleNamespace

import pytest

from blabberseg_ros.cli import doctor
from blabberseg_ros.engines import onnxruntime_gpu, tensorrt, tensorrt_builder, torch_cuda
from blabberseg_ros.engines.cuda_probe import CudaDevice, CudaProbe

NO_DRIVER = CudaProbe(False, 'no CUDA driver (libcuda.so.1 cannot be loaded); install its driver')
H200 = CudaProbe(True, 'NVIDIA H200 (compute capability 9.0), driver for CUDA 13.0', '13.0',
                 (CudaDevice('NVIDIA H200', '9.0'),))
BASE = ('ftfy', 'numpy', 'safetensors', 'tokenizers', 'yaml')


@pytest.fixture
def machine(monkeypatch, random_bundle):
    """Return a function that sets up a machine: its driver, and the modules that it has."""
    find_spec = importlib.util.find_spec
    gone = ('torch', 'open_clip', 'triton', 'onnxruntime', 'pycuda', 'cv2', 'tensorrt', *BASE)

    def set_up(probe, *modules, bundles=(random_bundle,)):
        for module in (doctor, onnxruntime_gpu, tensorrt, tensorrt_builder, torch_cuda):
            monkeypatch.setattr(module, 'probe_cuda', lambda: probe)
        here = dict.fromkeys(gone) | dict.fromkeys(modules, SimpleNamespace())
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: (
            here[name] if name in here else find_spec(name, *rest)))
        for name in gone[:4]:
            if name not in modules:
                monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(doctor, 'installed_bundles', lambda: list(bundles))

    return set_up


def findings(capsys):
    code = doctor.run(argparse.Namespace())
    printed = capsys.readouterr().out
    engines = dict(line.split(maxsplit=2)[1::-1] for line in printed.split('fastest first\n')[1]
                   .split('\n\n')[0].splitlines())
    return code, engines, printed


def test_an_empty_laptop(machine, capsys):
    machine(NO_DRIVER, bundles=())
    code, engines, printed = findings(capsys)
    assert code == 1
    assert set(engines.values()) == {'no'}
    assert 'onnxruntime is not installed; pip install "blabberseg_ros[cpu]"' in printed
    assert 'ftfy, numpy, safetensors, tokenizers, yaml missing: pip install blabberseg' in printed
    assert 'OpenCV is missing' in printed
    assert 'no engine can run here' in printed
    assert 'none; `blabberseg import --help`' in printed


def test_a_box_without_a_gpu(machine, capsys):
    machine(NO_DRIVER, *BASE, 'cv2', 'onnxruntime')
    code, engines, printed = findings(capsys)
    assert code == 0
    assert [name for name, verdict in engines.items() if verdict == 'yes'] == ['onnxruntime-cpu']
    assert printed.count('no CUDA driver') == 4, 'once for the machine, and for each engine on it'
    assert 'answers of the network: onnxruntime-cpu\n' in printed
    assert 'missing' not in printed


def test_an_h200(machine, capsys, monkeypatch):
    machine(H200, *BASE, 'cv2', 'onnxruntime', 'torch', 'open_clip', 'triton')
    monkeypatch.setitem(sys.modules, 'torch', SimpleNamespace(
        __version__='2.11.0+cu130', cuda=SimpleNamespace(
            is_available=lambda: True, get_device_name=lambda: 'NVIDIA H200')))
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    code, engines, printed = findings(capsys)
    assert code == 0
    assert 'GPU\n  NVIDIA H200 (compute capability 9.0), driver for CUDA 13.0' in printed
    assert engines['torch-cuda'] == engines['onnxruntime-cpu'] == 'yes'
    assert engines['tensorrt'] == engines['onnxruntime-cuda'] == 'no'
    assert 'torch 2.11.0+cu130, fp16, on NVIDIA H200' in printed
    assert 'pip install "blabberseg_ros[tensorrt]"' in printed
    assert 'has no CUDAExecutionProvider; pip uninstall onnxruntime' in printed
    assert 'answers of the network: torch-cuda, onnxruntime-cpu\n' in printed


def test_a_gpu_that_nothing_can_use(machine, capsys):
    machine(H200, *BASE, 'cv2', 'onnxruntime')
    _, engines, printed = findings(capsys)
    assert engines['torch-cuda'] == 'no'
    assert 'there is a GPU that no engine can use' in printed
