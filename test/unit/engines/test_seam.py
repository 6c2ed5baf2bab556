# SPDX-License-Identifier: Apache-2.0
"""The seam under every engine: what a library raises, and what an engine is fed."""

from types import SimpleNamespace

import numpy as np
import pytest

from blabberseg_ros.engines import choose
from blabberseg_ros.engines.base import Availability, Engine, EngineKind, TensorSpec, is_constant
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.errors import BundleError, EngineError
from blabberseg_ros.resampling import read_only
from blabberseg_ros.segmenter import Segmenter


class Failing(Engine):
    """Doubles what it is given, and raises what it is told to where it is told to."""

    def __init__(self, bundle=None, stage='a stage', where='', error=None):
        super().__init__(bundle, stage)
        self._where, self._error = where, error

    def _at(self, where):
        if where == self._where:
            raise self._error

    def _load(self):
        self._at('load')
        return [TensorSpec('x', 'float32', ('n', 2))], [TensorSpec('y', 'float32', ('n', 2))]

    def _unload(self):
        self._at('unload')

    def _run(self, feeds):
        self._at('run')
        return {'y': 2 * feeds['x']}

    def _to_host(self, values):
        self._at('to_host')
        return super()._to_host(values)


class FailingKind(EngineKind):
    name, device = 'failing', 'cuda'

    def __init__(self, where, error):
        self._where, self._error = where, error

    def probe(self):
        return Availability(True, 'for tests')

    def create(self, bundle, stage):
        return Failing(bundle, stage, self._where, self._error)


ERRORS = [RuntimeError('CUDA error: out of memory'), ImportError('no pycuda'),
          type('CudaError', (Exception,), {})('lost'), MemoryError()]


def use(engine):
    engine.activate()
    return engine.to_host(engine.infer({'x': np.ones((3, 2), np.float32)})['y'])


@pytest.mark.parametrize('error', ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize('where', ['load', 'run', 'to_host'])
def test_whatever_a_library_raises_is_an_engine_error_that_names_it(where, error):
    with pytest.raises(EngineError, match=rf'a stage .*{type(error).__name__}') as caught:
        use(Failing(where=where, error=error))
    assert caught.value.__cause__ is error


@pytest.mark.parametrize('where', ['load', 'run', 'to_host'])
@pytest.mark.parametrize('error', [BundleError('the weights do not fit'), KeyboardInterrupt()],
                         ids=lambda error: type(error).__name__)
def test_our_own_errors_and_interrupts_pass_as_they_are(where, error):
    with pytest.raises(type(error)) as caught:
        use(Failing(where=where, error=error))
    assert caught.value is error


def test_what_a_device_does_not_give_back_is_logged_and_the_engine_can_be_used_again(caplog):
    engine = Failing(where='unload', error=RuntimeError('illegal address'))
    use(engine)
    engine.deactivate()
    assert not engine.active
    assert 'illegal address' in caplog.text
    np.testing.assert_array_equal(use(engine)[0], 2)


@pytest.mark.parametrize(('x', 'message'), [
    (np.ones((3, 3), np.float32), 'shape'), (np.ones((3, 2)), 'float32 and was given float64'),
    (np.ones((3, 2), np.float16), 'given float16'), (np.ones((3, 2), np.int32), 'given int32')])
def test_inputs_of_another_shape_or_type_are_refused(x, message):
    engine = Failing()
    engine.activate()
    for runs in (0, 1):
        with pytest.raises(EngineError, match=message):
            engine.infer({'x': x})
        assert engine.runs == runs
        use(engine)  # what has been taken once is not looked at again


def test_an_engine_that_was_freed_takes_nothing_that_it_took_before():
    engine = Failing()
    use(engine)
    engine.deactivate()
    with pytest.raises(EngineError, match='not active'):
        engine.infer({'x': np.ones((3, 2), np.float32)})


@pytest.mark.parametrize('where', ['load', 'run'])
def test_auto_goes_on_to_the_next_engine_whatever_the_first_one_raises(random_bundle, monkeypatch,
                                                                       tmp_path, where):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    kinds = [FailingKind(where, RuntimeError('out of memory')), OnnxRuntimeCpu()]
    monkeypatch.setattr(choose, 'engine_kinds', lambda: kinds)
    with Segmenter.open(random_bundle) as segmenter:
        assert segmenter.engine_name == 'onnxruntime-cpu'


def test_a_kind_whose_library_is_broken_is_passed_over(monkeypatch):
    def broken():
        raise OSError('libcudart.so.13: cannot open shared object file')

    kinds = [SimpleNamespace(name='broken', device='cuda', on_request_only=False, probe=broken),
             OnnxRuntimeCpu()]
    monkeypatch.setattr(choose, 'engine_kinds', lambda: kinds)
    first, second = choose.candidates()
    assert not first.ok
    assert 'libcudart' in first.reason
    assert second.ok


def test_only_an_array_that_owns_its_protected_numbers_is_constant():
    values = np.ones((2, 2), np.float32)
    view = values[:]
    view.setflags(write=False)
    assert not is_constant(values)
    assert not is_constant(view), 'what it looks at can change'
    assert is_constant(read_only(values.copy()))
    assert not is_constant(read_only(np.ones((2, 2, 3), np.uint8))), 'a frame'


