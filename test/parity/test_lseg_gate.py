# SPDX-License-Identifier: Apache-2.0
"""The parity gate refuses mistakes that ports of LSeg really make, and accepts true engines."""

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU

from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.models import lseg, lseg_stages
from blabberseg_ros.parity.gate import COSINE_REQUIRED, IOU_REQUIRED, check_parity, judge
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.parity.report import Outcome

# Whatever its precision, no engine with such a mistake may pass.
LOOSEST = min(COSINE_REQUIRED.values())


@pytest.fixture(scope='module')
def bundle(make_random_bundle):
    return load_bundle(make_random_bundle('lseg'))


@pytest.fixture(scope='module')
def reference(bundle):
    """Return the network in torch, active."""
    backend = LSegBackend(bundle, TorchCpu())
    backend.activate()
    yield backend
    backend.deactivate()


def report_of(reference, tested):
    tested.activate()
    try:
        return check_parity(reference, tested)
    finally:
        tested.deactivate()


class AlteredBackend(LSegBackend):
    """ONNX Runtime, with the logits altered on their way to everything that follows."""

    def __init__(self, bundle, alter):
        super().__init__(bundle, OnnxRuntimeCpu())
        self._alter = alter

    def decode(self, image, prompts):
        return np.ascontiguousarray(self._alter(super().decode(image, prompts)))


class MirroredBackend(LSegBackend):
    """ONNX Runtime with red and blue exchanged."""

    def encode_image(self, image):
        return super().encode_image(np.ascontiguousarray(image[..., ::-1]))


class LabelsOnceBackend(LSegBackend):
    """ONNX Runtime with the vector of the first label for all: a cache with a wrong key."""

    def encode_prompts(self, texts):
        codes = super().encode_prompts(texts)
        return [codes[0]] * len(codes)


@torch.no_grad()
def lost_position(model):
    model.vision.pos_embed.zero_()


@torch.no_grad()
def ignored_class_token(model):
    for layer in model.vision.readout:
        layer.shared.weight.zero_()


def exchanged_readouts(model):
    first, second, *rest = model.vision.readout
    model.vision.readout = torch.nn.ModuleList([second, first, *rest])


def last_norm_too(model):
    """Levels are taken before the ViT's last norm."""
    width = model.config.vision_width
    model.vision.blocks[-1] = torch.nn.Sequential(
        model.vision.blocks[-1], torch.nn.LayerNorm(width))


@torch.no_grad()
def dropped_biases(model):
    """The shifts of batch norms that were folded without them."""
    for step in model.steps:
        for conv in (step.refine.conv1, step.refine.conv2):
            conv.bias.zero_()


def joins_left_out(model):
    for step in model.steps[:-1]:
        step.join = torch.nn.Identity()


def plain_gelu_in_the_text_tower(model):
    for block in model.text.transformer.resblocks:
        names = [name for name, part in block.mlp.named_children() if isinstance(part, QuickGELU)]
        assert names
        for name in names:
            setattr(block.mlp, name, torch.nn.GELU())


def texts_see_the_future(model):
    model.text.causal_mask.zero_()


@torch.no_grad()
def head_without_bias(model):
    model.head.bias.zero_()


@pytest.mark.parametrize('modify', [
    lost_position, ignored_class_token, exchanged_readouts, last_norm_too, dropped_biases,
    joins_left_out, texts_see_the_future, head_without_bias])
def test_a_network_with_a_mistake_is_refused(bundle, reference, modify):
    report = report_of(reference, LSegBackend(bundle, TorchCpu(modify=modify)))
    assert report.outcome is Outcome.FAIL, report.summary()
    assert min(frame.cosine for frame in report.frames) < LOOSEST


def test_a_plain_gelu_in_the_text_tower_is_refused(bundle, reference):
    """It is a small mistake in one number and a large one in every mask's border."""
    report = report_of(reference, LSegBackend(
        bundle, TorchCpu(modify=plain_gelu_in_the_text_tower)))
    assert report.outcome is Outcome.FAIL, report.summary()
    # Where half precision lowers the bar for the logits, the masks of a trained model tell.
    outcome, _ = judge(report.frames, LOOSEST, IOU_REQUIRED)
    assert outcome is Outcome.FAIL


@pytest.mark.parametrize('alter', [
    np.zeros_like, lambda logits: logits[::-1], lambda logits: np.roll(logits, 16, axis=2),
    lambda logits: np.where(logits == logits.max(), np.float32(np.nan), logits),
    lambda logits: logits.transpose(0, 2, 1)],
    ids=['constant', 'other order', 'shifted', 'nan', 'transposed'])
def test_altered_logits_are_refused(bundle, reference, alter):
    assert report_of(reference, AlteredBackend(bundle, alter)).outcome is Outcome.FAIL


@pytest.mark.parametrize('kind', [MirroredBackend, LabelsOnceBackend])
def test_a_back_end_with_a_mistake_is_refused(bundle, reference, kind):
    assert report_of(reference, kind(bundle, OnnxRuntimeCpu())).outcome is Outcome.FAIL


def test_doubling_with_other_corners_is_refused(bundle, reference, monkeypatch):
    """Other frameworks' bilinear resize moves the corner pixels."""
    def other_corners(x, height, width):
        return torch.nn.functional.interpolate(x, (height, width), mode='bilinear',
                                               align_corners=False)

    codes = reference.encode_prompts(('grass', 'roof'))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    wanted = reference.to_host(reference.decode(reference.encode_image(image), codes))
    tested = LSegBackend(bundle, TorchCpu())
    tested.activate()
    monkeypatch.setattr(lseg, 'upsampled', other_corners)
    monkeypatch.setattr(lseg_stages, 'upsampled', other_corners)
    got = tested.to_host(tested.decode(tested.encode_image(image), codes))
    tested.deactivate()
    flat = [(value - value.mean()).ravel() for value in (wanted, got)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine < LOOSEST


def test_the_true_engine_is_accepted(bundle, reference):
    report = report_of(reference, LSegBackend(bundle, OnnxRuntimeCpu()))
    assert report.passed, report.summary()
    assert min(frame.cosine for frame in report.frames) > 0.99999


def test_half_precision_by_the_rules_is_accepted(bundle, reference):
    report = report_of(reference, LSegBackend(bundle, TorchCpu('bf16')))
    assert report.passed, report.summary()
    assert report.figures['cosine_min'] < 0.9999999, 'nothing was computed in bf16'
