# SPDX-License-Identifier: Apache-2.0
"""`blabberseg compare` as a user runs it."""

import csv

import cv2
import numpy as np
import pytest
import torch

from blabberseg_ros.backends.clipseg import ClipSegBackend
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.cli.main import main
from blabberseg_ros.engines.onnxruntime import OnnxRuntimeCpu
from blabberseg_ros.errors import EngineError, ParameterError
from blabberseg_ros.heatmap import FusionOptions
from blabberseg_ros.parity.compare import compare
from blabberseg_ros.parity.frames import moving_frames
from blabberseg_ros.parity.layers import TOLERANCE, Question, compare_nodes
from blabberseg_ros.parity.reference import TorchCpu
from blabberseg_ros.parity.variants import Variant, kind_of
from blabberseg_ros.prompts import default_prompts

SIZE = (96, 128)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    for index, image in enumerate(moving_frames(2, SIZE[::-1])):
        cv2.imwrite(str(path / f'{index}.png'), image[..., ::-1])
    return path


def test_the_table(random_bundle, folder, tmp_path, capsys):
    table = tmp_path / 'table.csv'
    assert main(['compare', '@torch-cpu', f'{random_bundle}@onnxruntime-cpu', str(folder),
                 '--bundle', str(random_bundle), '--out', str(table)]) == 0
    printed = capsys.readouterr().out
    for wanted in ('cosine of the logits', 'changed sides  0 in', 'mask IoU', 'fixed threshold',
                   'dynamic threshold of each map', 'threshold, B - A'):
        assert wanted in printed
    with open(table, newline='') as stream:
        rows = list(csv.DictReader(stream))
    assert [row['image'] for row in rows] == ['0.png', '1.png']
    assert float(rows[0]['cosine']) > 0.99999
    assert float(rows[0]['accuracy_dynamic']) > 0.99


def test_a_shifted_model_shows_in_every_figure(random_bundle):
    bundle = load_bundle(random_bundle)

    class Shifted(ClipSegBackend):
        def decode(self, image, prompts):
            return np.roll(super().decode(image, prompts), 16, axis=2)

    backends = [ClipSegBackend(bundle, OnnxRuntimeCpu()), Shifted(bundle, OnnxRuntimeCpu())]
    for backend in backends:
        backend.activate()
    images = [('one', image) for image in moving_frames(1, SIZE[::-1])]
    prompts = default_prompts()
    same = compare(backends[0], backends[0], images, prompts, FusionOptions())
    other = compare(*backends, images, prompts, FusionOptions())
    assert same.images[0].cosine == pytest.approx(1)
    assert (same.images[0].max_dp, same.flips, same.mask_iou) == (0, 0, 1)
    assert (same.dynamic.accuracy, same.fixed.accuracy) == (1, 1)
    assert other.images[0].cosine < 0.99
    assert other.images[0].max_dp > 1e-3
    assert other.mask_iou < 0.99
    assert other.dynamic.accuracy < 0.999
    assert other.dynamic.iou[1] < other.dynamic.recall[1]


def test_all_nodes_of_torch_and_onnx_runtime_agree(random_bundle):
    bundle = load_bundle(random_bundle)
    nodes = list(compare_nodes((bundle, TorchCpu()), (bundle, OnnxRuntimeCpu()),
                               Question(moving_frames(1, SIZE[::-1])[0], default_prompts(),
                                        FusionOptions())))
    counts = {stage: sum(node.stage == stage for node in nodes)
              for stage in ('text_encoder', 'film', 'image_encoder', 'decoder', 'fusion')}
    assert counts['image_encoder'] > 100
    assert counts['decoder'] > 30
    assert min(counts.values()) > 0
    assert max(node.error for node in nodes) < TOLERANCE['fp32']


def test_layers_name_the_node_where_a_mistake_was_made(random_bundle):
    def no_position(model):
        with torch.no_grad():
            model.visual.positional_embedding.zero_()

    def other_norm(model):
        with torch.no_grad():
            model.blocks[1].norm1.weight.mul_(1.1)

    bundle = load_bundle(random_bundle)
    question = Question(moving_frames(1, SIZE[::-1])[0], default_prompts(), FusionOptions())
    expected = {no_position: ('image_encoder', 'add_1'), other_norm: ('decoder', 'layer_norm_2')}
    for modify, first in expected.items():
        nodes = compare_nodes((bundle, TorchCpu()), (bundle, TorchCpu(modify=modify)), question)
        over = [(node.stage, node.name) for node in nodes if node.error > TOLERANCE['fp32']]
        assert over[0] == first


def test_layers_on_the_command_line(random_bundle, folder, capsys):
    assert main(['compare', '@torch-cpu', '@torch-cpu:bf16', str(folder), '--bundle',
                 str(random_bundle), '--layers', '--tolerance', '1e-5']) == 1
    lines = capsys.readouterr().out.splitlines()
    encoder, = [line for line in lines if line.startswith('image_encoder')]
    assert 'first over 1e-05: conv2d' in encoder
    text, = [line for line in lines if line.startswith('text_encoder')]
    assert 'none over' in text


def test_an_engine_that_cannot_run_the_bundle_is_refused(random_bundle, folder, capsys):
    """Without the check fp32 would run under the name of int8."""
    assert main(['compare', '@onnxruntime-cpu', '@onnxruntime-cpu-int8', str(folder), '--bundle',
                 str(random_bundle)]) == 2
    assert 'has no int8 graph' in capsys.readouterr().err


def test_variants():
    assert Variant.parse('here/it/is@torch-cuda:bf16') == Variant(
        'here/it/is', 'torch-cuda', 'bf16')
    assert Variant.parse('bundle') == Variant('bundle', 'auto', '')
    assert Variant.parse('@torch-cpu') == Variant('', 'torch-cpu', '')
    assert kind_of('onnxruntime-cpu').name == 'onnxruntime-cpu'
    with pytest.raises(EngineError, match='no engine'):
        kind_of('abacus')
    with pytest.raises(ParameterError, match='precision'):
        kind_of('onnxruntime-cpu', 'fp16')
    with pytest.raises(ParameterError, match='precision'):
        kind_of('torch-cpu', 'int3')
