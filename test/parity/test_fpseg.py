# SPDX-License-Identifier: Apache-2.0
"""FPSeg: figures of the original modules, and the exported graphs with any choice of classes."""

import zlib
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from blabberseg_ros.backends.fpseg import FpSegBackend
from blabberseg_ros.backends.fpseg_fit import matrices_in, matrices_out
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.fpseg import FpSeg
from blabberseg_ros.models.fpseg_config import ENCODERS, FpSegConfig, SamVitConfig
from blabberseg_ros.models.fpseg_stages import stages
from blabberseg_ros.models.load_fpseg import load_fpseg
from blabberseg_ros.models.random_fpseg import SMALL, random_fpseg
from blabberseg_ros.parity.gate import check_parity
from blabberseg_ros.parity.reference import TorchCpu

from .test_rtx_build import build

STAGES = ('image_encoder', 'decoder', 'fusion', 'merge')
# Names of tensors that the rule of the goldens fills with half a standard normal.
_TABLES = ('attention_biases', 'pos_embed', 'rel_pos', 'prompt_embeddings', 'mask_tokens',
           'no_mask_embed', 'positional_encoding_gaussian_matrix')
# Mean, standard deviation and the values at the flat indices 0, 1, n // 3, n // 2 and n - 1.
POSITION = (.067332, .703894, -.32870, -.23612, .54583, .94444, .36848)
GOLDEN = {
    'zero': {'embedding': (-.002159, 1.002999, .35698, .22687, -.24617, -.16392, 1.33187),
             'logits': (.045912, .521611, .57795, .45338, .58915, .49452, .09436),
             'positive': (1622033, 1012397, 824163)},
    'live': {'embedding': (-.002203, 1.002985, .36593, .18263, -.25405, -.03172, 1.34713),
             'logits': (.045819, .521976, .56317, .45934, .58856, .48020, .09498),
             'positive': (1620679, 1011484, 821673)},
    'letterbox': {'embedding': (-.003977, 1.004772, .12356, .19836, -.53366, -.30052, 1.33921),
                  'logits': (-.061845, .308624, .63701, .58236, .42869, .44488, -.51955)},
    'vit_b': {'embedding': (.000180, 1.010823, .41468, -.70367, .52128, -.55803, .19081),
              'logits': (.000346, .599360, .63226, .68746, .65296, .12122, -.62178)},
}


def filled(config):
    """Return a network whose weights follow from their names and shapes alone."""
    model = FpSeg(config).eval()
    state = model.state_dict()
    for name, weight in state.items():
        if weight.is_floating_point():
            shape = tuple(weight.shape)
            value = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
            if 'running_var' in name:
                value = 1 + 0.1 * abs(value)
            elif 'running_mean' in name:
                value = 0.1 * value
            elif any(part in name for part in _TABLES):
                value = 0.5 * value
            elif len(shape) == 1:
                value = 0.1 * value + (1 if name.endswith('weight') else 0)
            else:
                value = value / np.sqrt(np.prod(shape[1:]))
            state[name] = torch.from_numpy(value.astype(np.float32))
    model.load_state_dict(state)
    return model


def golden_image():
    return np.random.RandomState(0).randint(0, 256, (1024, 1024, 3)).astype(np.uint8)


def normalised(config, levels):
    """Normalise levels [h, w, 3] and pad them to the square."""
    pixels = torch.from_numpy(levels).permute(2, 0, 1).float() / 255
    pixels = (pixels - torch.tensor(config.mean)[:, None, None]) / torch.tensor(
        config.std)[:, None, None]
    side = config.input_size_px
    return torch.nn.functional.pad(
        pixels, (0, side - pixels.shape[2], 0, side - pixels.shape[1]))[None]


