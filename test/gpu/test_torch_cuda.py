# SPDX-License-Identifier: Apache-2.0
"""The torch engine on a real GPU: the answers of ONNX Runtime on the CPU, by fused kernels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from blabberseg_ros.backends.clipseg import ClipSegBackend
from blabberseg_ros.backends.values import Query
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines import prompt_padding
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.engines.torch_cuda import TorchCuda
from blabberseg_ros.heatmap import FusionOptions, apply_threshold, find_threshold
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.random_clipseg import random_clipseg
from blabberseg_ros.parity.metrics import centred_cosines
from blabberseg_ros.prompts import PromptSet, default_prompts
from blabberseg_ros.segmenter import Segmenter

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason='gpu: there is none here')]


@pytest.fixture(scope='module')
def fused_bundle(random_bundle, tmp_path_factory) -> Path:
    """Return a bundle whose sizes let the fused kernels run."""
    folder = tmp_path_factory.mktemp('fused')
    config = ClipSegConfig(
        vision_width=192, vision_heads=3, vision_mlp=768, text_width=48, text_heads=3,
        text_layers=2, text_mlp=192, embed_dim=48, reduce_dim=32, decoder_heads=2,
        decoder_ffn=256)
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


TOLERANCES = {'fp16': 5e-3, 'bf16': 4e-2, 'fp32': 1e-4}


@pytest.mark.parametrize('size', [(352, 352), (480, 640), (97, 113)])
def test_probability_is_that_of_the_cpu(pair, size):
    cpu, gpu, precision = pair
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = cpu.segment(image, default_prompts()).probability
    found = gpu.segment(image, default_prompts()).probability
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[precision])


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


def without_padding(monkeypatch, engine):
    monkeypatch.setattr(prompt_padding, 'LENGTHS', ())
    monkeypatch.setattr(engine, '_padded', {})


HALF = FusionOptions(safety_threshold=0.5, dynamic_threshold=0)
TEXTS = default_prompts().texts + tuple(f'thing {index}' for index in range(4))


def answered(segmenter, count):
    """Return the answer for some prompts, every other one positive, and the graph that gave it."""
    backend = segmenter.backend
    image = np.random.default_rng(4).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    query = Query(tuple(index % 2 == 0 for index in range(count)), HALF, (120, 160))
    answer = backend.answer(
        backend.encode_image(image), backend.encode_prompts(TEXTS)[:count], query)
    return answer, next(reversed(backend.engine('answer')._graphs.values()))


@pytest.mark.parametrize('count', [1, 2, 3, 5, 7, 13, 17])
def test_padding_changes_no_answer(pair, count, monkeypatch):
    _, gpu, precision = pair
    answered(gpu, count)
    padded, graph = answered(gpu, count)
    assert len(graph._buffers['mul']) == prompt_padding.padded_length(count)
    without_padding(monkeypatch, gpu.backend.engine('answer'))
    plain, graph = answered(gpu, count)
    assert len(graph._buffers['mul']) == count
    np.testing.assert_allclose(padded.probability, plain.probability, atol=TOLERANCES[precision])
    assert padded.finite
    changed = padded.mask != plain.mask
    assert (np.abs(plain.probability[changed] - 0.5) <= TOLERANCES[precision]).all()


def test_numbers_of_one_length_share_a_graph_and_fewer_follow_more(pair):
    _, gpu, precision = pair
    first = {count: answered(gpu, count) for count in (5, 6, 7, 8)}
    assert first[5][1] is first[6][1]
    assert first[7][1] is first[8][1]
    assert first[6][1] is not first[7][1]
    for count in (8, 7, 6, 5, 7, 5):
        again, graph = answered(gpu, count)
        assert graph is first[count][1]
        np.testing.assert_array_equal(again.probability, first[count][0].probability)
    assert np.abs(first[7][0].probability - first[8][0].probability).max() > TOLERANCES[precision]


def test_logits_have_no_padding(pair, monkeypatch):
    _, gpu, _ = pair
    image = np.random.default_rng(5).integers(0, 256, (97, 113, 3), dtype=np.uint8)
    code, codes = gpu.backend.encode_image(image), gpu.backend.encode_prompts(TEXTS[:5])
    found = gpu.backend.to_host(gpu.backend.decode(code, codes))
    without_padding(monkeypatch, gpu.backend.engine('decoder'))
    expected = gpu.backend.to_host(gpu.backend.decode(code, codes))
    assert found.shape == expected.shape
    assert len(found) == 5
    assert centred_cosines(expected, found).min() > 0.9999


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('count', 'length'), [(1, 2), (5, 6), (13, 13), (17, 24)])
def test_padding_has_no_share_in_the_fused_head(dtype, count, length):
    from blabberseg_ros.engines.cuda_kernels import head_and_softmax

    generator = torch.Generator('cuda').manual_seed(0)

    def noise(*shape, kind=dtype):
        return torch.randn(shape, device='cuda', generator=generator).to(kind)

    grid, width = 22, 64
    first = noise(16, width, width // 2) / 8, noise(width // 2, kind=torch.float32)
    second = noise(width // 2, 16), noise(1, kind=torch.float32)
    tokens = noise(length, grid * grid, width)
    tokens[count:] = float('nan')
    positive = (torch.arange(length, device='cuda') % 2 == 0).float()
    positive[count:] = -1
    results = [torch.empty((16 * grid, 16 * grid), device='cuda') for _ in range(2)]
    head_and_softmax(tokens, first, second, positive, results[0])
    head_and_softmax(tokens[:count].contiguous(), first, second, positive[:count], results[1])
    assert results[0].isfinite().all()
    assert torch.equal(*results)
