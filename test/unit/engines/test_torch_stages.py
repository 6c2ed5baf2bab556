# SPDX-License-Identifier: Apache-2.0
"""CLIPSeg's kernels give what the plain layers give; Triton's interpreter needs no GPU."""

import os
import subprocess
import sys

import pytest

PRELUDE = """
import torch
from open_clip.transformer import Attention
from blabberseg_ros.engines.cuda_kernels import stretch
from blabberseg_ros.engines.torch_stages import FusedAttention, FusedDecoderBlock
from blabberseg_ros.models.clipseg import DecoderBlock
from blabberseg_ros.resampling import blur_and_resize_matrices

torch.manual_seed(0)
torch.set_grad_enabled(False)

def compare(found, expected, idle):
    # Nearer to what the plain layer gives than to what an idle one would give, by far.
    assert (found.float() - expected).abs().max() < 0.01 * (expected - idle).abs().max()

"""
CHECKS = {
    'attention': """
for images, tokens, heads, depth in ((1, 130, 2, 32), (3, 64, 1, 16), (2, 5, 3, 16)):
    layer = Attention(heads * depth, heads)
    layer.in_proj_weight.mul_(3)
    x = torch.randn(images, tokens, heads * depth).half()
    expected = layer(x.float())
    even = expected.mean(1, keepdim=True)  # as if all tokens looked at the same ones
    compare(FusedAttention(layer.half())(x), expected, even)
""",
    'decoder_block': """
for images, tokens, parts in ((3, 50, 4), (1, 64, 1), (1, 3, 2)):
    block = DecoderBlock(32, 2, 256)
    block.linear1.bias.normal_()
    block.linear2.bias.normal_()
    x = torch.randn(images, tokens, 32)
    expected = block(x)
    for layer in (block.self_attn, block.linear1, block.linear2):
        layer.half()
    block.self_attn = FusedAttention(block.self_attn)
    with torch.autocast('cpu', torch.float16):
        found = FusedDecoderBlock(block, parts)(x)
    compare(found, expected, x)
""",
    'stretch': """
for side, height, width, blur in ((96, 113, 130, 15), (64, 40, 200, 1), (48, 48, 48, 41)):
    rows, cols = map(torch.tensor, blur_and_resize_matrices(side, height, width, blur))
    small = torch.rand(side, side)
    large = torch.full((height, width), 7.0)
    stretch(small, rows, cols, large)
    assert (large - rows @ small @ cols).abs().max() < 1e-6
small[3, 5] = float('nan')
stretch(small, rows, cols, large)
assert large[3, 5].isnan()
""",
    'sizes': """
assert FusedAttention.fits(Attention(96, 3))
assert not FusedAttention.fits(Attention(96, 4))
assert not FusedAttention.fits(Attention(32, 4))
assert FusedDecoderBlock.fits(DecoderBlock(32, 2, 256), 4)
assert not FusedDecoderBlock.fits(DecoderBlock(32, 2, 192), 4)
assert not FusedDecoderBlock.fits(DecoderBlock(48, 2, 256), 4)
""",
}


@pytest.mark.parametrize('check', CHECKS)
def test_fused_layers_equal_the_plain_ones(check):
    result = subprocess.run(
        [sys.executable, '-c', PRELUDE + CHECKS[check]], capture_output=True, text=True,
        timeout=120, check=False, env={**os.environ, 'TRITON_INTERPRET': '1'})
    assert result.returncode == 0, result.stderr[-2000:]
