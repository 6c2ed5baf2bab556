# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions and enlargements as matrix products: the same numbers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from blabberseg_ros.models.clipseg import ClipSeg
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.training.upsampling import SparseUpsampling, use_products

TINY = ClipSegConfig(
    input_size_px=32, pretrain_grid=2, vision_width=16, vision_heads=2, vision_layers=3,
    vision_mlp=16, extract=(0, 1, 2), embed_dim=8, text_width=8, text_heads=2, text_layers=1,
    text_mlp=8, reduce_dim=8, decoder_heads=2, decoder_ffn=8, head='complex')


@pytest.mark.parametrize('head', ['simple', 'complex'])
def test_products_equal_transposed_convolutions(head) -> None:
    torch.manual_seed(0)
    plain = ClipSeg(ClipSegConfig(**{**TINY.to_dict(), 'head': head}))
    product = copy.deepcopy(plain)
    use_products(product)
    assert list(product.state_dict()) == list(plain.state_dict())
    code, pair = torch.randn(3, 5, 8), torch.randn(2, 4, 8)
    expected, found = (model.decode(code, *pair) for model in (plain, product))
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    for (name, weight), other in zip(plain.named_parameters(), product.parameters(), strict=True):
        if weight.grad is not None:
            torch.testing.assert_close(other.grad, weight.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_a_kernel_that_overlaps_is_refused() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 2, 3, stride=2))
    with pytest.raises(ValueError, match='differ'):
        use_products(model)


@pytest.mark.parametrize('align_corners', [True, False])
def test_a_few_pixels_of_an_enlarged_map_are_those_of_the_whole(align_corners) -> None:
    maps = torch.rand((2, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    whole = functional.interpolate(maps, (22, 22), mode='bilinear', align_corners=align_corners)
    some = slice(1, None, 3)
    found = SparseUpsampling(align_corners)(maps, 22, some)
    torch.testing.assert_close(found, whole[..., some, some])
