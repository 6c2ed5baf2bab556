# SPDX-License-Identifier: Apache-2.0
"""The baselines give our answers, otherwise their times would say nothing."""

import numpy as np
import pytest
import torch

from blabberseg_ros.bench.baselines import (
    BlabbersegOriginal,
    Dovesei,
    hugging_face_model,
)
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.heatmap import FusionOptions, apply_threshold, find_threshold
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.import_clipseg import import_hugging_face
from blabberseg_ros.models.random_clipseg import random_clipseg
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.prompts import default_prompts
from blabberseg_ros.segmenter import Segmenter

SMALL = {'vision_width': 64, 'vision_heads': 2, 'vision_mlp': 128, 'text_width': 32,
         'text_heads': 2, 'text_layers': 2, 'text_mlp': 64, 'embed_dim': 24, 'reduce_dim': 16,
         'decoder_ffn': 2048}


@pytest.mark.parametrize('size_px', [(352, 352), (128, 96)])
def test_all_answer_alike(random_bundle, tmp_path, size_px):
    prompts = default_prompts()
    image = moving_frames(1, size_px)[0]
    bundle = load_bundle(random_bundle)
    with Segmenter.open(random_bundle, cache_dir=tmp_path) as segmenter:
        ours = segmenter.segment(image, prompts)
    dovesei = Dovesei(bundle, 'cpu', 'fp32').answer(image, prompts)
    original = BlabbersegOriginal(bundle, 'cpu', 'fp32').answer(image, prompts)
    np.testing.assert_allclose(original.probability, dovesei.probability, atol=1e-5)
    # PIL rounds to whole grey levels after each pass, we once: nothing differs without resizing.
    atol = 1e-5 if size_px == (352, 352) else 5e-3
    np.testing.assert_allclose(ours.probability, dovesei.probability, atol=atol)
    assert ours.probability.std() > 1e-3
    for answer in (dovesei, original):
        threshold = find_threshold(answer.probability, FusionOptions())
        np.testing.assert_array_equal(
            answer.mask, apply_threshold(answer.probability, threshold, 'unsafe'))


@pytest.mark.parametrize('head', ['simple', 'complex'])
def test_the_conversion_is_undone_by_the_importer(tmp_path, head):
    """All weights arrive, in the right places: the importer reads back what was converted."""
    model = random_clipseg(ClipSegConfig(head=head, **SMALL))
    theirs = hugging_face_model(model)
    theirs.save_pretrained(tmp_path)
    back = import_hugging_face(tmp_path).model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, back[name]), name
