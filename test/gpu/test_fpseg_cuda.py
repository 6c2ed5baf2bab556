# SPDX-License-Identifier: Apache-2.0
"""FPSeg's own stages and kernels on a real GPU: the answers of torch on the CPU.

The bundle holds weights alone, so neither ONNX nor open_clip is needed.
"""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from blabberseg_ros.backends.fpseg import FpSegBackend
from blabberseg_ros.bench.model import write_model
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.torch_cuda import TorchCuda
from blabberseg_ros.heatmap import FusionOptions, apply_threshold, find_threshold
from blabberseg_ros.models.fpseg_config import CITYSCAPES_CLASSES
from blabberseg_ros.models.random_fpseg import SMALL, random_fpseg
from blabberseg_ros.models.stages import resize
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.prompts import PromptSet
from blabberseg_ros.resampling import triangle_matrices
from blabberseg_ros.segmenter import Segmenter

DEVICE = 'cuda'
pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason='gpu: there is none here')]
PROMPTS = PromptSet(('terrain', 'flat'), ('car', 'person', 'building'))
OTHERS = PromptSet(('flat',), ('building', 'tunnel', 'sky', 'terrain', 'train', 'car'))
SHARP = FusionOptions(blur_kernel_size=1)
SIZES = [(352, 352), (480, 640), (97, 113), (31, 500)]
# Largest difference of a probability, largest and mean one of a logit; the logits' standard
# deviation is 2. In fp32 cuDNN's convolutions are in TF32, which has the mantissa of fp16.
TOLERANCES = {'fp16': (8e-3, 0.2, 0.015), 'fp32': (8e-3, 0.2, 0.015), 'bf16': (4e-2, 1.2, 0.1)}


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    """Return a bundle of TinyViT, whose kernels run in half precision, with 33 classes."""
    folder = tmp_path_factory.mktemp('fpseg') / 'bundle'
    config = replace(SMALL, class_names=CITYSCAPES_CLASSES)
    write_model(random_fpseg(config), folder, graphs=False)
    return load_bundle(folder)


@pytest.fixture(scope='module')
def cpu(bundle):
    with Segmenter(FpSegBackend(bundle, TorchCpu())) as segmenter:
        yield segmenter


@pytest.fixture(scope='module', params=['fp16', 'bf16', 'fp32'])
def gpu(request, bundle):
    kind = TorchCuda(request.param, compiled=False)
    with Segmenter(FpSegBackend(bundle, kind)) as segmenter:
        yield segmenter


