# SPDX-License-Identifier: Apache-2.0
"""What the gate does with its verdict: refuse, go on to the next engine, remember a pass."""

import dataclasses
import json
import math

import numpy as np
import pytest

from blabberseg_ros.backends.clipseg import ClipSegBackend
from blabberseg_ros.backends.fpseg import FpSegBackend
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.base import Availability
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu, OnnxRuntimeCpuEngine
from blabberseg_ros.errors import EngineError, ImageError, ParityError
from blabberseg_ros.parity import gate
from blabberseg_ros.parity import store as parity_store
from blabberseg_ros.parity.frames import GATE, frame, gate_frames, moving_frames
from blabberseg_ros.parity.metrics import AREA_FRACTIONS, ThresholdCheck
from blabberseg_ros.parity.report import FrameFigures, Outcome, ParityReport
from blabberseg_ros.parity.store import ParityStore, identity_of
from blabberseg_ros.prompts import PromptSet, default_prompts
from blabberseg_ros.segmenter import Segmenter


class OtherKind(OnnxRuntimeCpu):
    """ONNX Runtime under another name, so that it is no reference; wrong if asked to be."""

    name = 'other'

    def __init__(self, wrong=False, wrong_for=None, wrong_from_run=None):
        self.wrong = wrong
        self.wrong_for = wrong_for
        self.wrong_from_run = wrong_from_run
        self.full_disk = False
        self.decodes = 0
        self.rows = []
        self.recorded = {}

    def probe(self):
        return Availability(True, 'for tests')

    def create(self, bundle, stage):
        return OtherEngine(bundle, stage, self)


class OtherEngine(OnnxRuntimeCpuEngine):
    def __init__(self, bundle, stage, kind):
        super().__init__(bundle, stage)
        self._kind = kind
        self._images = []

    def record_parity(self, figures):
        if self._kind.full_disk:
            raise EngineError('the disk is full')
        self._kind.recorded[self.stage] = figures

    def _run(self, feeds):
        outputs = super()._run(feeds)
        if self.stage == 'decoder':
            self._kind.decodes += 1
            rows = len(outputs['logits'])
            self._kind.rows.append(rows)
            if self._kind.wrong or rows == self._kind.wrong_for:
                outputs = {'logits': np.ascontiguousarray(outputs['logits'][::-1])}
        elif self.stage == 'image_encoder' and self._kind.wrong_from_run is not None:
            self._images.append(feeds['image'].shape)
            if self._images.count(self._images[-1]) >= self._kind.wrong_from_run:
                outputs = {'code': np.ascontiguousarray(outputs['code'][..., ::-1])}
        return outputs


@pytest.fixture(scope='module')
def bundle(random_bundle):
    return load_bundle(random_bundle)


@pytest.fixture
def store(tmp_path):
    return ParityStore(tmp_path / 'parity')


def admit(bundle, kind, store):
    backend = ClipSegBackend(bundle, kind)
    backend.activate()
    try:
        return gate.admit(backend, store=store)
    finally:
        backend.deactivate()


def test_a_pass_is_remembered_and_not_repeated(bundle, store):
    kind = OtherKind()
    first = admit(bundle, kind, store)
    assert first.passed
    assert kind.recorded['decoder'] == first.figures
    decodes = kind.decodes
    assert decodes > 0
    assert admit(bundle, kind, store) == first
    assert kind.decodes == decodes


def test_a_wrong_engine_is_refused_with_the_figures_and_never_remembered(bundle, store):
    for _ in range(2):
        with pytest.raises(ParityError, match=r'cosine 0\.\d+ \(at least 0\.9999\)'):
            admit(bundle, OtherKind(wrong=True), store)
    assert not list(store.folder.glob('*'))


def test_a_torn_report_is_not_a_pass(bundle, store):
    admit(bundle, OtherKind(), store)
    path, = store.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ParityError):
        admit(bundle, OtherKind(wrong=True), store)


