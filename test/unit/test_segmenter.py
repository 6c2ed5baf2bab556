# SPDX-License-Identifier: Apache-2.0
"""The segmenter on the real ONNX Runtime engine: right answers, and nothing computed twice."""

from dataclasses import replace

import numpy as np
import pytest

from blabberseg_ros.backends.values import PromptCode, RunCounts
from blabberseg_ros.errors import (
    BundleError,
    Cancelled,
    EngineError,
    ImageError,
    NotFiniteError,
    PromptError,
)
from blabberseg_ros.frame_cache import MAX_FRAMES
from blabberseg_ros.heatmap import FusionOptions, blur_and_resize, positive_probability
from blabberseg_ros.prompts import PromptSet, default_prompts
from blabberseg_ros.segmenter import Segmenter

PROMPTS = default_prompts()


def frame(seed, height=96, width=128):
    """Return a random frame."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def segmenter(random_bundle, tmp_path):
    """Return an active segmenter with an empty prompt store."""
    with Segmenter.open(random_bundle, cache_dir=tmp_path / 'cache') as opened:
        yield opened


def counts_of(segmenter, action):
    """Return how often each network runs during an action."""
    before = segmenter.run_counts
    action()
    after = segmenter.run_counts
    return RunCounts(after.image_encoder - before.image_encoder,
                     after.text_encoder - before.text_encoder, after.decoder - before.decoder)


def test_probability_is_that_of_the_reference(segmenter):
    image = frame(0)
    heatmap = segmenter.segment(image, PROMPTS, FusionOptions(blur_kernel_size=7))
    codes = segmenter.backend.encode_prompts(PROMPTS.texts)
    logits = segmenter.backend.decode(segmenter.backend.encode_image(image), codes)
    expected = blur_and_resize(
        positive_probability(np.asarray(logits), np.array(PROMPTS.is_positive)), 7, 96, 128)
    np.testing.assert_allclose(heatmap.probability, expected, atol=1e-5)
    assert heatmap.mask.shape == (96, 128)
    assert heatmap.mask.dtype == np.uint8
    np.testing.assert_array_equal(
        heatmap.mask == 255, heatmap.probability > np.float32(heatmap.threshold))


def test_a_new_frame_with_known_prompts_runs_the_image_encoder_once_and_no_text(segmenter):
    segmenter.encode(PROMPTS)
    counts = counts_of(segmenter, lambda: segmenter.segment(frame(1), PROMPTS))
    # Thirteen prompts: the CPU decodes at most eight at once.
    assert counts == RunCounts(image_encoder=1, text_encoder=0, decoder=2)


def test_the_same_frame_never_runs_the_image_encoder_again(segmenter):
    image = frame(2)
    segmenter.segment(image, PROMPTS)
    others = [
        (PROMPTS, FusionOptions(safety_threshold=.5)),
        (PROMPTS, FusionOptions(blur_kernel_size=3)),
        (PromptSet(('sand',), ('water',)), FusionOptions())]
    for prompts, fusion in others:
        before = segmenter.run_counts.image_encoder
        segmenter.segment(image.copy(), prompts, fusion)
        assert segmenter.run_counts.image_encoder == before
    assert segmenter.segment(image, PROMPTS).cache_hits.image


def test_one_new_prompt_among_thirteen_encodes_one_text(segmenter):
    segmenter.encode(PROMPTS)
    changed = PromptSet(PROMPTS.positive, (*PROMPTS.negative[:-1], 'rubble'), PROMPTS.template)
    report = segmenter.encode(changed)
    assert (report.encoded, report.cached) == (1, 12)


def test_prompts_survive_a_restart_and_then_need_no_text_tower(random_bundle, tmp_path):
    image = frame(3)
    with Segmenter.open(random_bundle, cache_dir=tmp_path) as first:
        before = first.segment(image, PROMPTS)
    with Segmenter.open(random_bundle, cache_dir=tmp_path) as second:
        after = second.segment(image, PROMPTS)
        assert second.run_counts.text_encoder == 0
    np.testing.assert_array_equal(before.probability, after.probability)


def test_a_torn_prompt_file_is_encoded_again(random_bundle, tmp_path):
    with Segmenter.open(random_bundle, cache_dir=tmp_path) as first:
        first.encode(PROMPTS)
    torn = sorted(tmp_path.rglob('*.safetensors'))[0]
    torn.write_bytes(torn.read_bytes()[:-5])
    with Segmenter.open(random_bundle, cache_dir=tmp_path) as second:
        assert second.encode(PROMPTS).encoded == 1


def test_a_reused_buffer_is_not_mistaken_for_the_old_frame(segmenter):
    buffer = frame(4)
    segmenter.segment(buffer, PROMPTS)
    buffer[...] = frame(5)
    assert not segmenter.segment(buffer, PROMPTS).cache_hits.image


def test_the_image_cache_holds_the_last_few_frames_only(segmenter):
    frames = [frame(seed) for seed in range(MAX_FRAMES + 1)]
    for image in frames:
        segmenter.segment(image, PROMPTS)
    assert segmenter.segment(frames[-1], PROMPTS).cache_hits.image
    assert not segmenter.segment(frames[0], PROMPTS).cache_hits.image


def test_duplicates_count_twice_in_the_softmax_but_are_encoded_once(segmenter):
    twice = PromptSet(('grass', 'grass'), ('roof',))
    assert segmenter.encode(twice).encoded == 2  # grass and roof
    image = frame(6)
    once = segmenter.segment(image, PromptSet(('grass',), ('roof',))).probability
    doubled = segmenter.segment(image, twice).probability
    assert (doubled > once).all()


def test_a_long_prompt_is_cut_and_the_message_says_which_and_where(segmenter):
    long = 'grass and ' * 60
    heatmap = segmenter.segment(frame(7), PromptSet((long,), ('roof',)))
    assert 'grass and grass' in heatmap.message
    assert 'cut at character' in heatmap.message


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (353, 7), (480, 640), (1080, 1921)])
def test_any_image_size_gets_a_mask_of_that_size(segmenter, size):
    assert segmenter.segment(frame(8, *size), PROMPTS).mask.shape == size


@pytest.mark.parametrize('image', [
    np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32),
    np.zeros((0, 4, 3), np.uint8), np.broadcast_to(np.uint8(0), (16_000, 16_000, 3))])
def test_what_is_not_an_image_is_refused(segmenter, image):
    with pytest.raises(ImageError):
        segmenter.segment(image, PROMPTS)


def test_nan_is_an_error_and_is_not_remembered(segmenter):
    image = frame(9)
    good = segmenter.segment(image, PROMPTS)
    cache, text = segmenter._prompts, PROMPTS.texts[0]
    known = cache._prompts[text]
    poison = PromptCode((('mul', np.full_like(known.code['mul'], np.nan)),
                         ('add', known.code['add'])))
    cache._prompts[text] = replace(known, code=poison)
    cache._sets.clear()
    with pytest.raises(NotFiniteError):
        segmenter.segment(image, PROMPTS)
    segmenter.forget()
    np.testing.assert_array_equal(segmenter.segment(image, PROMPTS).mask, good.mask)


def test_many_prompts_are_decoded_in_groups_with_the_same_result(segmenter):
    image = frame(10)
    few = PromptSet(('grass',), ('roof', 'water'))
    # Repeating every prompt leaves the softmax's ratios as they are.
    many = PromptSet(few.positive * 20, few.negative * 20)
    np.testing.assert_allclose(segmenter.segment(image, many).probability,
                               segmenter.segment(image, few).probability, atol=1e-5)


def test_a_caller_who_lost_interest_ends_the_work(segmenter):
    with pytest.raises(Cancelled):
        segmenter.segment(frame(11), PROMPTS, cancelled=lambda: True)
    assert segmenter.segment(frame(11), PROMPTS).mask.any()


def test_control_strings_are_refused_before_anything_runs(segmenter):
    with pytest.raises(PromptError):
        PromptSet(('<end_of_text>',), ('roof',))


def test_a_contradicting_backend_and_an_unknown_engine_are_refused(random_bundle):
    with pytest.raises(BundleError, match='lseg'):
        Segmenter.open(random_bundle, backend='lseg')
    with pytest.raises(EngineError, match='onnxruntime-cpu'):
        Segmenter.open(random_bundle, engine='abacus')


def test_inactive_segmenter_says_so(random_bundle, tmp_path):
    segmenter = Segmenter.open(random_bundle, cache_dir=tmp_path)
    with pytest.raises(EngineError, match='activate'):
        segmenter.segment(frame(0), PROMPTS)


def test_a_known_prompt_set_costs_no_look_at_its_texts(segmenter, monkeypatch):
    prompts = PromptSet(('grass', 'grass'), ('roof',), 'a view of {}')
    first = segmenter.encode(prompts)
    monkeypatch.setattr(segmenter.backend, 'texts', None)
    again = segmenter.encode(PromptSet(*(getattr(prompts, name) for name in (
        'positive', 'negative', 'template'))))
    assert (again.encoded, again.cached) == (0, 2)
    assert (again.truncated, again.unseen_words) == (first.truncated, first.unseen_words)
    assert segmenter.segment(frame(11), prompts).cache_hits.prompts == 2


def test_frames_are_told_apart_by_every_pixel_however_they_lie_in_memory(segmenter):
    image = frame(12)
    runs = segmenter.run_counts.image_encoder
    padded = np.zeros((image.shape[0], image.shape[1] + 5, 3), np.uint8)
    padded[:, :image.shape[1]] = image
    changed = image.copy()
    changed[-1, -1, -1] ^= 1
    for pixels, known in ((image, False), (image.copy(), True),
                          (padded[:, :image.shape[1]], True), (changed, False), (image, True)):
        assert segmenter.segment(pixels, PROMPTS).cache_hits.image == known
    assert segmenter.run_counts.image_encoder == runs + 2


def test_an_engine_that_failed_is_used_only_if_no_other_can_be(random_bundle, tmp_path,
                                                               monkeypatch):
    from blabberseg_ros.engines import choose
    from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu

    class Other(OnnxRuntimeCpu):
        name = 'other'

    monkeypatch.setattr(choose, 'engine_kinds', lambda: [Other(), OnnxRuntimeCpu()])
    for avoided, used in (((), 'other'), (('other',), 'onnxruntime-cpu'),
                          (('other', 'onnxruntime-cpu'), 'other')):
        opened = Segmenter.open(random_bundle, cache_dir=tmp_path, check_parity=False)
        opened.avoid(avoided)
        with opened:
            assert opened.engine_name == used
    named = Segmenter.open(random_bundle, engine='other', cache_dir=tmp_path, check_parity=False)
    named.avoid(('other',))
    assert named.engine_name == 'other'
