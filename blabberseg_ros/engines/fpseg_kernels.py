# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for FPSeg's encoder: resizing, and 3 x 3 convolutions channel by channel.

Both work on images whose channels lie side by side, [H, W, C], as the matrix products around them
take them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from blabberseg_ros.engines.cuda_kernels import Band, _across, _level

_COLUMNS = 128


def resize_to_pixels(image: Tensor, rows: Tensor, cols: Tensor, down: Band, across: Band,
                     scale: Tensor, offset: Tensor, narrow: Tensor, pixels: Tensor) -> None:
    """Resize as PIL does, across and then down, round to whole grey levels, and normalise.

    Args:
        image: uint8 [H, W, 3].
        rows: float32 [S, H], zero outside the band `down`.
        cols: float32 [W, S], zero outside the band `across`.
        down: where the non-zero weights of each row of `rows` lie.
        across: where those of each column of `cols` lie.
        scale: float32 [3]; a grey level times `scale` less `offset` is normalised.
        offset: float32 [3].
        narrow: float32 [H, S, 3], overwritten.
        pixels: [S, S, 3] of any float type, the result.
    """
    height, width, _ = image.shape
    side = rows.shape[0]
    columns = triton.cdiv(side, _COLUMNS)
    _across[(height, columns)](image, across.first, cols, narrow, width, side,
                               TAPS=across.taps, BLOCK=_COLUMNS)
    _down[(side, triton.cdiv(3 * side, _COLUMNS))](
        narrow, down.first, rows, scale, offset, pixels, height, side, TAPS=down.taps,
        BLOCK=_COLUMNS)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int, activate: bool) -> Tensor:
    """Convolve each channel by itself, 3 x 3 with a border of zeros.

    Args:
        x: [H, W, C], contiguous.
        weight: [9, C] of the same type, row by row of the kernel.
        bias: float32 [C].
        stride: 1 or 2.
        activate: whether an exact GELU follows.

    Returns:
        [H / stride, W / stride, C] of the type of x.
    """
    height, width, channels = x.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    result = torch.empty((out_height, out_width, channels), dtype=x.dtype, device=x.device)
    block = min(triton.next_power_of_2(channels), 128)
    columns = max(1024 // block, 1)
    _depthwise[(out_height, triton.cdiv(out_width, columns), triton.cdiv(channels, block))](
        x, weight, bias, result, height, width, channels, out_width, STRIDE=stride,
        ACTIVATE=activate, COLUMNS=columns, BLOCK=block)
    return result


@triton.jit
def _down(narrow, first, rows, scale, offset, pixels, height, side, TAPS: tl.constexpr,
          BLOCK: tl.constexpr):
    row = tl.program_id(0)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = value < 3 * side
    start = tl.load(first + row)
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in range(TAPS):
        position = start + tap
        weight = tl.load(rows + row * height + position, mask=position < height, other=0.0)
        source = narrow + tl.minimum(position, height - 1) * side * 3 + value
        total += weight * tl.load(source, mask=inside, other=0.0)
    colour = value % 3
    total = _level(total) * tl.load(scale + colour) - tl.load(offset + colour)
    tl.store(pixels + row * side * 3 + value, total.to(pixels.dtype.element_ty), mask=inside)


@triton.jit
def _depthwise(x, weight, bias, result, height, width, channels, out_width,
               STRIDE: tl.constexpr, ACTIVATE: tl.constexpr, COLUMNS: tl.constexpr,
               BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    known = channel < channels
    total = tl.zeros((COLUMNS, BLOCK), tl.float32)
    total += tl.load(bias + channel, mask=known, other=0.0)[None, :]
    for tap in tl.static_range(9):
        y = row * STRIDE + tap // 3 - 1
        x_ = column * STRIDE + tap % 3 - 1
        inside = (x_ >= 0) & (x_ < width)
        # A row outside is read nowhere: its columns count as outside.
        inside = inside & (y + 0 * x_ >= 0) & (y + 0 * x_ < height)
        place = (y * width + x_)[:, None] * channels + channel[None, :]
        value = tl.load(x + place, mask=inside[:, None] & known[None, :], other=0.0)
        w = tl.load(weight + tap * channels + channel, mask=known, other=0.0)
        total += value.to(tl.float32) * w.to(tl.float32)[None, :]
    if ACTIVATE:
        total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    target = (row * out_width + column)[:, None] * channels + channel[None, :]
    tl.store(result + target, total.to(result.dtype.element_ty),
             mask=(column < out_width)[:, None] & known[None, :])