def test_a_report_that_says_fail_is_not_a_pass(bundle, store):
    admit(bundle, OtherKind(), store)
    path, = store.folder.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), 'outcome': 'fail'}))
    with pytest.raises(ParityError):
        admit(bundle, OtherKind(wrong=True), store)


@pytest.mark.parametrize('change', [
    {'engine': 'another'}, {'precision': 'fp16'}, {'files': {'weights.safetensors': 'x'}},
    {'artefacts': {'decoder': 'x'}}, {'devices': ('GPU 9.0 CUDA 13.0',)},
    {'libraries': {'torch': '1.0'}}, {'package': '9'}])
def test_everything_that_a_pass_depends_on_voids_it(bundle, store, change):
    identity = identity_of(ClipSegBackend(bundle, OtherKind()), 'torch-cpu')
    store.save(identity, report(passing()))
    assert store.load(identity) is not None
    assert store.load(dataclasses.replace(identity, **change)) is None


def test_the_reference_needs_no_gate(bundle, store):
    assert admit(bundle, OnnxRuntimeCpu(), store) is None


def test_without_torch_the_reference_is_onnx_runtime(bundle, monkeypatch):
    assert gate.reference_kind(bundle).name == 'torch-cpu'
    monkeypatch.setattr(gate.torch_reference.TorchCpu, 'probe',
                        lambda self: Availability(False, 'not installed'))
    assert gate.reference_kind(bundle).name == 'onnxruntime-cpu'


def test_without_any_reference_the_engine_is_used_and_the_log_says_so(bundle, store, caplog,
                                                                      monkeypatch):
    monkeypatch.setattr(gate, 'reference_kind', lambda bundle: None)
    assert admit(bundle, OtherKind(wrong=True), store) is None
    assert 'could not be compared with anything' in caplog.text


def test_a_refused_engine_makes_room_for_the_next(bundle, store, caplog):
    backends = [ClipSegBackend(bundle, OtherKind(wrong=True)),
                ClipSegBackend(bundle, OnnxRuntimeCpu())]
    segmenter = Segmenter(backends[0], others=backends[1:],
                          check=lambda backend: gate.admit(backend, store=store))
    with segmenter:
        assert segmenter.engine_name == 'onnxruntime-cpu'
    assert 'The engine other is not used' in caplog.text
    assert 'cosine' in caplog.text


def test_the_last_engine_to_be_refused_is_an_error(bundle, store):
    segmenter = Segmenter(ClipSegBackend(bundle, OtherKind(wrong=True)),
                          check=lambda backend: gate.admit(backend, store=store))
    with pytest.raises(EngineError, match='refused'):
        segmenter.activate()
    assert not segmenter.backend._engines['image_encoder'].active


def captured(bundle, store, **arguments):
    """Return an active segmenter on an engine that is built for each set of shapes."""
    kind = OtherKind(**arguments)
    kind.per_shape = True
    return kind, Segmenter(
        ClipSegBackend(bundle, kind), others=[ClipSegBackend(bundle, OnnxRuntimeCpu())],
        check=lambda backend, shapes=None: gate.admit(backend, shapes, store))


def test_each_new_set_of_shapes_is_compared_once(bundle, store):
    few = PromptSet(('grass',), ('roof', 'water', 'trees', 'road'))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    kind, segmenter = captured(bundle, store)
    with segmenter:
        segmenter.encode(few)
        reports = []
        for pixels in (image, image[:40], image[:40], image):
            before = kind.decodes
            segmenter.segment(pixels, few)
            reports.append((kind.decodes - before, len(list(store.folder.iterdir()))))
        # The gate decodes each of its two frames twice in each of three runs; the request once.
        assert reports == [(13, 2), (13, 3), (1, 3), (1, 3)]
        segmenter.segment(gate_frames()[0], default_prompts())
        assert len(list(store.folder.iterdir())) == 3, 'the gate compared for these at the start'


