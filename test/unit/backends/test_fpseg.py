# SPDX-License-Identifier: Apache-2.0
"""FPSeg at run time: which classes, in which order, from which files, in how much time."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from blabberseg_ros.backends import fpseg
from blabberseg_ros.backends.fpseg import FpSegBackend, SemanticMap
from blabberseg_ros.backends.fpseg_fit import fitted_size, matrices_in, matrices_out
from blabberseg_ros.backends.values import Query
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.main import main
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.errors import BundleError, Cancelled, ParameterError, PromptError
from blabberseg_ros.heatmap import FusionOptions, blur_and_resize
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.fpseg_config import CITYSCAPES_CLASSES
from blabberseg_ros.models.fpseg_prompts import ClassPrompt, write_prompts
from blabberseg_ros.models.random_fpseg import SMALL, random_fpseg
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.segmenter import Segmenter

SIZE = (48, 64)
UNSAFE = ('building', 'tree', 'person')
SAFE = ('grass', 'soil')


@pytest.fixture(scope='module')
def folder(make_random_bundle):
    return make_random_bundle('fpseg')


@pytest.fixture
def backend(folder):
    backend = FpSegBackend(load_bundle(folder), OnnxRuntimeCpu())
    backend.activate()
    yield backend
    backend.deactivate()


@pytest.fixture(scope='module')
def image():
    small = np.random.default_rng(5).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def query(positive=2, negative=3, **options):
    return Query((False,) * negative + (True,) * positive, FusionOptions(blur_kernel_size=5), SIZE,
                 **options)


def decoded(backend, code, *names):
    return backend.to_host(backend.decode(code, backend.encode_prompts(names)))


def test_classes_are_chosen_and_ordered_by_each_call(backend, image):
    code = backend.encode_image(image)
    few = decoded(backend, code, 'water', 'field', 'tree')
    assert few.shape == (3, 64, 64)
    other = decoded(backend, code, 'tree', 'water')
    np.testing.assert_allclose(other, few[[2, 0]], atol=1e-5)


def test_a_class_that_two_prompts_mean_is_decoded_once(backend, image):
    code = backend.encode_image(image)
    assert decoded(backend, code, 'tree', 'Trees', 'grass').shape[0] == 2


def test_a_prompt_may_mean_several_classes(backend):
    """By the aliases of the bundle; a class of both kinds counts as negative."""
    codes = backend.encode_prompts(['grass', 'open-area', 'water'])
    # Rows in the order of first mention: grass, soil, field, water.
    assert codes[1]['classes'].tolist() == [5, 6, 10]
    assert backend.weights(codes, (False, True, False)).tolist() == [0, 1, 1, 0]
    assert 'grass, soil, field' in backend.describe_match('open-area', codes[1])
    assert backend.describe_match('grass', codes[0]) == ''


def test_unknown_names_are_refused_with_the_list(backend):
    with pytest.raises(PromptError, match=r"'moon'.*building, tree, .*field"):
        backend.read_prompt('moon')
    with pytest.raises(PromptError, match='moon'):
        backend.encode_prompts(['tree', 'moon'])


@pytest.mark.parametrize('text', ['water, moon, mars', 'moon, water, mars', ', moon, mars'])
def test_no_part_of_a_prompt_is_dropped(backend, text):
    """A danger that nobody looks for would be safe ground."""
    with pytest.raises(PromptError, match=r"'moon, mars'.*building, tree, .*field"):
        backend.read_prompt(text)
    with pytest.raises(PromptError, match='moon, mars'):
        backend.encode_prompts(['tree', text])


def test_classes_from_another_file(backend, image, tmp_path):
    own = {prompt.name: prompt for prompt in backend._classes.prompts}
    path = tmp_path / 'more.safetensors'
    roof = ClassPrompt('roof tile', own['building'].tokens, own['building'].dense)
    short = ClassPrompt('short', own['tree'].tokens[:1], 2 * own['tree'].dense)
    write_prompts(path, [roof, short])
    code = backend.encode_image(image)
    before = decoded(backend, code, 'building', 'tree')
    assert backend.add_classes(path) == ('roof tile', 'short')
    together = decoded(backend, code, 'short', 'Roof Tile', 'tree', 'building')
    np.testing.assert_allclose(together[1], before[0], atol=1e-5)
    np.testing.assert_allclose(together[[3, 2]], before, atol=1e-5)
    assert np.abs(together[0] - before[1]).max() > 0.1
    assert backend.class_names[-2:] == ('roof tile', 'short')


@pytest.mark.parametrize(('name', 'shape', 'message'), [
    ('Tree', (3, 32), 'twice'), ('trees', (3, 32), 'twice'),
    ('Roofs', (3, 32), 'take over a word that stands for building'),
    ('new', (3, 16), '16 wide'), ('new', (4, 32), '4 tokens')])
def test_classes_that_do_not_fit_are_refused(backend, tmp_path, name, shape, message):
    path = tmp_path / 'more.safetensors'
    write_prompts(path, [ClassPrompt(name, np.zeros(shape), np.zeros(shape[1]))])
    with pytest.raises(BundleError, match=message):
        backend.add_classes(path)
    assert len(backend.class_names) == 11
    tree, roof = backend.encode_prompts(['trees', 'roof'])
    assert (tree['classes'].tolist(), roof['classes'].tolist()) == ([1], [0])


@pytest.mark.parametrize('blur', [1, 5])
def test_the_probability_follows_the_rule(backend, image, blur):
    codes = backend.encode_prompts([*UNSAFE, *SAFE])
    asked = Query((False,) * 3 + (True,) * 2, FusionOptions(blur_kernel_size=blur), SIZE)
    code = backend.encode_image(image)
    answer = backend.answer(code, codes, asked)
    logits = backend.to_host(backend.decode(code, codes)).astype(np.float64)
    shares = np.exp(logits)
    safe = np.float32(shares[3:].sum(0) / (1 + shares.sum(0)))
    expected = blur_and_resize(cv2.resize(safe, (256, 256)), blur, *SIZE)
    np.testing.assert_allclose(answer.probability, expected, atol=1e-5)
    np.testing.assert_allclose(backend.to_image(
        backend.reference_probability(logits, codes, asked.is_positive), blur, SIZE), expected,
        atol=1e-5)


def test_what_no_class_claims_is_not_safe(backend, image):
    """One safe class alone: the background is the other."""
    codes = backend.encode_prompts(['grass'])
    code = backend.encode_image(image)
    logits = backend.to_host(backend.decode(code, codes))
    small = backend.reference_probability(logits, codes, (True,))
    np.testing.assert_allclose(
        cv2.resize(1 / (1 + np.exp(-logits[0])), (256, 256)), small, atol=1e-5)


class SlowDecoder:
    """Make each class take a time of its own choosing, by a clock that only it moves.

    The first run of each number of classes takes `build_s` more.
    """

    def __init__(self, backend, monkeypatch, class_s, build_s=0.0):
        self.now_s, self.class_s, self.decoded = 0.0, class_s, []
        decoder = backend.engine('decoder')
        infer = decoder.infer

        def slow(feeds):
            count = len(feeds['tokens'])
            self.now_s += self.class_s * count + build_s * (count not in self.decoded)
            self.decoded.append(count)
            return infer(feeds)

        monkeypatch.setattr(decoder, 'infer', slow)
        monkeypatch.setattr(fpseg.time, 'perf_counter', lambda: self.now_s)


def answered(backend, image, budget_ms, names=(*UNSAFE, *SAFE), negative=3):
    asked = query(len(names) - negative, negative, decode_budget_ms=budget_ms)
    return backend.answer(backend.encode_image(image), backend.encode_prompts(names), asked)


def test_the_budget_is_kept(backend, image, monkeypatch):
    clock = SlowDecoder(backend, monkeypatch, 0.010)
    whole = answered(backend, image, None)
    assert clock.decoded == [5]
    first = answered(backend, image, 35.0)
    # Nothing is known of the cost before the first class.
    assert clock.decoded == [5, 1, 2]
    assert backend.not_decoded == SAFE
    assert 'not decoded within 35 ms' in first.notes[0]
    assert 'grass, soil' in first.notes[0]
    # Nobody looked for safe ground.
    assert not first.mask.any()
    assert not first.threshold.success
    second = answered(backend, image, 45.0)
    assert clock.decoded[3:] == [4]
    assert backend.not_decoded == ('soil',)
    # What was found counts; what was not looked for is not safe.
    assert 0 < second.probability.max() < whole.probability.max() + 1e-6
    third = answered(backend, image, 55.0)
    assert (backend.not_decoded, third.notes) == ((), ())
    np.testing.assert_allclose(third.probability, whole.probability, atol=1e-5)


class BuiltForEachShape(OnnxRuntimeCpu):
    """Stands for a GPU's engine."""

    device = 'cuda'
    per_shape = True


