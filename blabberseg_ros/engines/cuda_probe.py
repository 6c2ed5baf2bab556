# SPDX-License-Identifier: Apache-2.0
"""Whether this machine has a CUDA driver and a GPU, asked of the driver alone.

Some run-time libraries end the process where there is no driver (TensorRT's lean run-time does so
when it reads a plan), so the driver is asked before any of them is called. Nothing is needed for
that but the driver's own library; no context is made and no GPU memory is taken.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DRIVER_LIBRARY = 'libcuda.so.1'
_SUCCESS = 0
# CUresult and CUdevice_attribute values (CUDA driver API, cuda.h).
_ERRORS = {
    100: 'the driver finds no GPU; is it hidden by CUDA_VISIBLE_DEVICES, or not passed into the '
         'container (--gpus all)?',
    101: 'CUDA_VISIBLE_DEVICES names a GPU that does not exist',
    802: 'the system is not ready; on HGX machines, is the fabric manager running?',
    803: 'the driver library and the kernel module are of different versions; reboot after the '
         'driver update',
    804: 'the forward compatibility package does not support this GPU',
    999: 'the driver failed for an unknown reason; is the kernel module nvidia_uvm loaded?',
}
_MAJOR, _MINOR = 75, 76
_NAME_BYTES = 256


@dataclass(frozen=True)
class CudaDevice:
    """A GPU: its name, and its compute capability, for example `8.7`."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class CudaProbe:
    """What the CUDA driver says about this machine.

    Attributes:
        ok: there is a driver with at least one GPU.
        reason: what was found, or why there is none and what to do.
        cuda_version: the newest CUDA that the driver supports, for example `13.0`; empty if there
            is no driver.
        devices: in the driver's order.
    """

    ok: bool
    reason: str
    cuda_version: str = ''
    devices: tuple[CudaDevice, ...] = ()


def probe_cuda(load: Callable[[str], Any] = ctypes.CDLL) -> CudaProbe:
    """Ask the CUDA driver for its GPUs.

    Args:
        load: opens a shared library by name; raises OSError if there is none.
    """
    try:
        driver = load(DRIVER_LIBRARY)
    except OSError:
        return CudaProbe(False, f'no CUDA driver ({DRIVER_LIBRARY} cannot be loaded); with an '
                                'NVIDIA GPU, install its driver')
    status = driver.cuInit(0)
    if status != _SUCCESS:
        meaning = _ERRORS.get(status, 'see CUresult in the CUDA driver API')
        return CudaProbe(False, f'the CUDA driver cannot start: error {status}, {meaning}')
    version = _version(driver)
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != _SUCCESS or count.value == 0:
        return CudaProbe(False, f'the CUDA driver is here, but {_ERRORS[100]}', version)
    devices = tuple(_device(driver, index) for index in range(count.value))
    names = ', '.join(f'{device.name} (compute capability {device.compute_capability})'
                      for device in devices)
    return CudaProbe(True, f'{names}, driver for CUDA {version}', version, devices)


def _version(driver: Any) -> str:
    value = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(value))
    return f'{value.value // 1000}.{value.value % 1000 // 10}'


def _device(driver: Any, index: int) -> CudaDevice:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, handle)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
    return CudaDevice(name.value.decode(errors='replace'), f'{major.value}.{minor.value}')
