# SPDX-License-Identifier: Apache-2.0
"""A depthwise convolution in a form that compilers fuse with what follows it."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ShiftedDepthwise(nn.Module):
    """A depthwise 3 x 3 convolution as the sum of nine shifted products.

    Each product is one operation a value, so a compiler makes one kernel of all of them, of the
    bias and of what follows; a library's convolution would write its result first.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over the weights of a convolution with a border of zeros."""
        super().__init__()
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias
        # Nine rows, each the weights of all channels at one place of the kernel.
        self.register_buffer('weight', conv.weight.detach().float().flatten(1).T.contiguous())
        self.register_buffer('bias', bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W], which is a view of [B, H, W, C], to the same."""
        x = x.permute(0, 2, 3, 1)
        height, width = x.shape[1:3]
        padded = functional.pad(x, (0, 0, 1, 1, 1, 1))
        total = self.bias
        for place in range(9):
            top, left = divmod(place, 3)
            total = total + self.weight[place] * padded[:, top:top + height, left:left + width]
        return total.permute(0, 3, 1, 2)
