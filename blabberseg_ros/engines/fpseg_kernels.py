# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for FPSeg: resizing, 3 x 3 convolutions channel by channel, attention.

All of them work on images whose channels lie side by side, [H, W, C], as the matrix products
around them take them. Libraries' attention kernels are made for thousands of queries and keys;
windows of 49 tokens, classes of 65 and heads 16 wide leave them mostly idle.
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


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Run a linear layer, add a residual and apply an exact GELU, in one pass over the result.

    With few channels the layer's time is that of its result's way to memory and back.

    Args:
        x: [M, K], contiguous.
        weight: [N, K] of the same type, contiguous.
        bias: float32 [N].
        residual: [M, N], contiguous, or None.

    Returns:
        [M, N] of the type of x.
    """
    count, channels = x.shape
    out = weight.shape[0]
    result = torch.empty((count, out), dtype=x.dtype, device=x.device)
    # Small blocks: several programs on a multiprocessor hide the way to memory.
    rows, columns = 64, 64 if out % 128 else 128
    _linear_gelu[(triton.cdiv(out, columns), triton.cdiv(count, rows))](
        x, weight, bias, x if residual is None else residual, result, count, channels, out,
        HAS_RESIDUAL=residual is not None, ROWS=rows, COLUMNS=columns, CHUNK=64, num_warps=8)
    return result


def attend_in_windows(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attend among the tokens of each window.

    Args:
        qkv: [B, N, 3 C], a head's queries, keys and values side by side, contiguous.
        bias: float32 [heads, N, N], added to the scores, contiguous.
        heads: number of heads.

    Returns:
        [B, N, C].
    """
    batch, tokens, triple = qkv.shape
    depth = triple // 3 // heads
    result = torch.empty((batch, tokens, triple // 3), dtype=qkv.dtype, device=qkv.device)
    rows, keys = 64, max(triton.next_power_of_2(tokens), 16)
    _attend[(triton.cdiv(tokens, rows), heads, batch)](
        qkv, qkv, qkv, bias, result, tokens, tokens, depth ** -0.5, tokens * triple, triple,
        3 * depth, tokens * triple, triple, 3 * depth, depth, 2 * depth, 0, tokens * tokens,
        tokens, heads * depth, DEPTH=depth, ROWS=rows, KEYS=keys, HAS_BIAS=True,
        num_warps=8 if keys > 128 else 4)
    return result


def attend_to_few(query: Tensor, key: Tensor, value: Tensor, heads: int,
                  bias: Tensor | None) -> Tensor:
    """Attend to at most 256 keys.

    Args:
        query: [B, Q, C], or [1, Q, C] for all rows, contiguous.
        key: [B, K, C], contiguous.
        value: [B, K, C], contiguous.
        heads: number of heads.
        bias: float32 [B, heads, K], added to the scores, contiguous; None for none.

    Returns:
        [B, Q, C].
    """
    batch, keys, channels = key.shape
    queries = query.shape[1]
    result = torch.empty((batch, queries, channels), dtype=query.dtype, device=query.device)
    depth = channels // heads
    rows = 64
    _attend[(triton.cdiv(queries, rows), heads, batch)](
        query, key, value, query if bias is None else bias, result, queries, keys, depth ** -0.5,
        queries * channels if query.shape[0] > 1 else 0, channels, depth, keys * channels,
        channels, depth, 0, 0, heads * keys, keys, 0, channels, DEPTH=depth, ROWS=rows,
        KEYS=max(triton.next_power_of_2(keys), 16), HAS_BIAS=bias is not None)
    return result


def attend_to_many(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attend from few queries to thousands of keys, which several programs share.

    Args:
        query: [B, Q, C], contiguous.
        key: [B, K, C], contiguous.
        value: [B, K, C], contiguous.
        heads: number of heads.

    Returns:
        [B, Q, C].
    """
    batch, queries, channels = query.shape
    keys, depth = key.shape[1], channels // heads
    parts = max(min(keys // 256, 16), 1)
    each = -(-keys // parts)
    sums = torch.empty((parts, batch, heads, queries, depth), device=query.device)
    peaks = torch.empty((parts, batch, heads, queries), device=query.device)
    totals = torch.empty((parts, batch, heads, queries), device=query.device)
    rows = 128
    _attend_part[(triton.cdiv(queries, rows), heads, batch * parts)](
        query, key, value, sums, peaks, totals, batch, queries, keys, each, depth ** -0.5,
        heads, DEPTH=depth, ROWS=rows, KEYS=64)
    weights = torch.exp(peaks - peaks.amax(0, keepdim=True))
    joined = (sums * weights[..., None]).sum(0) / (totals * weights).sum(0)[..., None]
    return joined.transpose(1, 2).reshape(batch, queries, channels).to(query.dtype)


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


@triton.jit
def _attend(query, key, value, bias, result, queries, keys, scale, query_batch, query_token,
            query_head, key_batch, key_token, key_head, key_offset, value_offset, bias_batch,
            bias_head, bias_query, channels, DEPTH: tl.constexpr, ROWS: tl.constexpr,
            KEYS: tl.constexpr, HAS_BIAS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    batch = tl.program_id(2)
    depth = tl.arange(0, DEPTH)
    column = tl.arange(0, KEYS)
    known = row < queries
    seen = column < keys
    q = tl.load(query + batch * query_batch + head * query_head + row[:, None] * query_token
                + depth[None, :], mask=known[:, None], other=0.0)
    place = batch * key_batch + head * key_head + column[:, None] * key_token + depth[None, :]
    k = tl.load(key + key_offset + place, mask=seen[:, None], other=0.0)
    v = tl.load(value + value_offset + place, mask=seen[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k)) * scale
    if HAS_BIAS:
        scores += tl.load(bias + batch * bias_batch + head * bias_head
                          + row[:, None] * bias_query + column[None, :],
                          mask=known[:, None] & seen[None, :], other=0.0)
    scores = tl.where(seen[None, :], scores, -float('inf'))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)
    found = tl.dot(weights.to(v.dtype), v) / total[:, None]
    tl.store(result + (batch * queries + row[:, None]) * channels + head * DEPTH + depth[None, :],
             found.to(result.dtype.element_ty), mask=known[:, None])


@triton.jit
def _attend_part(query, key, value, sums, peaks, totals, batches, queries, keys, each, scale,
                 heads, DEPTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    batch = tl.program_id(2) % batches
    part = tl.program_id(2) // batches
    depth = tl.arange(0, DEPTH)
    known = row < queries
    channels = heads * DEPTH
    q = tl.load(query + (batch * queries + row[:, None]) * channels + head * DEPTH
                + depth[None, :], mask=known[:, None], other=0.0)
    peak = tl.full((ROWS,), -float('inf'), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS, DEPTH), tl.float32)
    for start in range(0, each, KEYS):
        within = start + tl.arange(0, KEYS)
        column = part * each + within
        seen = (within < each) & (column < keys)
        place = (batch * keys + column[:, None]) * channels + head * DEPTH + depth[None, :]
        k = tl.load(key + place, mask=seen[:, None], other=0.0)
        v = tl.load(value + place, mask=seen[:, None], other=0.0)
        scores = tl.where(seen[None, :], tl.dot(q, tl.trans(k)) * scale, -float('inf'))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp(peak - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        found = found * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
        peak = higher
    place = ((part * batches + batch) * heads + head) * queries + row
    tl.store(peaks + place, peak, mask=known)
    tl.store(totals + place, total, mask=known)
    tl.store(sums + place[:, None] * DEPTH + depth[None, :], found, mask=known[:, None])


@triton.jit
def _linear_gelu(x, weight, bias, residual, result, count, channels, out,
                 HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                 CHUNK: tl.constexpr):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known, wanted = row < count, column < out
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        inside = channel < channels
        left = tl.load(x + row[:, None] * channels + channel[None, :],
                       mask=known[:, None] & inside[None, :], other=0.0)
        right = tl.load(weight + column[None, :] * channels + channel[:, None],
                        mask=wanted[None, :] & inside[:, None], other=0.0)
        total = tl.dot(left, right, total)
    total += tl.load(bias + column, mask=wanted, other=0.0)[None, :]
    place = row[:, None] * out + column[None, :]
    seen = known[:, None] & wanted[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + place, mask=seen, other=0.0).to(tl.float32)
    total = 0.5 * total * (1.0 + tl.erf(total * 0.7071067811865476))
    tl.store(result + place, total.to(result.dtype.element_ty), mask=seen)
