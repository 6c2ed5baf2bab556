# SPDX-License-Identifier: Apache-2.0
"""`blabberseg doctor` on an empty laptop, a box without a GPU, an H200, and with broken wheels."""

import argparse
import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from blabberseg_ros.cli import doctor
from blabberseg_ros.engines import onnxruntime_gpu, tensorrt, tensorrt_builder, torch_cuda
from blabberseg_ros.engines.cuda_probe import CudaDevice, CudaProbe

NO_DRIVER = CudaProbe(False, 'no CUDA driver (libcuda.so.1 cannot be loaded); install its driver')
H200 = CudaProbe(True, 'NVIDIA H200 (compute capability 9.0), driver for CUDA 13.0', '13.0',
                 (CudaDevice('NVIDIA H200', '9.0'),))
BASE = ('ftfy', 'numpy', 'safetensors', 'tokenizers', 'tqdm', 'yaml')
LIBRARIES = (*BASE, 'cv2', 'onnxruntime', 'torch', 'rclpy')


@pytest.fixture
def machine(monkeypatch, random_bundle):
    """Return a function that sets up a machine: its driver, and the modules that it has."""
    find_spec = importlib.util.find_spec
    gone = ('torch', 'open_clip', 'triton', 'onnxruntime', 'pycuda', 'tensorrt')

    def set_up(probe, *modules, bundles=(random_bundle,)):
        for module in (doctor, onnxruntime_gpu, tensorrt, tensorrt_builder, torch_cuda):
            monkeypatch.setattr(module, 'probe_cuda', lambda: probe)
        here = dict.fromkeys(gone) | dict.fromkeys(modules, SimpleNamespace())
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: (
            here[name] if name in here else find_spec(name, *rest)))
        for name in gone:
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


def run_without(modules, *arguments, path=''):
    """Run the command in a process of its own in which modules cannot be imported."""
    code = (f'import sys; sys.modules.update(dict.fromkeys({modules!r})); '
            f'from blabberseg_ros.cli.main import main; sys.exit(main({arguments!r}))')
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=False,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(path), os.getcwd()])})
    assert 'Traceback' not in done.stderr
    return done


def test_an_empty_laptop():
    done = run_without(LIBRARIES, 'doctor')
    assert done.returncode == 1
    assert done.stderr == ''
    for name in BASE:
        assert f'{name} is not installed, and everything here needs it: pip install ' in (
            done.stdout)
    assert 'pip install pyyaml' in done.stdout
    assert 'OpenCV (cv2) is not installed' in done.stdout
    assert 'not asked: they need numpy' in done.stdout
    assert 'no engine can run here' in done.stdout
    assert 'not read, for want of yaml: clipseg_demo' in done.stdout


@pytest.mark.parametrize('module', ['numpy', 'cv2', 'yaml', 'onnxruntime', 'rclpy'])
def test_one_library_is_missing(module):
    done = run_without([module], 'doctor')
    assert done.returncode == (0 if module in ('cv2', 'rclpy') else 1)
    assert f'{module.replace("cv2", "(cv2)")} is not installed' in done.stdout
    assert ('yes clipseg_demo' in done.stdout) == (module != 'yaml')
    assert ('yes onnxruntime-cpu' in done.stdout) == (module not in ('numpy', 'onnxruntime'))


def test_a_wheel_that_does_not_load_is_no_engine(tmp_path):
    for module in ('onnxruntime', 'cv2'):
        (tmp_path / f'{module}.py').write_text(
            'raise ImportError("libGL.so.1: cannot open shared object file")')
    done = run_without([], 'doctor', path=tmp_path)
    assert done.returncode == 1
    assert 'no  onnxruntime-cpu      onnxruntime is installed and cannot be imported (libGL' in (
        done.stdout)
    assert 'OpenCV (cv2) is installed and cannot be imported (libGL' in done.stdout


def test_other_commands_point_to_the_doctor():
    done = run_without(['cv2'], 'segment', 'image.png')
    assert done.returncode == 2
    assert '`blabberseg doctor` tells what is missing' in done.stderr
    assert run_without(LIBRARIES, '--help').returncode == 0


def test_a_torch_that_does_not_load_is_no_engine(machine, monkeypatch):
    machine(H200, 'torch', 'open_clip', 'triton')
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert 'torch is not installed' in torch_cuda.TorchCuda().probe().reason


def test_a_box_without_a_gpu(machine, capsys):
    machine(NO_DRIVER, *BASE, 'cv2', 'onnxruntime')
    code, engines, printed = findings(capsys)
    assert code == 0
    assert [name for name, verdict in engines.items() if verdict == 'yes'] == ['onnxruntime-cpu']
    assert printed.count('no CUDA driver') == 4, 'once for the machine, and for each engine on it'
    assert 'answers of the network: onnxruntime-cpu\n' in printed
    assert 'not installed, and' not in printed


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