def test_what_an_engine_takes_to_be_built_is_not_a_class_s_cost(folder, image, monkeypatch):
    backend = FpSegBackend(load_bundle(folder), BuiltForEachShape())
    for _ in range(2):  # the second time, everything is built anew
        backend.activate()
        with monkeypatch.context() as patch:
            clock = SlowDecoder(backend, patch, 0.010, build_s=3.0)
            for _ in range(2):
                answered(backend, image, 75.0)
                assert backend.not_decoded == ()
        assert clock.decoded[:4] == [8, 4, 2, 1]
        assert set(clock.decoded[4:]) <= {8, 4, 2, 1}
        assert sum(clock.decoded[4:]) == 10
        backend.deactivate()


def test_a_danger_that_was_not_looked_for_may_be_anywhere(backend, image, monkeypatch):
    SlowDecoder(backend, monkeypatch, 0.010)
    answered(backend, image, 1000.0)
    answer = answered(backend, image, 25.0)
    assert backend.not_decoded == ('person', *SAFE)
    assert answer.probability.max() == 0
    assert not answer.mask.any()


def test_the_first_class_is_decoded_in_any_case(backend, image, monkeypatch):
    clock = SlowDecoder(backend, monkeypatch, 0.010)
    for _ in range(2):
        answered(backend, image, 0.001)
    assert clock.decoded == [1, 1]
    # A machine that becomes faster is noticed.
    clock.class_s = 0.0001
    for _ in range(12):
        answered(backend, image, 5.0)
    assert backend.not_decoded == ()