def figures(value):
    flat = value.flatten()
    count = flat.numel()
    return [flat.mean().item(), flat.std().item(),
            *(flat[index].item() for index in (0, 1, count // 3, count // 2, count - 1))]


@pytest.fixture(scope='module')
def mobile_sam():
    return filled(FpSegConfig(class_names=('a', 'b', 'c'), prompt_size=4))


@pytest.mark.parametrize('bias', ['zero', 'live'])
@torch.inference_mode()
def test_mobile_sam_is_the_original(mobile_sam, bias):
    model = FpSeg(replace(mobile_sam.config, attention_bias=bias)).eval()
    model.load_state_dict(mobile_sam.state_dict())
    embedding = model.encode_images(normalised(model.config, golden_image()))
    logits = model.decode(embedding, model.prompt_encoder.prompt_embeddings)
    assert figures(embedding) == pytest.approx(GOLDEN[bias]['embedding'], abs=2e-5)
    assert figures(logits) == pytest.approx(GOLDEN[bias]['logits'], abs=2e-5)
    rows, cols = matrices_out(1024, 2048, (256, 1024), 'squash', 1)
    masks = torch.from_numpy(rows) @ logits @ torch.from_numpy(cols) > 0
    np.testing.assert_allclose(masks.sum((1, 2)), GOLDEN[bias]['positive'], atol=3)


@torch.inference_mode()
def test_the_position_code_is_the_original(mobile_sam):
    code = mobile_sam.prompt_encoder.position(64).T
    assert figures(code) == pytest.approx(POSITION, abs=2e-5)


@torch.inference_mode()
def test_the_letterbox_is_the_original(mobile_sam):
    """The published predictor: the longer side to 1024, zeros beside it, and back."""
    config = replace(mobile_sam.config, fit='letterbox')
    image = golden_image()[:600, :800]
    resized = np.array(Image.fromarray(image).resize((1024, 768), Image.Resampling.BILINEAR))
    embedding = mobile_sam.encode_images(normalised(config, resized))
    logits = mobile_sam.decode(embedding, mobile_sam.prompt_encoder.prompt_embeddings[1:2])
    rows, cols = matrices_out(600, 800, (256, 1024), 'letterbox', 1)
    full = torch.from_numpy(rows) @ logits[0] @ torch.from_numpy(cols)
    assert figures(embedding) == pytest.approx(GOLDEN['letterbox']['embedding'], abs=2e-5)
    assert figures(full) == pytest.approx(GOLDEN['letterbox']['logits'], abs=2e-5)
    # Our own resizing rounds once where PIL rounds twice.
    ours = stages(mobile_sam)['image_encoder'].module(
        torch.from_numpy(image), *map(torch.tensor, matrices_in(600, 800, 1024, 'letterbox')))
    assert (ours - embedding[0]).abs().max() < 0.1
    assert (ours - embedding[0]).std() < 0.01


@torch.inference_mode()
def test_sam_vit_b_is_the_original():
    model = filled(FpSegConfig(encoder=ENCODERS['vit_b'], class_names=('a', 'b', 'c'),
                               prompt_size=4))
    embedding = model.encode_images(normalised(model.config, golden_image()))
    logits = model.decode(embedding, model.prompt_encoder.prompt_embeddings)
    assert figures(embedding) == pytest.approx(GOLDEN['vit_b']['embedding'], abs=3e-5)
    assert figures(logits) == pytest.approx(GOLDEN['vit_b']['logits'], abs=3e-5)


@torch.inference_mode()
def test_sam_vit_adds_rows_and_columns_of_its_position_tables():
    """Written as further channels of query and key; the definition is a sum of two scores."""
    model = random_fpseg(VIT)
    attention = model.image_encoder.blocks[1].attn
    side, x = attention.side, torch.randn(2, attention.side ** 2, 32)
    query, key, value = attention.qkv(x).reshape(2, side * side, 3, 2, 16).permute(2, 0, 3, 1, 4)
    square = query.unflatten(2, (side, side))
    scores = (query @ key.transpose(2, 3) / 4).unflatten(2, (side, side)).unflatten(
        4, (side, side))
    for row in range(side):
        for other in range(side):
            scores[:, :, row, :, other] += (
                square[:, :, row] @ attention.rel_pos_h[row - other + side - 1])[..., None]
            scores[:, :, :, row, :, other] += (
                square[:, :, :, row] @ attention.rel_pos_w[row - other + side - 1])[..., None]
    weights = scores.flatten(4).softmax(-1).flatten(2, 3)
    expected = attention.proj((weights @ value).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-5)


VIT = replace(SMALL, encoder=SamVitConfig(32, 3, 2, (1,), window=3, grid=8), input_size_px=128)
KINDS = {'fp32': (SMALL, 'fp32'), 'fp16': (replace(SMALL, attention_bias='zero'), 'fp16'),
         'letterbox': (replace(SMALL, fit='letterbox', input_size_px=160), 'fp32'),
         'vit': (VIT, 'fp32')}


@pytest.fixture(scope='module', params=KINDS)
def exported(request, tmp_path_factory):
    """Return a bundle and the network that it holds."""
    config, storage = KINDS[request.param]
    folder = tmp_path_factory.mktemp('fpseg') / request.param
    export_bundle(random_fpseg(config), folder, name=request.param, source='random weights',
                  licence='none needed', storage=storage)
    bundle = load_bundle(folder)
    return bundle, load_fpseg(bundle)


def run(bundle, stage, *inputs):
    session = onnxruntime.InferenceSession(bundle.graph(stage))
    names = [port.name for port in session.get_inputs()]
    return session.run(None, dict(zip(names, map(np.asarray, inputs), strict=True)))[0]


def expected(model, stage, *inputs):
    tensors = [torch.from_numpy(np.array(value)) for value in inputs]
    with torch.inference_mode():
        return stages(model)[stage].module(*tensors).numpy()


@pytest.mark.parametrize(('height', 'width'), [(240, 320), (77, 41), (1, 1)])
def test_image_encoder(exported, height, width):
    bundle, model = exported
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    feeds = (image, *matrices_in(height, width, model.config.input_size_px, model.config.fit))
    wanted = expected(model, 'image_encoder', *feeds)
    np.testing.assert_allclose(run(bundle, 'image_encoder', *feeds), wanted, atol=1e-4)


@pytest.mark.parametrize('classes', [(0,), (3, 1), tuple(range(11)), (5,) * 40])
def test_decoder(exported, classes):
    bundle, model = exported
    config = model.config
    generator = np.random.default_rng(len(classes))
    code = generator.standard_normal((config.width, config.grid, config.grid), np.float32)
    tokens = model.prompt_encoder.prompt_embeddings.numpy()[list(classes)]
    dense = generator.standard_normal((len(classes), config.width), np.float32)
    bias = np.zeros(tokens.shape[:2], np.float32)
    bias[0, 1:] = -1e4
    wanted = expected(model, 'decoder', code, tokens, dense, bias)
    assert wanted.shape == (len(classes), config.mask_size_px, config.mask_size_px)
    np.testing.assert_allclose(run(bundle, 'decoder', code, tokens, dense, bias), wanted,
                               atol=1e-4)


@pytest.mark.parametrize('classes', [1, 2, 11])
def test_fusion_and_merge(exported, classes):
    bundle, model = exported
    side = model.config.mask_size_px
    generator = np.random.default_rng(classes)
    # Far outside of what a softmax without care for overflow could take.
    logits = 60 * generator.standard_normal((classes, side, side), np.float32)
    positive = np.float32(np.arange(classes) % 2 == 0)
    rows, cols = matrices_out(50, 60, (side, 4 * side), model.config.fit, 15)
    probability = run(bundle, 'fusion', logits, positive, rows, cols)
    background = np.zeros((1, side, side))
    shares = torch.tensor(np.concatenate((background, logits))).double().softmax(0).numpy()
    wanted = rows @ np.tensordot(positive, shares[1:], axes=1) @ cols
    np.testing.assert_allclose(probability, wanted, atol=1e-5)
    merged = run(bundle, 'merge', logits)
    winner = np.concatenate((background, logits)).argmax(0) - 1
    np.testing.assert_array_equal(merged, winner)


def test_a_nan_is_not_hidden(exported):
    bundle, model = exported
    side = model.config.mask_size_px
    logits = np.zeros((2, side, side), np.float32)
    logits[0, 3, 4] = np.nan
    identity = np.eye(side, dtype=np.float32)
    positive = np.array([0, 1], np.float32)
    assert np.isnan(run(bundle, 'fusion', logits, positive, identity, identity)).any()


@pytest.mark.parametrize('stage', STAGES)
def test_the_graph_builds_with_rtx(exported, stage):
    bundle, _ = exported
    plan, complaints = build(bundle.graph(stage))
    assert plan is not None, complaints
    assert plan.nbytes > 0
    assert complaints == []


def test_the_gate_lets_the_graphs_pass(exported):
    bundle, _ = exported
    reference, tested = (FpSegBackend(bundle, kind) for kind in (TorchCpu(), OnnxRuntimeCpu()))
    reference.activate()
    tested.activate()
    report = check_parity(reference, tested, prompts=tested.example_prompts())
    assert report.passed, report.summary()




@pytest.mark.parametrize('damage', ['bias', 'position', 'window'])
def test_the_gate_notices(exported, damage):
    bundle, model = exported
    tiny = 'tiny' in model.config.encoder.kind

    def modify(network):
        if damage == 'bias' and tiny:
            for module in network.image_encoder.modules():
                if hasattr(module, 'with_bias'):
                    module.with_bias = not module.with_bias
        elif damage == 'bias':
            for name, table in network.named_parameters():
                if 'rel_pos' in name:
                    table.data = torch.zeros_like(table)
        elif damage == 'position':
            network.prompt_encoder.position = lambda grid: torch.zeros(
                grid * grid, network.config.width)
        else:
            for block in network.image_encoder.modules():
                if hasattr(block, 'window') and block.window:
                    norm = block.attn.norm if tiny else block.norm1
                    norm.bias.data = torch.zeros_like(norm.bias)

    reference = FpSegBackend(bundle, OnnxRuntimeCpu())
    tested = FpSegBackend(bundle, TorchCpu(modify=modify))
    reference.activate()
    tested.activate()
    report = check_parity(reference, tested, prompts=tested.example_prompts())
    assert not report.passed, report.summary()
