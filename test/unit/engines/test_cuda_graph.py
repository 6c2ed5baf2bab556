# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs through the driver, on a driver that writes down what is asked of it."""

import pytest

from blabberseg_ros.engines.cuda_graph import CudaGraph
from blabberseg_ros.errors import EngineError


class Driver:
    """Answers every call with success, or with an error where told."""

    def __init__(self, **errors):
        self.errors = errors
        self.calls = []

    def __getattr__(self, name):
        """Return a function of the driver."""
        def call(*arguments):
            self.calls.append(name)
            return self.errors.get(name, 0)

        return call


def graph(driver, enqueue=lambda: None):
    return CudaGraph(7, enqueue, lambda name: driver)


def test_work_is_recorded_once_and_launched_as_a_whole():
    driver = Driver()
    made = graph(driver, lambda: driver.calls.append('work'))
    made.launch()
    made.launch()
    assert driver.calls == [
        'cuStreamBeginCapture_v2', 'work', 'cuStreamEndCapture', 'cuGraphInstantiateWithFlags',
        'cuGraphDestroy', 'cuGraphLaunch', 'cuGraphLaunch']


@pytest.mark.parametrize(('call', 'left'), [
    ('cuStreamBeginCapture_v2', []), ('cuStreamEndCapture', ['cuStreamEndCapture']),
    ('cuGraphInstantiateWithFlags', ['cuGraphInstantiateWithFlags', 'cuGraphDestroy'])])
def test_what_the_driver_refuses_is_an_error_and_leaves_nothing(call, left):
    driver = Driver(**{call: 900})
    with pytest.raises(EngineError, match=rf'{call} gives error 900'):
        graph(driver)
    assert driver.calls[-len(left):] == left or not left


def test_the_stream_stops_recording_after_an_error_of_the_work():
    driver = Driver()

    def fail():
        raise EngineError('inside')

    with pytest.raises(EngineError, match='inside'):
        graph(driver, fail)
    assert driver.calls[-1] == 'cuStreamEndCapture'