def test_an_engine_that_is_wrong_for_some_shapes_is_replaced_when_they_come(bundle, store, caplog):
    prompts = [PromptSet(('grass',), ('roof',) * count) for count in (3, 4, 5)]
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    _, segmenter = captured(bundle, store, wrong_for=5)
    with segmenter, Segmenter(ClipSegBackend(bundle, OnnxRuntimeCpu())) as reference:
        engines = []
        for each in prompts:
            found = segmenter.segment(image, each)
            engines.append(segmenter.engine_name)
            np.testing.assert_array_equal(found.mask, reference.segment(image, each).mask)
    assert engines == ['other', 'onnxruntime-cpu', 'onnxruntime-cpu']
    assert 'The engine other is not used' in caplog.text


def test_an_image_too_small_to_decide_anything_costs_no_engine(bundle, store):
    _, segmenter = captured(bundle, store)
    with segmenter:
        image = np.random.default_rng(2).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        assert segmenter.segment(image, PromptSet(('a',), ('b',))).mask.shape == (2, 2)
        assert segmenter.engine_name == 'other'


def test_an_engine_that_is_wrong_for_a_small_image_is_replaced_all_the_same(bundle, store):
    _, segmenter = captured(bundle, store, wrong_for=3)
    image = np.random.default_rng(0).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    with segmenter:
        segmenter.segment(image, PromptSet(('a',), ('b', 'c')))
        assert segmenter.engine_name == 'onnxruntime-cpu'


def test_an_engine_is_compared_for_the_maps_that_it_decodes_not_for_the_prompts(
        make_random_bundle, store):
    """Two prompts of FPSeg may mean five classes, and two may mean one."""
    kind = OtherKind()
    kind.per_shape = True
    backend = FpSegBackend(load_bundle(make_random_bundle('fpseg')), kind)
    names = backend.class_names
    segmenter = Segmenter(
        backend, check=lambda backend, shapes=None: gate.admit(backend, shapes, store))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with segmenter:
        for positive, negative, rows in (
                (names[0], ', '.join(names[1:5]), 5), (names[0], names[0], 1)):
            kind.rows.clear()
            segmenter.segment(image, PromptSet((positive,), (negative,)))
            assert set(kind.rows) == {rows}, 'the gate decoded what the request needs'
            assert len(kind.rows) == 13


def test_an_engine_with_shapes_of_its_own_is_compared_for_these_and_refuses_others(bundle, store):
    kind, segmenter = captured(bundle, store)
    kind.nearest_shapes = lambda bundle, width, height, rows: (64, 48, min(rows, 4))
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    few = PromptSet(('grass',), ('roof', 'water', 'trees'))
    with segmenter:
        assert set(kind.rows) == {4}
        segmenter.segment(image, few)
        for pixels, prompts in ((image[:40], few), (image, default_prompts())):
            with pytest.raises(ImageError, match='the nearest are 64x48 pixels and 4 maps'):
                segmenter.segment(pixels, prompts)
        assert segmenter.engine_name == 'other'


def test_the_run_that_is_replayed_is_the_one_that_is_compared(bundle, store):
    """An engine that captures at the second run may be right in the first alone."""
    kind = OtherKind(wrong_from_run=2)
    assert admit(bundle, kind, store).passed, 'one run an image tells nothing'
    kind = OtherKind(wrong_from_run=2)
    kind.per_shape, kind.name = True, 'captures'
    with pytest.raises(ParityError, match='cosine'):
        admit(bundle, kind, store)


def test_figures_that_cannot_be_kept_refuse_no_engine(bundle, store, caplog):
    kind = OtherKind()
    kind.full_disk = True
    assert admit(bundle, kind, store).passed
    assert 'the disk is full' in caplog.text


