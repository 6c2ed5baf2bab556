# SPDX-License-Identifier: Apache-2.0
"""CLIPSeg's kernels give what the plain layers give; Triton's interpreter needs no GPU."""

import pytest

PRELUDE = """
import torch
from torch import nn
from open_clip.transformer import Attention, CustomResidualAttentionBlock, QuickGELU
from blabberseg_ros.engines.cuda_kernels import (
    attention, copy_bytes, empty_bins, feed_forward, head_and_softmax, linear_quick_gelu, stretch,
    threshold_mask)
from blabberseg_ros.engines.torch_stages import (
    CudaStages, FusedAttention, FusedDecoderBlock, FusedMlp)
from blabberseg_ros.models.clipseg import DecoderBlock
from blabberseg_ros.models.clipseg_config import ClipSegConfig
from blabberseg_ros.models.random_clipseg import random_clipseg
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
    # The last has more rows than the kernel is used for.
    'mlp': """
for images, tokens, width in ((1, 70, 64), (2, 5, 128), (1, 64, 192), (3, 400, 64)):
    mlp = CustomResidualAttentionBlock(width, 2, act_layer=QuickGELU).mlp
    mlp.c_fc.weight.mul_(5)
    mlp.c_fc.bias.normal_()
    x = torch.randn(images, tokens, width)
    expected = mlp(x)
    with torch.autocast('cpu', torch.float16):
        compare(FusedMlp(mlp.half())(x), expected, expected.mean((0, 1)))
""",
    'copy': """
for shape, dtype in (((2,), torch.int32), ((60, 81), torch.uint8), ((5000,), torch.float32)):
    source = torch.randint(1, 100, shape).to(dtype)
    target = torch.zeros_like(source)
    copy_bytes(source, target)
    assert torch.equal(source, target)
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
# The last: spans of 32 and 33 pixels, at the end of a step.
for side, height, width, blur in (
        (96, 113, 130, 15), (64, 40, 200, 1), (48, 48, 48, 41), (96, 48, 48, 2)):
    rows, cols = map(torch.tensor, blur_and_resize_matrices(side, height, width, blur))
    small = torch.rand(side, side)
    large = torch.full((height, width), 7.0)
    stretch(small, rows, cols, large)
    assert (large - rows @ small @ cols).abs().max() < 1e-6
""",
    # A broken network must not look sound: NaN reaches every answer that it has a part in.
    'nan': """
nan = float('nan')
for part, rows in ((0, [69]), (1, range(70)), (2, range(70))):  # of a query, a key, a value
    qkv, mixed = torch.randn(2, 70, 96).half(), torch.empty(2, 70, 32).half()
    qkv[1, 69, 32 * part + 3] = nan
    attention(qkv, 2, mixed)
    assert not mixed[0].isnan().any() and not mixed[1, :, 16:].isnan().any()
    assert mixed[1].isnan().any(-1).nonzero().flatten().tolist() == list(rows)

x, hidden = torch.randn(70, 64).half(), torch.empty(70, 128).half()
x[66, 0] = nan
linear_quick_gelu(x, torch.randn(128, 64).half(), torch.randn(128).half(), hidden)
assert hidden[66].isnan().all() and hidden.isnan().any(-1).sum() == 1

x, sums = torch.randn(70, 32).half(), torch.empty(2, 70, 32)
x[66, 0] = nan
weight = torch.randn(256, 32).half()
feed_forward(x, weight, torch.randn(256), weight.T.contiguous(), sums)
assert sums.isnan().all(-1).tolist() == [[row == 66 for row in range(70)]] * 2
assert sums.isnan().any(-1).sum() == 2

tokens = torch.randn(3, 4, 32).half()
tokens[1, 2, 5] = nan
first = torch.randn(16, 32, 16).half(), torch.randn(16)
second = torch.randn(16, 16).half(), torch.randn(1)
small = torch.empty(32, 32)
head_and_softmax(tokens, first, second, torch.tensor([1.0, 0.0, 0.0]), small)
broken = torch.zeros(32, 32, dtype=torch.bool)
broken[16:, :16] = True  # the third of the four tokens
assert torch.equal(small.isnan(), broken)

rows, cols = map(torch.tensor, blur_and_resize_matrices(32, 60, 80, 3))
large = torch.empty(60, 80)
stretch(small, rows, cols, large)
assert large[32:, :36].isnan().all() and large[:20, 50:].isfinite().all()

thresholds, wanted = torch.linspace(1, 0, 101), torch.tensor([1, 100], dtype=torch.int32)
mask, found = torch.empty(60, 80, dtype=torch.uint8), torch.empty(2, dtype=torch.int32)
threshold_mask(large, thresholds, wanted, empty_bins('cpu'), mask, found)
assert found[1] == large.isnan().sum() and not mask[large.isnan()].any()
""",
    'network': """
config = ClipSegConfig(
    vision_width=192, vision_heads=3, vision_mlp=768, text_width=48, text_heads=3, text_layers=2,
    text_mlp=192, embed_dim=48, reduce_dim=32, decoder_heads=2, decoder_ffn=256)
stages = object.__new__(CudaStages)
stages.model = random_clipseg(config)
stages._fuse_layers()
def count(part, kind):
    return sum(isinstance(module, kind) for module in part.modules())
tower, decoder = stages.model.visual, stages.model.blocks
assert count(tower, FusedAttention) == count(tower, Attention) == len(tower.transformer.resblocks)
assert count(tower, FusedMlp) == len(tower.transformer.resblocks)
assert count(decoder, FusedAttention) == count(decoder, FusedDecoderBlock) == 3
assert count(stages.model.transformer, (FusedAttention, FusedMlp)) == 0
try:
    decoder[0].block.self_attn(torch.zeros(1, 4, 32), attn_mask=torch.zeros(4, 4))
except NotImplementedError:
    pass
else:
    raise AssertionError('a mask was ignored')
""",
    'sizes': """
assert FusedAttention.fits(Attention(96, 3))
assert not FusedAttention.fits(Attention(96, 4))
assert not FusedAttention.fits(Attention(32, 4))
assert FusedAttention.fits(Attention(256, 2))
assert not FusedAttention.fits(Attention(256, 1))
def mlp(width, ratio=4.0, activation=QuickGELU):
    return CustomResidualAttentionBlock(width, 2, ratio, act_layer=activation).mlp
assert FusedMlp.fits(mlp(64))
assert not FusedMlp.fits(mlp(96))
assert not FusedMlp.fits(mlp(64, 3.0))
assert not FusedMlp.fits(mlp(64, activation=nn.GELU))
assert FusedDecoderBlock.fits(DecoderBlock(32, 2, 256), 4)
assert not FusedDecoderBlock.fits(DecoderBlock(32, 2, 192), 4)
assert not FusedDecoderBlock.fits(DecoderBlock(48, 2, 256), 4)
assert not FusedDecoderBlock.fits(DecoderBlock(256, 2, 256), 4)
""",
}


@pytest.mark.parametrize('check', CHECKS)
def test_fused_layers_equal_the_plain_ones(interpret, check):
    interpret(PRELUDE + CHECKS[check])