def picture(seed, size):
    """Return an image of a few large spots."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize('size', SIZES)
def test_probability_is_that_of_the_cpu(cpu, gpu, size):
    expected, found = (segmenter.segment(picture(1, size), PROMPTS, SHARP).probability
                       for segmenter in (cpu, gpu))
    assert expected.std() > 0.03
    np.testing.assert_allclose(found, expected, atol=TOLERANCES[gpu.precision][0])


@pytest.mark.parametrize('size', SIZES[1:])
def test_logits_are_those_of_the_cpu(cpu, gpu, size):
    expected, found = (
        backend.to_host(backend.decode(backend.encode_image(picture(2, size)),
                                       backend.encode_prompts(CITYSCAPES_CLASSES)))
        for backend in (cpu.backend, gpu.backend))
    assert found.shape == (33, 64, 64)
    _, largest, mean = TOLERANCES[gpu.precision]
    difference = np.abs(found - expected)
    assert difference.max() < largest
    assert difference.mean() < mean


def test_the_compiled_network_is_the_same(cpu, bundle):
    image = picture(1, (480, 640))
    with Segmenter(FpSegBackend(bundle, TorchCuda())) as segmenter:
        for prompts in (PROMPTS, OTHERS):
            np.testing.assert_allclose(
                segmenter.segment(image, prompts).probability,
                cpu.segment(image, prompts).probability, atol=TOLERANCES['fp16'][0])


@pytest.mark.parametrize('fusion', [
    FusionOptions(), FusionOptions(dynamic_threshold=0.6), FusionOptions(dynamic_threshold=0),
    FusionOptions(min_threshold=0.9),
    FusionOptions(dynamic_threshold=1.1, on_failure='dovesei')])
def test_mask_and_threshold_follow_from_its_own_probability(gpu, fusion):
    found = gpu.segment(picture(3, (241, 319)), PROMPTS, fusion)
    expected = find_threshold(found.probability, fusion)
    assert (found.threshold, found.success) == (expected.value, expected.success)
    np.testing.assert_array_equal(
        found.mask, apply_threshold(found.probability, expected, fusion.on_failure))


def test_other_classes_need_no_other_image_code(cpu, gpu):
    image = picture(4, (120, 160))
    before = gpu.segment(image, PROMPTS).probability
    runs = gpu.run_counts.image_encoder
    after = gpu.segment(image, OTHERS).probability
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(after, cpu.segment(image, OTHERS).probability,
                               atol=TOLERANCES[gpu.precision][0])
    again = gpu.segment(image, PROMPTS).probability
    np.testing.assert_array_equal(again, before)
    assert gpu.run_counts.image_encoder == runs


def test_the_order_of_the_classes_does_not_matter(gpu):
    image = picture(5, (120, 160))
    turned = PromptSet(PROMPTS.positive[::-1], PROMPTS.negative[::-1])
    np.testing.assert_allclose(
        gpu.segment(image, turned).probability, gpu.segment(image, PROMPTS).probability,
        atol=TOLERANCES[gpu.precision][0])


def test_a_label_map_of_more_classes_than_share_a_run(cpu, gpu):
    image = picture(6, (97, 113))
    runs = gpu.run_counts.decoder
    expected, found = (segmenter.label_map(image) for segmenter in (cpu, gpu))
    assert gpu.run_counts.decoder - runs == 2
    assert found.names == (*CITYSCAPES_CLASSES, 'none')
    assert len(np.unique(expected.labels)) > 3
    assert np.mean(found.labels == expected.labels) > 0.9


def test_classes_are_decoded_in_groups_within_a_budget(gpu):
    image = picture(7, (120, 160))
    whole = gpu.segment(image, OTHERS).probability
    timed = Segmenter(gpu.backend, decode_budget_ms=60_000.0)
    timed.segment(image, OTHERS)  # which decodes each size of group once before
    runs = timed.run_counts.decoder
    found = timed.segment(image, OTHERS)
    assert timed.run_counts.decoder - runs == 3, 'seven classes are four, two and one'
    assert gpu.backend.not_decoded == ()
    np.testing.assert_allclose(found.probability, whole, atol=TOLERANCES[gpu.precision][0])


def test_without_time_one_class_is_decoded_and_nothing_is_safe(gpu):
    found = Segmenter(gpu.backend, decode_budget_ms=1e-6).segment(picture(8, (120, 160)), PROMPTS)
    assert 'counted as unsafe: person, building, terrain, flat' in found.message
    assert not found.mask.any()
    assert not found.success


@pytest.mark.parametrize('activate', [False, True])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('shape', [(9, 70, 40), (16, 16, 64), (7, 5, 200), (33, 1, 3)])
@pytest.mark.parametrize(('dtype', 'tolerance'), [
    (torch.float32, 2e-5), (torch.float16, 1e-2), (torch.bfloat16, 8e-2)])
def test_depthwise_is_a_grouped_convolution(shape, stride, activate, dtype, tolerance):
    from blabberseg_ros.engines.fpseg_kernels import depthwise

    generator = torch.Generator().manual_seed(0)
    channels = shape[2]
    # Of the type's own values, so that only the result is rounded.
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn((channels, 1, 3, 3), generator=generator).to(dtype)
    bias = torch.randn(channels, generator=generator)
    expected = functional.conv2d(x.double().permute(2, 0, 1)[None], weight.double(),
                                 bias.double(), stride, 1, groups=channels)[0].permute(1, 2, 0)
    expected = functional.gelu(expected) if activate else expected
    flat = weight.flatten(1).T.contiguous()
    found = depthwise(x.to(DEVICE), flat.to(DEVICE), bias.to(DEVICE), stride, activate)
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu().double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(('height', 'width', 'side'), [
    (40, 56, 64), (97, 113, 64), (31, 300, 256), (480, 640, 96)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_pixels_are_resized_as_the_reference_does(height, width, side, dtype):
    from blabberseg_ros.engines.cuda_kernels import triangle_band
    from blabberseg_ros.engines.fpseg_kernels import resize_to_pixels

    image = torch.from_numpy(np.random.default_rng(9).integers(
        0, 256, (height, width, 3), np.uint8))
    rows, cols = (torch.tensor(matrix) for matrix in triangle_matrices(height, width, side))
    scale, offset = torch.tensor([0.01, 0.02, 0.03]), torch.tensor([1.0, 2.0, 3.0])
    expected = resize(image.permute(2, 0, 1).float(), rows, cols).permute(1, 2, 0) * scale - offset
    pixels = torch.empty((side, side, 3), dtype=dtype, device=DEVICE)
    resize_to_pixels(
        *(tensor.to(DEVICE) for tensor in (image, rows, cols)),
        triangle_band(height, side, DEVICE), triangle_band(width, side, DEVICE),
        scale.to(DEVICE), offset.to(DEVICE), torch.empty((height, side, 3), device=DEVICE), pixels)
    # A sum that lies between two grey levels may be rounded to either.
    difference = (pixels.cpu().float() - expected).abs() / scale
    rounding = 1e-3 if dtype == torch.float32 else 0.5
    assert difference.max() < 1 + rounding
    assert (difference > rounding).float().mean() < 1e-3
