# SPDX-License-Identifier: Apache-2.0
"""Which numbers of prompts share a build, and what is fed where there is none."""

import math

import numpy as np
import pytest

from blabberseg_ros.backends.registry import backend_class
from blabberseg_ros.bundle import load_bundle
from blabberseg_ros.engines.base import TensorSpec
from blabberseg_ros.engines.prompt_padding import (
    LENGTHS,
    counts_prompts,
    fewest_padded_alike,
    filling,
    padded_length,
    padded_shapes,
    prompt_count,
)
from blabberseg_ros.engines.torch_cuda import TorchCuda
from blabberseg_ros.errors import EngineError
from blabberseg_ros.parity.gate import Shapes, shared_shapes
from blabberseg_ros.prompts import MAX_PROMPTS, default_prompts

COUNTING = frozenset({'mul', 'positive'})


def feeds(mul, positive):
    return {'code': np.zeros((3, 5, 4)), 'mul': np.zeros((mul, 4)),
            'positive': np.zeros(positive), 'rows': np.zeros((9, 8))}


@pytest.mark.parametrize(('count', 'length', 'fewest'), [
    (1, 1, 1), (2, 2, 2), (4, 4, 4), (5, 6, 5), (6, 6, 5), (7, 8, 7), (9, 10, 9), (11, 13, 11),
    (13, 13, 11), (14, 16, 14), (17, 24, 17), (256, 256, 193), (257, 257, 257)])
def test_lengths(count, length, fewest):
    assert (padded_length(count), fewest_padded_alike(count)) == (length, fewest)


def test_every_number_is_padded_as_the_fewest_that_share_its_length_are():
    for count in range(1, MAX_PROMPTS + 1):
        fewest = fewest_padded_alike(count)
        assert fewest <= count <= padded_length(count) == padded_length(fewest)
        assert fewest == 1 or padded_length(fewest - 1) < padded_length(count)
    assert padded_length(MAX_PROMPTS) == LENGTHS[-1]
    assert padded_length(len(default_prompts())) == len(default_prompts())


def test_only_what_counts_prompts_is_padded():
    given = feeds(5, 5)
    assert prompt_count(COUNTING, given) == 5
    assert padded_shapes(COUNTING, given, 5) == {
        'code': (3, 5, 4), 'mul': (6, 4), 'positive': (6,), 'rows': (9, 8)}


def test_inputs_without_prompts_stay_as_they_are():
    assert not counts_prompts(TensorSpec('positive', 'float32', (150,)))
    given = {'positive': np.zeros(150)}
    assert prompt_count(frozenset(), given) == 0
    assert padded_shapes(frozenset(), given, 0) == {'positive': (150,)}


@pytest.mark.parametrize('counts', [(5, 6), (0, 0)])
def test_padding_hides_no_mistake(counts):
    with pytest.raises(EngineError, match=r'not of one number of prompts.*mul'):
        prompt_count(COUNTING, feeds(*counts))


def test_fillings():
    assert (filling('positive'), filling('logits'), filling('mul')) == (-1, -math.inf, 0)


@pytest.mark.parametrize(('family', 'rows', 'fewest'), [
    ('clipseg', 6, 5), ('lseg', 6, 5), ('fpseg', 6, 5), ('segformer', 150, 150)])
def test_which_rows_torch_cuda_runs_alike(make_random_bundle, family, rows, fewest):
    backend = backend_class(family)(load_bundle(make_random_bundle(family)), TorchCuda())
    assert shared_shapes(backend, Shapes(64, 48, rows)) == Shapes(64, 48, fewest)


@pytest.mark.parametrize('family', ['clipseg', 'lseg', 'fpseg', 'segformer'])
def test_the_rule_fits_the_stages_of_every_family(family):
    """The axis is the first, and only fusions of logits without prompts have a fixed one."""
    from blabberseg_ros.models.families import random_network, stages_of

    for name, stage in stages_of(random_network(family)).items():
        for spec in (*stage.inputs, *stage.outputs):
            assert 'prompts' not in spec.shape[1:]
            if spec.name in ('positive', 'logits'):
                assert counts_prompts(spec) == (family != 'segformer'), name


HEAD = """
import torch
from blabberseg_ros.engines.cuda_kernels import head_and_softmax

torch.manual_seed(0)
grid, width = 5, 32
first = torch.randn(16, width, width // 2).half() / 5, torch.randn(width // 2)
second = torch.randn(width // 2, 16).half(), torch.randn(1)

def answer(tokens, positive):
    probability = torch.full((16 * grid, 16 * grid), float('nan'))
    head_and_softmax(tokens, first, second, positive, probability)
    return probability

for count, length in ((1, 2), (3, 3), (5, 6), (5, 8)):
    tokens = torch.randn(length, grid * grid, width).half()
    tokens[count:] *= 1e3  # the largest logits of all
    positive = torch.cat(((torch.arange(count) % 2 == 0).float(), -torch.ones(length - count)))
    padded = answer(tokens, positive)
    assert torch.equal(padded, answer(tokens[:count].contiguous(), positive[:count]))
    assert (0 <= padded).all() and (padded <= 1).all()
    tokens[count:] = float('nan')
    assert torch.equal(padded, answer(tokens, positive))
hidden = torch.einsum('pti,kio->ptko', tokens[:count].float(), first[0].float()) + first[1]
logits = hidden.relu() @ second[0].float() + second[1]
wanted = (logits.softmax(0) * positive[:count, None, None, None]).sum(0)
wanted = wanted.reshape(grid, grid, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5)
assert (padded - wanted.reshape(padded.shape)).abs().max() < 0.01
"""


def test_the_fused_head_gives_padding_no_share(interpret):
    interpret(HEAD)
