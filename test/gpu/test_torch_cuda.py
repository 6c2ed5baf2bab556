# SPDX-License-Identifier: Apache-2.0
"""The torch engine on a real GPU: the answers of ONNX Runtime on the CPU, by fused kernels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from blabberseg_ros.backends.clipseg import ClipSegBackend
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.engines.torch_cuda import TorchCuda
from blabberseg_ros.heatmap import FusionOptions, apply_threshold, find_threshold
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.random_clipseg import random_clipseg
from blabberseg_ros.prompts import PromptSet, default_prompts
from blabberseg_ros.segmenter import Segmenter

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason='gpu: there is none here')]


@pytest.fixture(scope='module')
def fused_bundle(random_bundle, tmp_path_factory) -> Path:
    """Return a bundle whose sizes let the fused kernels run."""
    folder = tmp_path_factory.mktemp('fused')
    config = ClipSegConfig(
        vision_width=96, vision_heads=3, vision_mlp=384, text_width=48, text_heads=3,
        text_layers=2, text_mlp=192, embed_dim=48, reduce_dim=32, decoder_ffn=256)
    export_bundle(random_clipseg(config), folder, name='fused', source='random weights',
                  licence='Apache-2.0', tokenizer_json=random_bundle / 'tokenizer.json')
    return folder


@pytest.fixture(scope='module', params=['fp16', 'bf16', 'fp32'])
def pair(request, fused_bundle):
    """Return two active segmenters, on the CPU and on the GPU, and the precision of the latter."""
    bundle = load_bundle(fused_bundle)
    with Segmenter(ClipSegBackend(bundle, OnnxRuntimeCpu())) as cpu, \
            Segmenter(ClipSegBackend(bundle, TorchCuda(request.param, compiled=False))) as gpu:
        yield cpu, gpu, request.param


@pytest.mark.parametrize('size', [(352, 352), (480, 640), (97, 113)])
def test_probability_is_that_of_the_cpu(pair, size):
    cpu, gpu, precision = pair
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = cpu.segment(image, default_prompts()).probability
    found = gpu.segment(image, default_prompts()).probability
    tolerance = {'fp16': 5e-3, 'bf16': 4e-2, 'fp32': 1e-4}[precision]
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize('fusion', [
    FusionOptions(), FusionOptions(dynamic_threshold=.6), FusionOptions(dynamic_threshold=0),
    FusionOptions(min_threshold=.9), FusionOptions(dynamic_threshold=1.1, on_failure='dovesei')])
def test_mask_and_threshold_follow_from_its_own_probability(pair, fusion):
    _, gpu, _ = pair
    image = np.random.default_rng(2).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    found = gpu.segment(image, default_prompts(), fusion)
    expected = find_threshold(found.probability, fusion)
    assert (found.threshold, found.success) == (expected.value, expected.success)
    np.testing.assert_array_equal(
        found.mask, apply_threshold(found.probability, expected, fusion.on_failure))


def test_prompts_change_without_a_new_image_code(pair):
    _, gpu, _ = pair
    image = np.random.default_rng(3).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    before = gpu.segment(image, default_prompts()).probability
    runs = gpu.run_counts.image_encoder
    after = gpu.segment(image, PromptSet(('water',), ('grass', 'roof'))).probability
    assert gpu.run_counts.image_encoder == runs
    assert np.abs(after - before).max() > 1e-3
    again = gpu.segment(image, default_prompts()).probability
    np.testing.assert_array_equal(again, before)