def test_a_caller_who_has_left_ends_the_work(backend, image):
    asked = query(cancelled=lambda: True)
    with pytest.raises(Cancelled):
        backend.answer(backend.encode_image(image),
                       backend.encode_prompts([*UNSAFE, *SAFE]), asked)


def test_the_semantic_map(backend, image, monkeypatch):
    code = backend.encode_image(image)
    codes = backend.encode_prompts(['soil', 'person', 'tree'])
    found = backend.semantic_map(code, codes, SIZE)
    logits = backend.to_host(backend.decode(code, codes))
    expected = np.where(logits.max(0) > 0, logits.argmax(0), -1)
    np.testing.assert_array_equal(found.classes, expected)
    assert (found.names, found.not_decoded) == (('soil', 'person', 'tree'), ())
    assert set(np.unique(found.at_size(*SIZE))) <= set(np.unique(expected))
    assert found.at_size(*SIZE).shape == SIZE
    SlowDecoder(backend, monkeypatch, 0.010)
    short = backend.semantic_map(code, codes, SIZE, decode_budget_ms=15.0)
    assert (short.names, short.not_decoded) == (('soil',), ('person', 'tree'))
    np.testing.assert_array_equal(short.classes, np.where(logits[0] > 0, 0, -1))


@pytest.fixture(scope='module')
def cityscapes_folder(tmp_path_factory):
    """Return a bundle with the 33 classes of the published weights."""
    folder = tmp_path_factory.mktemp('cityscapes') / 'bundle'
    config = replace(SMALL, class_names=CITYSCAPES_CLASSES, input_size_px=64)
    export_bundle(random_fpseg(config), folder, name='cityscapes', source='random weights',
                  licence='Apache-2.0')
    return folder


