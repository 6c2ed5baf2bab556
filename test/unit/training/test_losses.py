# SPDX-License-Identifier: Apache-2.0
"""The losses on logits whose worth can be worked out by hand."""

import math

import torch

from blabberseg_ros.training.config import LossConfig
from blabberseg_ros.training.losses import Targets, class_weights, prompt_losses

# Three prompts: class 1, class 2, and classes 2 and 3; the last is negative. Class 4 has none.
_COVERS = torch.zeros((1, 4, 5), dtype=torch.bool)
_COVERS[0, 0, 1] = _COVERS[0, 1, 2] = _COVERS[0, 2, 2] = _COVERS[0, 2, 3] = True
_TARGETS = Targets(_COVERS, torch.tensor([[True, True, False, False]]),
                   torch.tensor([[True, True, True, False]]))
_WEIGHTS = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])


def _losses(logits, labels, targets=_TARGETS, weights=_WEIGHTS):
    logits = torch.tensor(logits, dtype=torch.float32).view(1, 4, 1, -1)
    return prompt_losses(logits, torch.tensor(labels).view(1, 1, -1), targets, weights,
                         LossConfig())


def test_right_answers_cost_nothing() -> None:
    # A pixel of class 1 and one of class 3; the padded fourth prompt shouts and is not heard.
    losses = _losses([[20, -20], [-20, -20], [-20, 20], [99, 99]], [1, 3])
    assert losses.coverage < 1e-6
    assert losses.polarity < 1e-6
    assert losses.separate < 1e-6


def test_wrong_answers_cost_their_distance() -> None:
    losses = _losses([[-10, 10], [-10, -10], [10, -10], [0, 0]], [1, 3])
    assert abs(losses.coverage - 20) < 1e-3
    # For the first pixel two positive prompts share what is left.
    assert abs(losses.polarity - (20 - math.log(2) / 2)) < 1e-3


def test_a_class_that_two_prompts_share_may_be_split_between_them() -> None:
    losses = _losses([[-20], [3], [3], [0]], [2])
    assert losses.coverage < 1e-6


def test_polarity_says_nothing_where_prompts_of_both_kinds_cover_a_class() -> None:
    losses = _losses([[5], [-5], [-5], [0]], [2])
    assert losses.polarity == 0
    assert losses.coverage > 1


def test_unknown_and_uncovered_pixels_say_nothing_of_the_set() -> None:
    losses = _losses([[5, 5], [0, 0], [0, 0], [0, 0]], [0, 4])
    assert losses.coverage == 0
    assert losses.polarity == 0


def test_a_set_of_one_polarity_says_nothing_of_polarity() -> None:
    targets = Targets(_COVERS, torch.ones((1, 4), dtype=torch.bool), _TARGETS.valid)
    assert _losses([[0], [5], [0], [0]], [1], targets).polarity == 0


def test_gradients_stay_finite_and_reach_every_valid_prompt() -> None:
    logits = torch.zeros((1, 4, 2, 2), requires_grad=True)
    labels = torch.tensor([[[1, 2], [3, 4]]])
    prompt_losses(logits, labels, _TARGETS, _WEIGHTS, LossConfig()).total.backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs().sum((0, 2, 3)) > 0).tolist() == [True, True, True, False]


def test_rare_classes_weigh_more_within_bounds() -> None:
    weights = class_weights(torch.tensor([500, 8000, 1900, 99, 1]), 0.5)
    assert weights[0] == 0
    assert weights[1] < weights[2] < weights[3] <= weights[4] <= 6
    assert class_weights(torch.tensor([0, 5, 1]), 0.0).tolist() == [0, 1, 1]
