# SPDX-License-Identifier: Apache-2.0
"""Segformer against transformers, against reference outputs, and its exports against itself."""

import zlib

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional

from blabberseg_ros.backends.segformer import SegformerBackend
from blabberseg_ros.backends.values import Query
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.models.families import load_network
from blabberseg_ros.models.import_segformer import import_model
from blabberseg_ros.models.importing import ImportOptions
from blabberseg_ros.models.segformer_config import variant_config
from blabberseg_ros.models.stages import resize
from blabberseg_ros.parity.gate import check_parity
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.parity.report import Outcome
from blabberseg_ros.resampling import bilinear_weights, triangle_matrices

from .test_rtx_build import build

LABELS = tuple(f'label {index}' for index in range(35))
SMALL = {'hidden_sizes': [16, 32, 40, 64], 'depths': [1, 2, 2, 1], 'decoder_hidden_size': 48}
# Mean, standard deviation and the values at 0, 1, n/3, n/2 and n-1 of B4's outputs for the
# weights of `fill` and the image of `golden_image`.
GOLDEN = {
    'stage 0': (.025830, 1.029962, -1.43875, .29878, 1.87032, -.33340, -.20942),
    'stage 1': (-.007430, 1.016067, -.43769, -.48808, .07483, -2.11800, .67930),
    'stage 2': (.006602, 1.016335, 1.24326, .74441, -.31727, 2.50585, -1.51873),
    'stage 3': (.003677, 1.030809, 1.49869, 1.31486, .64118, 1.10718, -.97430),
    'logits': (.074876, .586891, .04501, -.54142, -.46403, -.26031, -.42266)}
GOLDEN_COUNTS = {26: 250794, 5: 3963, 10: 3377, 29: 2894, 7: 927}


def hugging_face(folder, labels=LABELS, **sizes):
    """Save a model of transformers with redrawn weights; return it."""
    config = transformers.SegformerConfig(
        id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
        **sizes)
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith('running_var'):
                value.copy_(1 + 0.1 * noise.abs())
            elif value.ndim < 2:
                is_scale = 'norm' in name and name.endswith('.weight')
                value.copy_(0.1 * noise + (1.0 if is_scale else 0.0))
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    model.save_pretrained(folder)
    return model