def test_a_label_map_of_more_classes_than_share_a_run(cityscapes_folder, image, root_dir,
                                                      tmp_path):
    prompts = PromptSet.from_yaml(root_dir / 'config' / 'prompts_cityscapes.yaml')
    with Segmenter.open(cityscapes_folder, engine='onnxruntime-cpu',
                        cache_dir=tmp_path) as segmenter:
        assert segmenter.segment(image, prompts).cache_hits.prompts_encoded == len(prompts)
        backend = segmenter.backend
        before = backend.run_counts.decoder
        found = segmenter.label_map(image)
        assert backend.run_counts.decoder - before == -(-33 // backend.kind.decode_group) > 1
        assert backend.run_counts.image_encoder == 1
        assert found.names == (*CITYSCAPES_CLASSES, 'none')
        assert found.labels.shape == SIZE
        assert found.labels.dtype == np.uint8
        logits = decoded(backend, backend.encode_image(image), *CITYSCAPES_CLASSES)
    assert len(logits) == 33
    small = np.where(logits.max(0) > 0, logits.argmax(0), 33).astype(np.uint8)
    np.testing.assert_array_equal(found.labels, cv2.resize(
        small, SIZE[::-1], interpolation=cv2.INTER_NEAREST_EXACT))
    # Classes of each group, and pixels that show none.
    assert set(np.unique(found.labels) // 8) == {0, 1, 2, 3, 4}
    assert 33 in found.labels


def test_a_budget_leaves_the_rest_undecoded_in_the_order_of_the_prompts(
        cityscapes_folder, image, monkeypatch):
    backend = FpSegBackend(load_bundle(cityscapes_folder), OnnxRuntimeCpu())
    backend.activate()
    clock = SlowDecoder(backend, monkeypatch, 0.010)
    answer = answered(backend, image, 255.0, CITYSCAPES_CLASSES, 30)
    assert clock.decoded == [1, 8, 8, 8]
    assert backend.not_decoded == CITYSCAPES_CLASSES[25:]
    assert not answer.mask.any()
    backend.deactivate()


def test_the_command_writes_a_label_map(folder, image, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
    assert main(['segment', '--bundle', str(folder), '--engine', 'onnxruntime-cpu', '--out',
                 str(tmp_path / 'out'), str(tmp_path / 'a.png')]) == 0
    picture = cv2.imread(str(tmp_path / 'out' / 'a_labels.png'))[..., ::-1]
    np.testing.assert_array_equal(picture[:SIZE[0], :SIZE[1]], image)


def test_a_map_is_enlarged_by_its_nearest_pixels():
    found = SemanticMap(np.array([[0, -1], [2, 1]], np.int32), ('a', 'b', 'c'))
    np.testing.assert_array_equal(found.at_size(4, 4), np.kron(found.classes, np.ones((2, 2))))


def test_the_segmenter_passes_the_options_on(folder, image, tmp_path):
    path = tmp_path / 'more.safetensors'
    write_prompts(path, [ClassPrompt('magma', np.ones((3, 32)), np.zeros(32))])
    prompts = PromptSet(('grass',), ('magma', 'tree'), 'photo of {}')
    with Segmenter.open(folder, engine='onnxruntime-cpu', cache_dir=tmp_path,
                        classes_files=[path], decode_budget_ms=1e-6) as segmenter:
        heatmap = segmenter.segment(image, prompts)
        assert heatmap.cache_hits.prompts_encoded == 3
    assert 'counted as unsafe: tree, grass' in heatmap.message
    assert not heatmap.mask.any()
    assert not heatmap.success
    assert not list(tmp_path.rglob('*.npz'))
    with pytest.raises(ParameterError, match='no time'):
        Segmenter.open(folder, decode_budget_ms=0)


def test_other_families_refuse_the_options(make_random_bundle, tmp_path):
    other = make_random_bundle('clipseg')
    with pytest.raises(ParameterError, match='clipseg'):
        Segmenter.open(other, engine='onnxruntime-cpu', decode_budget_ms=5.0)
    with pytest.raises(BundleError, match='takes no classes'):
        Segmenter.open(other, engine='onnxruntime-cpu', classes_files=[tmp_path / 'more'])


@pytest.mark.parametrize(('fit', 'height', 'width', 'expected'), [
    ('squash', 600, 800, (1024, 1024)), ('letterbox', 600, 800, (768, 1024)),
    ('letterbox', 800, 600, (1024, 768)), ('letterbox', 1, 3000, (1, 1024)),
    ('letterbox', 1024, 1024, (1024, 1024))])
def test_fitted_size(fit, height, width, expected):
    assert fitted_size(height, width, 1024, fit) == expected


@pytest.mark.parametrize('fit', ['squash', 'letterbox'])
def test_there_and_back_keeps_a_constant(fit):
    rows, cols = matrices_in(30, 50, 64, fit)
    inside = rows @ np.ones((30, 50), np.float32) @ cols
    height, width = fitted_size(30, 50, 64, fit)
    np.testing.assert_allclose(inside[:height, :width], 1, atol=1e-5)
    assert not inside[height:].any()
    assert not inside[:, width:].any()
    rows, cols = matrices_out(30, 50, (16, 64), fit, 7)
    np.testing.assert_allclose(rows @ np.ones((16, 16), np.float32) @ cols, 1, atol=1e-5)
