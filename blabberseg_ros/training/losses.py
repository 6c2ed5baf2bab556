# SPDX-License-Identifier: Apache-2.0
"""What a prompted segmentation shall be: three losses on the logits of a prompt set."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from blabberseg_ros.training.config import LossConfig

_NEVER = -1e4


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch of prompt sets, padded to the same number of prompts.

    Attributes:
        covers: bool [B, P, C]; whether a prompt stands for a class; false for padding.
        is_positive: bool [B, P].
        valid: bool [B, P]; false for padding.
    """

    covers: Tensor
    is_positive: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Losses:
    """The three losses of a batch, those of helpers, and the weighted sum; scalar tensors."""

    coverage: Tensor
    polarity: Tensor
    separate: Tensor
    total: Tensor
    helpers: tuple[tuple[str, Tensor], ...] = ()

    def plus(self, name: str, weight: float, loss: Tensor) -> 'Losses':
        """Return the losses with one more of a helper."""
        return replace(self, total=self.total + weight * loss,
                       helpers=(*self.helpers, (name, loss)))

    @property
    def line(self) -> str:
        """Return the losses as text; waits for the device."""
        parts = (('coverage', self.coverage), ('polarity', self.polarity),
                 ('separate', self.separate), *self.helpers)
        return '  '.join(f'{name} {loss.item():.3f}' for name, loss in parts)


def prompt_losses(logits: Tensor, labels: Tensor, targets: Targets, class_weights: Tensor,
                  config: LossConfig) -> Losses:
    """Compare logits with what the prompts stand for.

    Coverage: the softmax over the prompts, summed over those that stand for a pixel's class,
    shall be 1. Whoever later calls these prompts safe or unsafe, the answer is then right.
    Polarity: the sum over the positive prompts shall be 1 on classes that only positive prompts
    stand for and 0 on those of negative prompts alone; this is the map that is used. Separate:
    each prompt's own sigmoid, as CLIPSeg was trained. Pixels of classes that no prompt stands for
    (or, for polarity, prompts of both kinds) say nothing and are left out.

    Args:
        logits: float [B, P, H, W].
        labels: int64 [B, H, W].
        targets: what the prompts stand for.
        class_weights: float [C].
        config: weights of the losses.
    """
    logits = logits.float()
    covered = _per_pixel(targets.covers, labels)
    padding = ~targets.valid[:, :, None, None]
    masked = logits.masked_fill(padding, _NEVER)
    everything = masked.logsumexp(1)
    weight = class_weights[labels]

    own = masked.masked_fill(~covered, _NEVER).logsumexp(1)
    known = covered.any(1)
    coverage = _mean(everything - own, weight * known)

    positive = targets.is_positive & targets.valid
    negative = ~targets.is_positive & targets.valid
    safe = _per_pixel((targets.covers & positive[:, :, None]).any(1, keepdim=True), labels)[:, 0]
    unsafe = _per_pixel((targets.covers & negative[:, :, None]).any(1, keepdim=True), labels)[:, 0]
    log_safe = masked.masked_fill(~positive[:, :, None, None], _NEVER).logsumexp(1)
    log_unsafe = masked.masked_fill(~negative[:, :, None, None], _NEVER).logsumexp(1)
    wrong = everything - torch.where(safe, log_safe, log_unsafe)
    # A set of one polarity alone teaches nothing about the other.
    both = (positive.any(1) & negative.any(1))[:, None, None]
    polarity = _mean(wrong, weight ** config.polarity_balance * ((safe ^ unsafe) & both))

    each = functional.binary_cross_entropy_with_logits(
        logits, covered.float(), reduction='none')
    separate = _mean(each, (weight * (labels > 0))[:, None] * ~padding)

    total = (config.coverage * coverage + config.polarity * polarity
             + config.separate * separate)
    return Losses(coverage, polarity, separate, total)


def class_weights(counts: Tensor, balance: float) -> Tensor:
    """Return a weight for each class from its number of pixels; rarer classes weigh more.

    Args:
        counts: pixels of each class, [C]; class 0 (unknown) gets the weight 0.
        balance: exponent; 0 weighs all alike.
    """
    share = counts.double() / counts[1:].sum().clamp(min=1)
    weights = (0.1 / share.clamp(min=1e-4)) ** balance
    weights[0] = 0.0
    return weights.clamp(0.0, 6.0).float()


def _per_pixel(covers: Tensor, labels: Tensor) -> Tensor:
    """Look up [B, P, C] by the labels [B, H, W] of each pixel: [B, P, H, W]."""
    index = labels[:, None].expand(-1, covers.shape[1], -1, -1).flatten(2)
    return covers.gather(2, index).unflatten(2, labels.shape[1:])


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    weight = weight.float()
    return (values * weight).sum() / weight.expand_as(values).sum().clamp(min=1.0)
