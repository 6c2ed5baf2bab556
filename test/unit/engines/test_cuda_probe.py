# SPDX-License-Identifier: Apache-2.0
"""The driver is asked through a stand-in with the driver's own calling convention."""

import ctypes

import pytest

from blabberseg_ros.engines.cuda_probe import DRIVER_LIBRARY, CudaDevice, probe_cuda


class FakeDriver:
    """Fills in what the CUDA driver API would, through the pointers that it is given."""

    def __init__(self, init_status=0, names=()):
        self.init_status = init_status
        self.names = names

    def cuInit(self, flags):
        return self.init_status

    def cuDriverGetVersion(self, version):
        version._obj.value = 12060
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, handle, index):
        handle._obj.value = index + 10
        return 0

    def cuDeviceGetName(self, name, length, handle):
        name.value = self.names[handle.value - 10][:length - 1]
        return 0

    def cuDeviceGetAttribute(self, value, attribute, handle):
        value._obj.value = {75: 8, 76: handle.value}[attribute]
        return 0


def missing(name):
    raise OSError(name)


def test_no_driver_is_said_with_what_to_do():
    probe = probe_cuda(missing)
    assert not probe.ok
    assert DRIVER_LIBRARY in probe.reason
    assert 'install' in probe.reason
    assert probe.devices == ()


@pytest.mark.parametrize(('status', 'word'), [
    (100, 'container'), (803, 'reboot'), (999, 'nvidia_uvm'), (12345, '12345')])
def test_a_driver_that_cannot_start_says_why(status, word):
    probe = probe_cuda(lambda name: FakeDriver(init_status=status))
    assert not probe.ok
    assert str(status) in probe.reason
    assert word in probe.reason


def test_a_driver_without_gpus_is_not_enough():
    probe = probe_cuda(lambda name: FakeDriver())
    assert not probe.ok
    assert probe.cuda_version == '12.6'


def test_every_gpu_is_named_with_its_compute_capability():
    probe = probe_cuda(lambda name: FakeDriver(names=(b'NVIDIA A', b'NVIDIA \xff B')))
    assert probe.ok
    assert probe.devices == (CudaDevice('NVIDIA A', '8.10'), CudaDevice('NVIDIA � B', '8.11'))
    assert 'NVIDIA A (compute capability 8.10)' in probe.reason
    assert 'CUDA 12.6' in probe.reason


def test_the_real_library_is_asked_by_default():
    """Agrees with the dynamic loader about whether there is a driver here."""
    try:
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        assert DRIVER_LIBRARY in probe_cuda().reason
    else:
        assert probe_cuda().ok or 'driver' in probe_cuda().reason
