# SPDX-License-Identifier: Apache-2.0
"""LSeg: figures of the original modules, and the exported graphs at sizes of all kinds."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from blabberseg_ros.backends.lseg import LSegBackend
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.errors import BundleError
from blabberseg_ros.models.export import export_bundle
from blabberseg_ros.models.import_lseg import network_of
from blabberseg_ros.models.load_lseg import load_lseg
from blabberseg_ros.models.lseg import upsampled
from blabberseg_ros.models.lseg_stages import stages
from blabberseg_ros.models.random_lseg import SMALL, random_lseg
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.resampling import triangle_weights

from ..unit.models import lseg_files
from .test_rtx_build import RANGES, build

# The labels dog, grass and other, as the original tokeniser gives them.
LABELS = (1929, 5922, 1010)
SIDES = {'input': (256, 480, 1024), 'half': (128, 240, 512), 'quarter': (64, 120, 256)}
# Mean, standard deviation and the values at the flat indices 0, 1, n // 3, n // 2 and n - 1.
GOLDEN = {
    ('vit', 480, 480): {
        'layer_1': (.009628, .433597, .12893, -.70789, -.25851, -.26814, .36053),
        'layer_2': (.017715, 1.295670, -.81845, .76418, 1.65532, 1.28247, -1.36715),
        'layer_3': (.060088, 3.154049, 4.90955, 5.74685, -7.86060, .63288, 1.57668),
        'layer_4': (-.081315, 3.715037, -2.20130, -.94112, 1.59308, -1.54807, -2.31285),
        'path_4': (-.082759, 3.726419, -.70955, -2.83883, 2.22985, -.88072, 4.13601),
        'path_1': (-.243752, 6.186865, 3.07207, 2.58016, 2.99349, -10.51745, -3.36404),
        'head1': (.157021, 6.162674, 2.21545, 1.75353, -4.26818, 3.66284, -.41685),
        'logits': (-1.211156, .186856, -.78585, -.77556, -.87589, -.76973, -1.46035),
        'text': (.035933, 1.002096, 1.73480, -.06534, .98193, -.00734, -.28081),
        'argmax': (192568, 37782, 50)},
    ('vit', 384, 512): {
        'layer_1': (.009337, .426910, .08979, -.67667, -.27603, -.23956, .57251),
        'layer_2': (.017035, 1.283189, -.71968, .89900, 1.86081, 1.48210, -1.72791),
        'layer_3': (.061063, 3.142741, 4.78142, 5.63203, -7.75978, .08117, 1.28646),
        'layer_4': (-.090225, 3.683495, -2.20252, -.78843, 1.93783, -1.59159, .08520),
        'path_4': (-.099876, 3.647749, -.67005, -3.15608, 1.27128, -.72759, 3.34274),
        'path_1': (-.262079, 6.061369, 3.62079, 3.12242, 3.57913, -10.32406, -3.80339),
        'head1': (.130483, 6.045444, 2.73247, 2.23745, -2.53090, 3.50504, .89181),
        'logits': (-1.161912, .192626, -.83931, -.81784, -.91692, -.41736, -1.32535),
        'argmax': (166752, 29789, 67)},
    ('resnet', 480, 480): {
        'layer_1': (1.439469, 1.634364, .21008, .27789, 1.62860, .70721, 1.51848),
        'layer_4': (4.270805, 4.866323, 0, .89662, 0, .55037, 10.06272),
        'path_1': (-.778524, 11.863348, 1.13562, 1.48303, -4.42791, -4.98662, -4.39474),
        'head1': (.501597, 11.860295, 14.83166, 14.31365, 2.14322, 7.05788, -.00719),
        'logits': (-.254791, .192721, -.02644, -.01586, .12858, .18701, -1.24508)},
}


@pytest.fixture(scope='module')
def published():
    """Return a maker of full-size networks, filled by the rule; one is kept at a time."""
    made = {}

    def make(backbone):
        if backbone not in made:
            made.clear()
            made[backbone] = network_of(
                lseg_files.filled(lseg_files.published_shapes(backbone=backbone)), backbone)
        return made[backbone]

    yield make
    made.clear()


def figures(value):
    flat = value.double().flatten()
    count = len(flat)
    return [flat.mean(), flat.std(), *(flat[index] for index in (
        0, 1, count // 3, count // 2, count - 1))]


@pytest.mark.parametrize('case', GOLDEN, ids=lambda case: '-'.join(map(str, case)))
@torch.no_grad()
def test_figures_of_the_original_modules(published, case):
    backbone, height, width = case
    model = published(backbone)
    image = np.random.RandomState(0).randint(0, 256, (512, 512, 3)).astype(np.uint8)
    levels = torch.from_numpy(image[:height, :width]).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(model.config.mean), torch.tensor(model.config.std)
    pixels = ((levels - mean[:, None, None]) / std[:, None, None])[None]
    tokens = torch.zeros(3, 77, dtype=torch.int32)
    for row, label in zip(tokens, LABELS, strict=True):
        row[:3] = torch.tensor([49406, label, 49407])
    # What runs for a frame, without its resize, which is none at this size.
    reached = {}
    model.vision.register_forward_hook(lambda *args: reached.update(
        {f'layer_{number}': level for number, level in enumerate(args[2], 1)}))
    model.fusion[3].register_forward_hook(
        lambda *args: reached.update(path_4=args[2]))
    code = model.encode_images(pixels)
    made = stages(model)
    logits = made['decoder'].module(
        code[0], made['image_encoder'].module.lengths(code)[0],
        made['text_encoder'].module(tokens))
    sides = [side // 16 for side in (height, width)]
    reached['path_4'] = upsampled(reached['path_4'], *sides)
    reached['path_1'] = upsampled(code, height // 2, width // 2)
    reached |= {'head1': model.head(reached['path_1']), 'logits': logits,
                'text': model.encode_text(tokens)}
    for name, wanted in GOLDEN[case].items():
        if name == 'argmax':
            counts = np.bincount(logits.argmax(0).flatten(), minlength=3)
            assert np.abs(counts - wanted).max() <= 2, (name, counts)
            continue
        scale = wanted[1]
        for got, value in zip(figures(reached[name]), wanted, strict=True):
            assert abs(float(got) - value) <= 1e-4 * scale, (name, float(got), value)


@pytest.fixture(scope='module', params=['vit-fp32', 'resnet-fp16'])
def exported_lseg(request, tokenizer_json, tmp_path_factory):
    """Return a small exported bundle of each backbone and storage, and its network."""
    backbone, storage = request.param.split('-')
    config = replace(SMALL, backbone=backbone, resnet_width=6, resnet_blocks=(1, 2, 1, 1))
    folder = tmp_path_factory.mktemp('lseg') / request.param
    export_bundle(random_lseg(config), folder, name=request.param, source='random weights',
                  licence='none needed', tokenizer_json=tokenizer_json, storage=storage)
    bundle = load_bundle(folder)
    return bundle, load_lseg(bundle)


def run(bundle, stage, *inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        bundle.graph(stage), options, providers=['CPUExecutionProvider'])
    names = [port.name for port in session.get_inputs()]
    feeds = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]


@pytest.mark.parametrize(('size', 'image_size'), [
    ((128, 128), (121, 77)), ((256, 256), (480, 640)), ((96, 224), (1, 1)),
    ((480, 256), (300, 500))])
@torch.no_grad()
def test_one_graph_takes_every_size(exported_lseg, size, image_size):
    bundle, model = exported_lseg
    made = stages(model)
    image = np.random.default_rng(1).integers(0, 256, (*image_size, 3), np.uint8)
    rows = np.ascontiguousarray(triangle_weights(image_size[0], size[0]))
    cols = np.ascontiguousarray(triangle_weights(image_size[1], size[1]).T)
    tokens = torch.randint(1, 49406, (4, 77), dtype=torch.int32,
                           generator=torch.Generator().manual_seed(1))
    tokens[:, 6] = 49407
    feeds = {'image_encoder': [torch.from_numpy(image), torch.tensor(rows), torch.tensor(cols)],
             'text_encoder': [tokens]}
    wanted_code, wanted_length = made['image_encoder'].module(*feeds['image_encoder'])
    embedding = made['text_encoder'].module(tokens)
    feeds |= {'decoder': [wanted_code, wanted_length, embedding],
              'features': [wanted_code, wanted_length]}
    for stage, inputs in feeds.items():
        wanted = made[stage].module(*inputs)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for ours, expected in zip(run(bundle, stage, *inputs), wanted, strict=True):
            assert ours.shape == expected.shape, stage
            # ONNX Runtime computes where a resized pixel lies in single precision.
            assert (ours - expected).abs().max() <= 3e-4 * max(1.0, expected.std()), stage


@pytest.mark.parametrize('stage', ['image_encoder', 'text_encoder', 'decoder', 'features',
                                   'fusion'])
def test_the_graph_builds_for_its_range_of_sizes(exported_lseg, stage, monkeypatch):
    for name, lengths in SIDES.items():
        for side in ('height', 'width'):
            monkeypatch.setitem(RANGES, f'{name}_{side}', lengths)
    plan, complaints = build(exported_lseg[0].graph(stage))
    assert plan is not None, complaints
    assert complaints == []


def test_each_weight_is_stored_once(exported_lseg):
    bundle, model = exported_lseg
    inline = 0
    for stage in stages(model):
        graph = onnx.load(bundle.graph(stage), load_external_data=False).graph
        inline += sum(len(tensor.raw_data) for tensor in graph.initializer)
    factor = stages(model)['image_encoder'].module.factor
    mask = model.text.causal_mask
    assert inline < 4 * (factor.numel() + mask.numel()) + 2000
    assert json.dumps(bundle.manifest.architecture)  # plain values


def test_engines_give_the_same_features_at_any_size(exported_lseg):
    bundle, _ = exported_lseg
    image = np.random.default_rng(3).integers(0, 256, (90, 130, 3), np.uint8)
    answers = []
    for kind in (TorchCpu(), OnnxRuntimeCpu()):
        backend = LSegBackend(bundle, kind)
        backend.activate()
        answers.append(backend.features(backend.encode_image_at(image, 96, 160)))
        with pytest.raises(BundleError, match='96 and 128'):
            backend.encode_image_at(image, 100, 160)
        backend.deactivate()
    assert answers[0].shape == (SMALL.embed_dim, 48, 80)
    assert np.abs(answers[0] - answers[1]).max() < 1e-4