def test_a_pass_is_void_with_other_sources_and_on_another_cpu(bundle, monkeypatch):
    def keys():
        parity_store._source_hash.cache_clear()
        return identity_of(ClipSegBackend(bundle, OtherKind()), 'torch-cpu').key

    known = keys()
    assert keys() == known
    monkeypatch.setattr(parity_store, '_cpu_model', lambda: 'another')
    assert keys() != known
    monkeypatch.undo()
    monkeypatch.setattr(parity_store, '_COMPUTING', ('backends', 'engines', 'models'))
    assert keys() != known
    monkeypatch.undo()
    assert keys() == known


def passing(**change):
    checks = tuple(ThresholdCheck(fraction, 1 - fraction, 0.5, 0, 1.0)
                   for fraction in AREA_FRACTIONS)
    return dataclasses.replace(
        FrameFigures('0', 1.0, 1e-6, 1e-6, 1e-7, checks, 0.3, 0.0, 0), **change)


def report(*frames, iou_required=0.99):
    outcome, reasons = gate.judge(frames, 0.999, iou_required)
    return ParityReport(outcome, reasons, 'other', 'fp16', 'torch-cpu', 13, 0.999, iou_required,
                        frames, 1.0)


def with_checks(**change):
    return passing(checks=tuple(dataclasses.replace(check, **change)
                                for check in passing().checks))


def test_judgement():
    assert report(passing()).passed
    assert report(passing(cosine=0.9989)).outcome is Outcome.FAIL
    assert report(passing(cosine=math.nan)).outcome is Outcome.FAIL
    assert report(passing(mask_errors=1)).outcome is Outcome.FAIL
    assert report(with_checks(flips=1)).outcome is Outcome.FAIL
    assert report(with_checks(iou=0.98)).outcome is Outcome.FAIL
    assert report(with_checks(iou=0.98), iou_required=None).passed
    assert report(with_checks(coverage=0.04)).outcome is Outcome.UNDECIDABLE
    # What is not decidable fails nothing either, but another frame can decide.
    assert report(with_checks(coverage=0.04, flips=9), passing()).passed
    # One threshold is one mask, however many fractions lead to it.
    assert report(with_checks(threshold=0.8)).outcome is Outcome.UNDECIDABLE


@pytest.mark.parametrize(('p99_dp', 'outcome'), [
    (0.02, Outcome.PASS), (0.021, Outcome.FAIL), (math.nan, Outcome.FAIL)])
def test_shapes_whose_masks_decide_nothing_are_judged_by_their_probabilities(p99_dp, outcome):
    frame = dataclasses.replace(with_checks(coverage=0.0), p99_dp=p99_dp)
    assert gate.judge([frame], 0.999, None)[0] is Outcome.UNDECIDABLE
    assert gate.judge([frame], 0.999, None, masks_required=False)[0] is outcome
    assert gate.judge([dataclasses.replace(frame, cosine=0.9)], 0.999, None,
                      masks_required=False)[0] is Outcome.FAIL


def test_a_report_survives_json():
    for made in (report(passing()), report(passing(cosine=math.nan, threshold=math.nan))):
        assert repr(ParityReport.from_json(made.to_json())) == repr(made)
    with pytest.raises(EngineError, match='damaged'):
        ParityReport.from_json('{}')


def test_only_random_weights_need_no_mask_iou(bundle):
    assert not gate.has_trained_weights(bundle.manifest)
    assert gate.has_trained_weights(dataclasses.replace(bundle.manifest, source='trained'))


def test_the_frames_are_those_of_the_first_run():
    """The same seeds give the same frames; otherwise a report could not be repeated."""
    first = gate_frames()
    frame.cache_clear()
    for again, before, pose in zip(gate_frames(), first, GATE, strict=True):
        np.testing.assert_array_equal(again, before)
        assert before.shape == (pose.size_px[1], pose.size_px[0], 3)
        assert before.std() > 15


def test_moving_frames_all_differ():
    frames = moving_frames(8, (64, 48))
    assert len({image.tobytes() for image in frames}) == 8