def fill(name, shape):
    """Return the weights of the reference outputs: a rule, so that no file is needed."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith('running_var'):
        values = 1 + 0.1 * np.abs(values)
    elif name.endswith('running_mean'):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 0.1 * values + (1.0 if name.endswith('weight') else 0.0)
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope='module')
def golden_model(tmp_path_factory):
    """Return B4 with the weights of the reference outputs, through the importer."""
    folder = tmp_path_factory.mktemp('b4')
    config = variant_config('b4', LABELS)
    hf = transformers.SegformerConfig(
        hidden_sizes=list(config.hidden), depths=list(config.depths),
        decoder_hidden_size=config.decoder_width, id2label=dict(enumerate(LABELS)))
    with torch.device('meta'):
        shapes = transformers.SegformerForSemanticSegmentation(hf)
    shapes.to_empty(device='cpu').save_pretrained(folder)
    from safetensors import safe_open
    with safe_open(folder / 'model.safetensors', 'pt') as stored:
        state = {name: (fill(name, tuple(stored.get_slice(name).get_shape()))
                        if not name.endswith('num_batches_tracked') else stored.get_tensor(name))
                 for name in stored.keys()}  # noqa: SIM118
    save_file(state, folder / 'model.safetensors')
    imported = import_model(folder, ImportOptions())
    assert imported.model.config.variant == 'b4'
    return imported.model


@torch.inference_mode()
def test_reference_outputs_of_b4(golden_model):
    query = 'segformer.encoder.block.0.0.attention.self.query.weight'
    np.testing.assert_allclose(fill(query, (64, 64)).flatten()[:3],
                               [-.073423, -.210344, -.152965], atol=2e-6)
    levels = np.random.RandomState(0).randint(0, 256, (512, 512, 3)).astype(np.uint8)
    mean, std = (np.array(v, np.float32) for v in (golden_model.config.mean,
                                                   golden_model.config.std))
    pixels = torch.from_numpy((levels.astype(np.float32) / 255 - mean) / std)
    pixels = pixels.permute(2, 0, 1)[None]
    features = golden_model.features(pixels)
    logits = golden_model.head(features)
    for name, value in (*((f'stage {i}', feature) for i, feature in enumerate(features)),
                        ('logits', logits)):
        flat = value.flatten()
        got = [flat.mean(), flat.std(unbiased=False),
               *(flat[index] for index in (0, 1, len(flat) // 3, len(flat) // 2, -1))]
        np.testing.assert_allclose([float(v) for v in got], GOLDEN[name], rtol=1e-3, atol=2e-4,
                                   err_msg=name)
    winners = golden_model.upsample(logits[0]).argmax(0).flatten().bincount(minlength=35)
    for label, count in GOLDEN_COUNTS.items():
        assert abs(int(winners[label]) - count) <= 3


# The widths of the published networks; B5's blocks are the same, and there are 52 of them.
B0 = {'hidden_sizes': [32, 64, 160, 256], 'depths': [2, 2, 2, 2], 'decoder_hidden_size': 256}
SHALLOW_B5 = {'hidden_sizes': [64, 128, 320, 512], 'depths': [1, 2, 3, 1],
              'decoder_hidden_size': 768}


@pytest.mark.parametrize(('sizes', 'size_px', 'variant'), [
    (SMALL, 224, 'w16'), (SMALL, 512, 'w16'), (B0, 128, 'b0'), (SHALLOW_B5, 128, 'w64')])
@torch.inference_mode()
def test_logits_are_those_of_transformers(tmp_path, sizes, size_px, variant):
    theirs = hugging_face(tmp_path, **sizes)
    ours = import_model(tmp_path, ImportOptions(input_size_px=size_px)).model
    assert (ours.config.labels, ours.config.variant) == (LABELS, variant)
    pixels = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    expected = theirs(pixel_values=pixels).logits
    got = ours(pixels)
    assert got.shape == expected.shape == (2, 35, size_px // 4, size_px // 4)
    assert (got - expected).abs().max() < 2e-5 * expected.std()


@pytest.fixture(scope='module')
def bundle(make_random_bundle):
    return load_bundle(make_random_bundle('segformer'))


@pytest.fixture(scope='module')
def network(bundle):
    return load_network(bundle)


@pytest.fixture(scope='module')
def backend(bundle):
    """Return the back-end on ONNX Runtime, active."""
    opened = SegformerBackend(bundle, OnnxRuntimeCpu())
    opened.activate()
    yield opened
    opened.deactivate()


def frame(height=120, width=160, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(('height', 'width'), [(128, 128), (480, 640), (77, 121)])
@torch.inference_mode()
def test_the_image_code_is_the_networks(backend, network, height, width):
    config, image = network.config, frame(height, width)
    rows, cols = triangle_matrices(height, width, config.input_size_px)
    levels = resize(torch.from_numpy(image).permute(2, 0, 1).float(), torch.tensor(rows),
                    torch.tensor(cols))
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    pixels = (levels / 255 - mean[:, None, None]) / std[:, None, None]
    expected = network.encode_image(pixels[None])[0]
    got = torch.from_numpy(np.array(backend.encode_image(image)))
    # Where a level lies on the border of rounding, the two may fall apart by one.
    assert (got - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_logits_are_resized_before_anything_is_chosen(backend, monkeypatch, device):
    """Compare the label map with logits resized by torch, as transformers does it."""
    # What other devices run is the graph; it runs here as well.
    monkeypatch.setattr(backend.kind, 'device', device, raising=False)
    code = backend.encode_image(frame())
    logits = functional.interpolate(torch.from_numpy(np.array(code))[None], (120, 160),
                                    mode='bilinear', align_corners=False)[0]
    found = backend.label_map(code, (120, 160))
    assert found.names == backend.config.labels
    labels = found.labels
    assert (labels.dtype, labels.shape) == (np.uint8, (120, 160))
    best = logits.topk(2, dim=0)
    clear = (best.values[0] - best.values[1] > 1e-4).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], best.indices[0].numpy()[clear])
    assert len(np.unique(labels)) > 3


def test_probability_is_summed_over_the_labels(backend, network):
    image, prompts = frame(), backend.example_prompts()
    codes = backend.encode_prompts(backend.texts(prompts))
    code = backend.encode_image(image)
    answer = backend.answer(code, codes, Query(prompts.is_positive,
                                               FusionOptions(blur_kernel_size=1), (120, 160)))
    side = network.config.input_size_px
    shares = network.upsample(torch.from_numpy(np.array(code))).softmax(0)
    safe = shares[::2].sum(0).numpy()
    expected = bilinear_weights(side, 120) @ safe @ bilinear_weights(side, 160).T
    np.testing.assert_allclose(answer.probability, expected, atol=2e-5)


def test_the_gate_passes_true_exports(bundle, backend):
    reference = SegformerBackend(bundle, TorchCpu())
    reference.activate()
    report = check_parity(reference, backend)
    reference.deactivate()
    assert report.outcome is Outcome.PASS, report.reasons


def other_order(model):
    model.stages[1].blocks[0].attention.heads = 1


def plain_gelu(model):
    gelu = functional.gelu
    for module in model.modules():
        if hasattr(module, 'fc1'):
            module.forward = lambda x, m=module: m.fc2(gelu(m.conv(m.fc1(x).permute(
                0, 3, 1, 2)).permute(0, 2, 3, 1), approximate='tanh') * 1.01)


def lost_norm(model):
    model.stages[0].norm = torch.nn.Identity()


def swapped_labels(model):
    with torch.no_grad():
        weight = model.head.classifier.weight
        weight.copy_(weight[[1, 0, *range(2, len(weight))]].clone())


def shifted_stage(model):
    mix = model.head.mix[3]
    forward = mix.forward
    mix.forward = lambda x: forward(torch.roll(x, 1, -1))


def half_range(model):
    with torch.no_grad():
        model.head.classifier.weight.mul_(0.9)


@pytest.mark.parametrize('modify', [other_order, plain_gelu, lost_norm, swapped_labels,
                                    shifted_stage, half_range])
def test_the_gate_refuses_mistakes(bundle, modify):
    reference = SegformerBackend(bundle, TorchCpu())
    tested = SegformerBackend(bundle, TorchCpu(modify=modify))
    reference.activate()
    tested.activate()
    try:
        assert check_parity(reference, tested).outcome is Outcome.FAIL
    finally:
        tested.deactivate()
        reference.deactivate()


def test_every_graph_names_its_ports(bundle):
    assert set(bundle.manifest.graphs) >= {'image_encoder', 'decoder', 'fusion', 'labels',
                                           'text_encoder'}
    session = onnxruntime.InferenceSession(bundle.graph('image_encoder'),
                                           providers=['CPUExecutionProvider'])
    assert [port.name for port in session.get_inputs()] == ['image', 'rows', 'cols']
    assert [(port.name, port.shape) for port in session.get_outputs()] == [('code', [16, 32, 32])]


def test_every_graph_builds_with_tensorrt_rtx(bundle):
    for stage in bundle.manifest.graphs:
        plan, complaints = build(bundle.graph(stage))
        assert plan is not None, f'{stage}: {complaints}'
        assert plan.nbytes > 0
        assert complaints == [], stage
