# SPDX-License-Identifier: Apache-2.0
"""FPSeg's CUDA stages on the CPU: the kernels by Triton's interpreter, the rest in fp32."""

import pytest

PRELUDE = """
import torch
from torch.nn import functional
from blabberseg_ros.engines import fpseg_kernels, torch_fpseg
from blabberseg_ros.engines.cuda_kernels import triangle_band
from blabberseg_ros.models.folding import fold_batch_norms
from blabberseg_ros.models.random_fpseg import SMALL, random_fpseg
from blabberseg_ros.models.stages import resize
from blabberseg_ros.resampling import triangle_matrices
torch.manual_seed(0)
torch.set_grad_enabled(False)
model = random_fpseg(SMALL)
fold_batch_norms(model)

def close(ours, expected, tolerance=2e-5):
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    error = (ours - expected).abs().max().item()
    assert error < tolerance, error
"""
CHECKS = {
    'depthwise': """
x, weight, bias = torch.randn(9, 70, 40), torch.randn(40, 1, 3, 3), torch.randn(40)
for stride in (1, 2):
    wanted = functional.conv2d(x.permute(2, 0, 1)[None], weight, bias, stride, 1, groups=40)
    wanted = wanted[0].permute(1, 2, 0)
    flat = weight.flatten(1).T.contiguous()
    close(fpseg_kernels.depthwise(x, flat, bias, stride, False), wanted)
    close(fpseg_kernels.depthwise(x, flat, bias, stride, True), functional.gelu(wanted))
""",
    'resize': """
image = torch.randint(0, 256, (40, 56, 3), dtype=torch.uint8)
rows, cols = map(torch.tensor, triangle_matrices(40, 56, 64))
scale, offset = torch.tensor([.01, .02, .03]), torch.tensor([1., 2., 3.])
pixels = torch.empty(64, 64, 3)
fpseg_kernels.resize_to_pixels(
    image, rows, cols, triangle_band(40, 64, 'cpu'), triangle_band(56, 64, 'cpu'), scale, offset,
    torch.empty(40, 64, 3), pixels)
close(pixels, resize(image.permute(2, 0, 1).float(), rows, cols).permute(1, 2, 0) * scale - offset)
""",
    'encoder': """
pixels = torch.randn(64, 64, 3)
fast = torch_fpseg.FastTinyVit(model.image_encoder, torch.float32)
close(fast(pixels), model.encode_images(pixels.permute(2, 0, 1)[None])[0].permute(1, 2, 0))
""",
    'decoder': """
code, tokens = torch.randn(32, 16, 16), model.prompt_encoder.prompt_embeddings
dense, bias = torch.randn(11, 32), torch.zeros(11, 3)
bias[4, 1:] = -1e4
half = torch_fpseg.HalfDecoder(model, torch.float32)
close(half(code, tokens, dense, bias), model.decode(code[None], tokens, dense, bias))
""",
}


@pytest.mark.parametrize('check', CHECKS)
def test_fast_parts_equal_the_network(interpret, check):
    interpret(PRELUDE + CHECKS[check])
