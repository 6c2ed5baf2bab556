# SPDX-License-Identifier: Apache-2.0
"""The parity gate refuses engines with mistakes that are really made, and accepts true ones."""

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU

from blabberseg_ros.backends.clipseg import ClipSegBackend
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.parity.gate import COSINE_REQUIRED, IOU_REQUIRED, check_parity, judge
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.parity.report import Outcome

PATCH_PX = 16
LOOSEST = min(COSINE_REQUIRED.values())


class AlteredBackend(ClipSegBackend):
    """ONNX Runtime, with the logits altered on their way to everything that follows."""

    def __init__(self, bundle, alter):
        super().__init__(bundle, OnnxRuntimeCpu())
        self._alter = alter

    def decode(self, image, prompts):
        return np.ascontiguousarray(self._alter(super().decode(image, prompts)))


class InvertedMask(ClipSegBackend):
    """ONNX Runtime with the right probability and the wrong mask."""

    def answer(self, image, prompts, query):
        from dataclasses import replace

        answer = super().answer(image, prompts, query)
        return replace(answer, mask=255 - answer.mask)


@pytest.fixture(scope='module')
def bundle(random_bundle):
    return load_bundle(random_bundle)


@pytest.fixture(scope='module')
def reference(bundle):
    """Return the network in torch, active."""
    backend = ClipSegBackend(bundle, TorchCpu())
    backend.activate()
    yield backend
    backend.deactivate()


def report_of(reference, tested):
    tested.activate()
    try:
        return check_parity(reference, tested)
    finally:
        tested.deactivate()


def constant(logits):
    return np.zeros_like(logits)


def swapped(logits):
    # The first two mean nearly the same: buildings and roofs.
    return logits[[0, 2, 1, *range(3, len(logits))]]


def swapped_positive_and_negative(logits):
    return logits[[len(logits) - 1, *range(1, len(logits) - 1), 0]]


def shifted(logits):
    return np.roll(logits, PATCH_PX, axis=2)


def scaled_to_nan(logits):
    return np.where(logits == logits.max(), np.float32(np.nan), logits)


def plain_gelu(model):
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, QuickGELU):
                setattr(module, name, torch.nn.GELU())


def no_position(model):
    with torch.no_grad():
        model.visual.positional_embedding.zero_()


def test_onnx_runtime_passes(bundle, reference):
    report = report_of(reference, ClipSegBackend(bundle, OnnxRuntimeCpu()))
    assert report.passed, report.summary()
    assert report.figures['cosine_min'] > 0.99999
    assert report.figures['max_dp'] < 1e-4
    assert report.figures['masks_decidable'] >= 3


@pytest.mark.parametrize('alter', [constant, swapped, swapped_positive_and_negative, shifted,
                                   scaled_to_nan])
def test_altered_logits_are_refused(bundle, reference, alter):
    assert_refused(report_of(reference, AlteredBackend(bundle, alter)))


def test_a_lost_position_embedding_is_refused(bundle, reference):
    assert_refused(report_of(reference, ClipSegBackend(bundle, TorchCpu(modify=no_position))))


def test_a_plain_gelu_is_refused(bundle, reference):
    """It is a small mistake in one number and a large one in every mask's border."""
    report = report_of(reference, ClipSegBackend(bundle, TorchCpu(modify=plain_gelu)))
    assert report.outcome is Outcome.FAIL, report.summary()
    # Where half precision lowers the bar for the logits, the masks of a trained model tell.
    outcome, _ = judge(report.frames, LOOSEST, IOU_REQUIRED)
    assert outcome is Outcome.FAIL


def test_a_wrong_mask_is_refused(bundle, reference):
    report = report_of(reference, InvertedMask(bundle, OnnxRuntimeCpu()))
    assert report.outcome is Outcome.FAIL
    assert report.figures['mask_errors'] > 0


def test_flat_masks_are_not_a_pass(bundle, reference):
    """Positive and negative prompts that are the same give one probability everywhere."""
    from blabberseg_ros.prompts import PromptSet

    same = PromptSet(('grass',), ('grass',))
    tested = ClipSegBackend(bundle, OnnxRuntimeCpu())
    tested.activate()
    report = check_parity(reference, tested, prompts=same)
    tested.deactivate()
    assert report.outcome is Outcome.UNDECIDABLE
    assert not report.passed
    assert 'decide nothing' in report.summary()


# The bundle that ships: trained, so that its masks count as well. That its graphs in fp16 pass is
# in test_reduced_graphs.py.

FEW = 5


class Remembering(ClipSegBackend):
    """The reference, which is asked the same for every mutant."""

    def __init__(self, bundle):
        super().__init__(bundle, TorchCpu())
        self._known = {}

    def _once(self, key, compute):
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def encode_prompts(self, texts):
        return self._once(tuple(texts), lambda: super(Remembering, self).encode_prompts(texts))

    def encode_image(self, image):
        return self._once(image.tobytes(), lambda: super(Remembering, self).encode_image(image))

    def decode(self, image, prompts):
        return self._once((id(image), len(prompts)),
                          lambda: super(Remembering, self).decode(image, prompts))


@pytest.fixture(scope='module')
def demo(root_dir):
    return load_bundle(root_dir / 'engines' / 'clipseg_demo')


@pytest.fixture(scope='module')
def demo_reference(demo):
    backend = Remembering(demo)
    backend.activate()
    yield backend
    backend.deactivate()


def few_prompts_report(reference, tested):
    tested.activate()
    try:
        return check_parity(reference, tested, prompts=tested.example_prompts(FEW),
                            masks_required=False)
    finally:
        tested.deactivate()


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_half_precision_passes_with_trained_weights(demo, demo_reference, precision):
    report = report_of(demo_reference, ClipSegBackend(demo, TorchCpu(precision)))
    assert report.passed, report.summary()
    assert report.cosine_required == LOOSEST
    assert report.figures['cosine_min'] < 0.999999, f'nothing was computed in {precision}'


@pytest.mark.parametrize('mutate', [plain_gelu, no_position, swapped,
                                    swapped_positive_and_negative, shifted])
def test_mutants_with_trained_weights_are_refused(demo, demo_reference, mutate):
    if mutate in (plain_gelu, no_position):
        tested = ClipSegBackend(demo, TorchCpu(modify=mutate))
    else:
        tested = AlteredBackend(demo, mutate)
    report = few_prompts_report(demo_reference, tested)
    assert report.outcome is Outcome.FAIL, report.summary()
    # By the bar of half precision as well, which must not hide the mistake.
    outcome, _ = judge(report.frames, LOOSEST, IOU_REQUIRED, masks_required=False)
    assert outcome is Outcome.FAIL, report.summary()


def assert_refused(report):
    """Refused, and by the loosest bar as well: half precision must not hide the mistake."""
    assert report.outcome is Outcome.FAIL, report.summary()
    outcome, _ = judge(report.frames, LOOSEST, None)
    assert outcome is Outcome.FAIL, report.summary()
