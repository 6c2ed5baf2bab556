# SPDX-License-Identifier: Apache-2.0
"""What a frame costs, for every family: each image is encoded once, each text too."""

import numpy as np
import pytest

from blabberseg_ros.backends.registry import FAMILIES
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.segmenter import Segmenter

PROMPTS = PromptSet(('grass', 'field'), ('water', 'tree', 'person'))
OTHERS = PromptSet(('soil',), ('building', 'road'))


@pytest.mark.parametrize('family', FAMILIES)
def test_an_image_is_encoded_once_whatever_it_is_asked_for(family, make_random_bundle, tmp_path):
    first, second = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    with Segmenter.open(make_random_bundle(family), engine='onnxruntime-cpu',
                        cache_dir=tmp_path, check_parity=False) as segmenter:
        frames = ((first, PROMPTS, 1), (first, OTHERS, 1), (first.copy(), PROMPTS, 1),
                  (second, PROMPTS, 2), (second, OTHERS, 2), (first, OTHERS, 2))
        texts = []
        for image, prompts, encoded in frames:
            heatmap = segmenter.segment(image, prompts)
            assert segmenter.run_counts.image_encoder == encoded
            texts.append(segmenter.run_counts.text_encoder)
        segmenter.segment(first, PROMPTS, FusionOptions(0.5, 3))
        segmenter.label_map(second)
        assert segmenter.run_counts.image_encoder == 2
        assert heatmap.cache_hits.image
    # One run a set of texts; names of labels and classes need none.
    assert texts == ([1, *[2] * 5] if family in ('clipseg', 'lseg') else [0] * 6)
