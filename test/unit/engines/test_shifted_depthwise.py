# SPDX-License-Identifier: Apache-2.0
"""The depthwise convolution by shifted products equals torch's own."""

import pytest
import torch

from blabberseg_ros.engines.shifted_depthwise import ShiftedDepthwise


@pytest.mark.parametrize(('height', 'width'), [(8, 8), (5, 9), (1, 1), (1, 7), (2, 3)])
@pytest.mark.parametrize('bias', [True, False])
@torch.no_grad()
def test_it_equals_the_convolution(height, width, bias):
    torch.manual_seed(height)
    conv = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=bias)
    x = torch.randn(2, height, width, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(ShiftedDepthwise(conv)(x), conv(x), rtol=0, atol=1e-6)
