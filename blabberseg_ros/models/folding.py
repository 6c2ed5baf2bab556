# SPDX-License-Identifier: Apache-2.0
"""Convolutions with a batch norm, which is folded into them once training is over."""

import copy

import torch
from torch import Tensor, nn


class NormedConv2d(nn.Conv2d):
    """A convolution that has a batch norm behind it until `fold`, and a bias from then on.

    At inference a batch norm is a scale and a shift for each channel, so folding it is exact.
    """

    def __init__(self, channels: int, out: int, kernel_size: int, *, stride: int = 1,
                 padding: int = 0, norm: bool) -> None:
        """Create a convolution with a batch norm, or else with a bias."""
        super().__init__(channels, out, kernel_size, stride=stride, padding=padding,
                         bias=not norm)
        self.norm: nn.BatchNorm2d | None = nn.BatchNorm2d(out) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise."""
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)

    @torch.no_grad()
    def fold(self) -> None:
        """Turn the batch norm into weights and a bias."""
        if self.norm is None:
            return
        weight, bias = fold_batch_norm(self.weight, self.norm)
        self.weight.copy_(weight)
        self.bias = nn.Parameter(bias)
        self.norm = None


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every batch norm that lies behind a convolution of its own."""
    for module in list(model.modules()):
        fold = getattr(module, 'fold', None)
        if callable(fold):
            fold()


def folded(model: nn.Module) -> nn.Module:
    """Return a copy of a network without batch norms, as bundles hold it."""
    model = copy.deepcopy(model)
    fold_batch_norms(model)
    return model


def fold_batch_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight [out, in, k, k] and bias [out] of a convolution that includes a batch norm."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError('the batch norm has no running statistics')
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    bias = norm.bias.double() - scale * mean.double()
    folded = weight.double() * scale[:, None, None, None]
    return folded.to(weight.dtype), bias.to(weight.dtype)
