# SPDX-License-Identifier: Apache-2.0
"""Triton kernels for the steps around the networks, where a library would move far more bytes.

All of them write into tensors that the caller owns, so that they can be captured in a CUDA graph.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from blabberseg_ros.resampling import triangle_weights

# Bins of the threshold histogram: one a threshold, one for pixels above none, one for NaN.
BINS = 128
_PIXELS = 1024
_BYTES = 2048
_TOKENS = 16
# Sides of the matrices that the kernels multiply: what the tensor cores take at least, and what
# the shared memory of consumers' GPUs holds (88 of their 99 KB).
_SMALLEST_DOT, _LARGEST_DOT = 16, 128
# Rows and columns of the products in `attention` and `feed_forward`: the fastest of a dozen on an
# H200, for one frame and for a batch.
TILE = 64
WIDE_TILE = 128
_DOT_OPTIONS = {'num_warps': 4, 'num_stages': 3}


@dataclass(frozen=True)
class Band:
    """Where the weights of a resizing matrix lie: a few neighbours for each output pixel.

    Attributes:
        first: int32 [S] on the device, first input pixel of each output pixel.
        taps: number of neighbours, the same for all.
    """

    first: Tensor
    taps: int


def triangle_band(n_in: int, n_out: int, device: torch.device) -> Band:
    """Return the band of `triangle_weights(n_in, n_out)`."""
    used = triangle_weights(n_in, n_out) != 0
    first = used.argmax(axis=1)
    last = n_in - used[:, ::-1].argmax(axis=1)
    return Band(torch.tensor(first, dtype=torch.int32, device=device), int((last - first).max()))


def resize_and_normalise(image: Tensor, rows: Tensor, cols: Tensor, down: Band, across: Band,
                         scale: Tensor, offset: Tensor, narrow: Tensor, patches: Tensor) -> None:
    """Resize as PIL does, across and then down, round to whole grey levels, and normalise.

    The result is laid out as patches, so that the patch convolution is a plain matrix product
    (which took cuDNN 83 us as a convolution, and takes 6 us as a product, on an H200).

    Args:
        image: uint8 [H, W, 3].
        rows: float32 [S, H], zero outside the band `down`.
        cols: float32 [W, S], zero outside the band `across`.
        down: where the non-zero weights of each row of `rows` lie.
        across: where those of each column of `cols` lie.
        scale: float32 [3]; a grey level times `scale` less `offset` is normalised.
        offset: float32 [3].
        narrow: float32 [H, S, 3], overwritten.
        patches: [(S / 16)^2, 3 * 16 * 16] of any float type, the result.
    """
    height, width, _ = image.shape
    side = rows.shape[0]
    block = 128
    columns = triton.cdiv(side, block)
    _across[(height, columns)](image, across.first, cols, narrow, width, side,
                               TAPS=across.taps, BLOCK=block)
    _down[(side, columns)](narrow, down.first, rows, scale, offset, patches, height, side,
                           TAPS=down.taps, BLOCK=block)


def head_and_softmax(tokens: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor],
                     positive: Tensor, probability: Tensor) -> None:
    """Run the complex head's transposed convolutions and sum the positives' softmax.

    The two convolutions have their stride for a kernel, so each token alone decides its patch of
    16 x 16 pixels; the logits, P x S x S numbers, are never written.

    Args:
        tokens: float16 or bfloat16 [P, G * G, r], after the head's 3x3 convolution and ReLU.
        first: weight [16, r, r / 2] by sub-patch, of the tokens' type, and bias float32 [r / 2].
        second: weight [r / 2, 16] by pixel of the sub-patch, and bias float32 [1].
        positive: float32 [P], 1 for positive prompts, 0 for negative ones, and less than 0 for
            padding behind the last prompt, which has no share in the softmax.
        probability: float32 [16 G, 16 G], the result.
    """
    prompts, count, width = tokens.shape
    grid = probability.shape[0] // 16
    _head[(triton.cdiv(count, _TOKENS), 16)](
        tokens, *first, *second, positive, probability, prompts, count, grid,
        WIDTH=width, HALF=width // 2, TOKENS=_TOKENS)


def fits_dot(width: int) -> bool:
    """Return whether the kernels take matrices of this width, a power of two."""
    return _SMALLEST_DOT <= width <= _LARGEST_DOT and width & (width - 1) == 0


def attention(qkv: Tensor, heads: int, mixed: Tensor) -> None:
    """Run scaled dot-product attention on queries, keys and values as their projection gives them.

    For the few hundred tokens of a frame, torch's choice on an H200 (cuDNN) cleared a buffer and
    waited for it before each call, which took as long as half of the call.

    Args:
        qkv: float16 or bfloat16 [N, T, 3 W], contiguous: queries, keys and values side by side,
            each W wide, head by head.
        heads: number of heads; W / heads has to fit (see `fits_dot`).
        mixed: of the same type, [N, T, W], the result.
    """
    images, tokens, width = mixed.shape
    depth = width // heads
    # One axis: the others of a grid end at 65,535, which large batches pass.
    _attention[(triton.cdiv(tokens, TILE) * images * heads,)](
        qkv, mixed, tokens, SCALE=depth ** -0.5 / math.log(2), HEADS=heads, DEPTH=depth, TILE=TILE,
        **_DOT_OPTIONS)


def linear_quick_gelu(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """Run a linear layer and CLIP's activation, h * sigmoid(1.702 h), in one go.

    For the rows of one frame, for which a second kernel would take half as long as the product.

    Args:
        x: float16 or bfloat16 [N, K], contiguous; K is a multiple of 64.
        weight: of the same type, [M, K]; M is a multiple of 128.
        bias: of the same type, [M].
        y: of the same type, [N, M], the result.
    """
    count, width = x.shape
    _linear_quick_gelu[(triton.cdiv(count, TILE), len(weight) // WIDE_TILE)](
        x, weight, bias, y, count, len(weight), WIDTH=width, TILE=TILE, WIDE=WIDE_TILE,
        num_warps=4, num_stages=4)


def feed_forward(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor,
                 sums: Tensor) -> None:
    """Run the two layers of a decoder block, linear2(relu(linear1(x))) less its last bias.

    The hidden layer, 32 times as wide as the tokens, is never written. Each of K programs takes a
    part of it, so that one frame keeps all of a large GPU busy; the caller adds the K sums.

    Args:
        x: float16 or bfloat16 [N, r], contiguous.
        weight1: of the same type, [hidden, r]; hidden is a multiple of 64 K.
        bias1: float32 [hidden].
        weight2: of the same type, [r, hidden].
        sums: float32 [K, N, r], the result.
    """
    parts, count, width = sums.shape
    _feed_forward[(triton.cdiv(count, TILE), parts)](
        x, weight1, bias1, weight2, sums, count, weight1.shape[0], PARTS=parts, WIDTH=width,
        TILE=TILE, **_DOT_OPTIONS)


def stretch(small: Tensor, rows: Tensor, cols: Tensor, large: Tensor) -> None:
    """Blur and resize: rows @ small @ cols, where next to all of both matrices is zero.

    A library multiplies the zeros as well, which takes twice as long on an H200. What no pixel of
    the result uses has no influence, not even NaN.

    Args:
        small: float32 [S, S].
        rows: float32 [H, S], in each row one short run of weights.
        cols: float32 [S, W], in each column one short run of weights.
        large: float32 [H, W], the result.
    """
    height, width = large.shape
    side = len(small)
    down, across = triton.cdiv(height, _SMALLEST_DOT), triton.cdiv(width, _SMALLEST_DOT)
    spans = torch.empty((down + across, 2), dtype=torch.int32, device=small.device)
    _spans[(down + across,)](rows, cols, spans, height, width, side, down, TILE=_SMALLEST_DOT,
                             SIDE=triton.next_power_of_2(side))
    _stretch[(down, across)](small, rows, cols, spans, large, height, width, side, down,
                             TILE=_SMALLEST_DOT, STEP=2 * _SMALLEST_DOT)


def threshold_mask(probability: Tensor, thresholds: Tensor, wanted: Tensor, bins: Tensor,
                   mask: Tensor, found: Tensor) -> None:
    """Find the first threshold that enough pixels are above, and the mask that it gives.

    Args:
        probability: float32 [H, W].
        thresholds: float32 [101]: a hundred in falling order, then that of a failed search.
        wanted: int32 [2]: the pixels that have to be above, and how many thresholds may be used.
        bins: int32 [BINS], overwritten.
        mask: uint8 [H, W], the result, 255 where the probability is strictly above.
        found: int32 [2], the result: index of the threshold (100 if none), and how many pixels are
            not finite.
    """
    bins.zero_()
    count = probability.numel()
    blocks = (triton.cdiv(count, _PIXELS),)
    _histogram[blocks](probability, thresholds, bins, count, BINS=BINS, BLOCK=_PIXELS)
    _mask[blocks](probability, thresholds, wanted, bins, mask, found, count,
                  BINS=BINS, BLOCK=_PIXELS)


def copy_bytes(source: Tensor, target: Tensor) -> None:
    """Copy between the device and pinned memory of the host, either way.

    On an H200, graphs with it are 0.01 to 0.02 ms shorter than with the GPU's copy engines.

    Args:
        source: contiguous.
        target: contiguous, of the same size and type.
    """
    given, taken = (value.view(torch.uint8).flatten() for value in (source, target))
    # Sixteen at a time, and the rest one by one.
    whole = len(given) - len(given) % 16
    for start, end in ((0, whole), (whole, len(given))):
        if start < end:
            _copy_bytes[(triton.cdiv(end - start, _BYTES),)](
                given[start:], taken[start:], end - start, BLOCK=_BYTES)


@triton.jit
def _copy_bytes(source, target, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    tl.store(target + index, tl.load(source + index, mask=inside, other=0), mask=inside)


@triton.jit
def _across(image, first, cols, narrow, width, side, TAPS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < side
    start = tl.load(first + column, mask=inside, other=0)
    red = tl.zeros((BLOCK,), tl.float32)
    green = tl.zeros((BLOCK,), tl.float32)
    blue = tl.zeros((BLOCK,), tl.float32)
    for tap in range(TAPS):
        position = start + tap
        known = inside & (position < width)
        weight = tl.load(cols + position * side + column, mask=known, other=0.0)
        source = image + (row * width + tl.minimum(position, width - 1)) * 3
        red += weight * tl.load(source, mask=inside, other=0).to(tl.float32)
        green += weight * tl.load(source + 1, mask=inside, other=0).to(tl.float32)
        blue += weight * tl.load(source + 2, mask=inside, other=0).to(tl.float32)
    target = narrow + (row * side + column) * 3
    tl.store(target, red, mask=inside)
    tl.store(target + 1, green, mask=inside)
    tl.store(target + 2, blue, mask=inside)


@triton.jit
def _down(narrow, first, rows, scale, offset, patches, height, side, TAPS: tl.constexpr,
          BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < side
    start = tl.load(first + row)
    red = tl.zeros((BLOCK,), tl.float32)
    green = tl.zeros((BLOCK,), tl.float32)
    blue = tl.zeros((BLOCK,), tl.float32)
    for tap in range(TAPS):
        position = start + tap
        weight = tl.load(rows + row * height + position, mask=position < height, other=0.0)
        source = narrow + (tl.minimum(position, height - 1) * side + column) * 3
        red += weight * tl.load(source, mask=inside, other=0.0)
        green += weight * tl.load(source + 1, mask=inside, other=0.0)
        blue += weight * tl.load(source + 2, mask=inside, other=0.0)
    patch = (row // 16) * (side // 16) + column // 16
    target = patches + patch * 768 + (row % 16) * 16 + column % 16
    kind = patches.dtype.element_ty
    red = _level(red) * tl.load(scale) - tl.load(offset)
    green = _level(green) * tl.load(scale + 1) - tl.load(offset + 1)
    blue = _level(blue) * tl.load(scale + 2) - tl.load(offset + 2)
    tl.store(target, red.to(kind), mask=inside)
    tl.store(target + 256, green.to(kind), mask=inside)
    tl.store(target + 512, blue.to(kind), mask=inside)


@triton.jit
def _level(value):
    return tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), 255.0)


@triton.jit
def _relu(value):
    # By itself, the maximum of NaN and zero is zero: a broken network would look sound.
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _head(tokens, weight1, bias1, weight2, bias2, positive, probability, prompts, count, grid,
          WIDTH: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    part = tl.program_id(1)
    inside = token < count
    channel = tl.arange(0, WIDTH)
    half = tl.arange(0, HALF)
    pixel = tl.arange(0, 16)
    w1 = tl.load(weight1 + part * WIDTH * HALF + channel[:, None] * HALF + half[None, :])
    b1 = tl.load(bias1 + half)
    w2 = tl.load(weight2 + half[:, None] * 16 + pixel[None, :])
    b2 = tl.load(bias2)
    largest = tl.full((TOKENS, 16), float('-inf'), tl.float32)
    whole = tl.zeros((TOKENS, 16), tl.float32)
    safe = tl.zeros((TOKENS, 16), tl.float32)
    for prompt in range(prompts):
        x = tl.load(tokens + (prompt * count + token[:, None]) * WIDTH + channel[None, :],
                    mask=inside[:, None], other=0.0)
        hidden = _relu(tl.dot(x, w1) + b1[None, :]).to(w2.dtype)
        weight = tl.load(positive + prompt)
        logit = tl.where(weight < 0.0, float('-inf'), tl.dot(hidden, w2) + b2)
        peak = tl.maximum(largest, logit)
        shrink = tl.exp(largest - peak)
        share = tl.exp(logit - peak)
        whole = whole * shrink + share
        safe = safe * shrink + share * weight
        largest = peak
    y = (token // grid) * 16 + (part // 4) * 4
    x_ = (token % grid) * 16 + (part % 4) * 4
    row = y[:, None] + pixel[None, :] // 4
    column = x_[:, None] + pixel[None, :] % 4
    tl.store(probability + row * (grid * 16) + column, safe / whole, mask=inside[:, None])


@triton.jit
def _attention(qkv, mixed, tokens, SCALE: tl.constexpr, HEADS: tl.constexpr, DEPTH: tl.constexpr,
               TILE: tl.constexpr):
    # Scores are powers of two, of which the hardware is faster than of e: SCALE is 1 / ln 2
    # larger.
    tiles = tl.cdiv(tokens, TILE)
    pair = tl.program_id(0) // tiles
    image = (pair // HEADS).to(tl.int64)
    head = pair % HEADS
    row = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    inside = row < tokens
    channel = tl.arange(0, DEPTH)
    width = HEADS * DEPTH
    first = qkv + image * tokens * 3 * width + head * DEPTH
    query = tl.load(first + row[:, None] * 3 * width + channel[None, :], mask=inside[:, None],
                    other=0.0)
    largest = tl.full((TILE,), float('-inf'), tl.float32)
    whole = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE, DEPTH), tl.float32)
    for start in range(0, tokens, TILE):
        other = start + tl.arange(0, TILE)
        known = other < tokens
        key = tl.load(first + width + other[None, :] * 3 * width + channel[:, None],
                      mask=known[None, :], other=0.0)
        value = tl.load(first + 2 * width + other[:, None] * 3 * width + channel[None, :],
                        mask=known[:, None], other=0.0)
        score = tl.where(known[None, :], tl.dot(query, key), float('-inf'))
        peak = tl.maximum(largest, tl.max(score, 1) * SCALE)
        share = tl.exp2(score * SCALE - peak[:, None])
        shrink = tl.exp2(largest - peak)
        whole = whole * shrink + tl.sum(share, 1)
        total = tl.dot(share.to(value.dtype), value, total * shrink[:, None])
        largest = peak
    target = mixed + (image * tokens + row[:, None]) * width + head * DEPTH + channel[None, :]
    tl.store(target, (total / whole[:, None]).to(query.dtype), mask=inside[:, None])


@triton.jit
def _linear_quick_gelu(x, weight, bias, y, count, out, WIDTH: tl.constexpr, TILE: tl.constexpr,
                       WIDE: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    unit = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = row[:, None] < count
    total = tl.zeros((TILE, WIDE), tl.float32)
    for start in range(0, WIDTH, TILE):
        channel = start + tl.arange(0, TILE)
        tokens = tl.load(x + row[:, None] * WIDTH + channel[None, :], mask=inside, other=0.0)
        part = tl.load(weight + unit[None, :] * WIDTH + channel[:, None])
        total = tl.dot(tokens, part, total)
    total += tl.load(bias + unit)[None, :]
    # 1 / (1 + e**(-1.702 h)), as a power of two.
    total = total / (1.0 + tl.exp2(total * -2.4554669595930156))
    tl.store(y + row[:, None] * out + unit[None, :], total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _feed_forward(x, weight1, bias1, weight2, sums, count, hidden, PARTS: tl.constexpr,
                  WIDTH: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    part = tl.program_id(1)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    place = row[:, None] * WIDTH + channel[None, :]
    tokens = tl.load(x + place, mask=inside[:, None], other=0.0)
    total = tl.zeros((TILE, WIDTH), tl.float32)
    share = hidden // PARTS
    for start in range(part * share, (part + 1) * share, TILE):
        unit = start + tl.arange(0, TILE)
        w1 = tl.load(weight1 + unit[None, :] * WIDTH + channel[:, None])
        layer = _relu(tl.dot(tokens, w1) + tl.load(bias1 + unit)[None, :])
        w2 = tl.load(weight2 + channel[None, :] * hidden + unit[:, None])
        total = tl.dot(layer.to(tokens.dtype), w2, total)
    tl.store(sums + part.to(tl.int64) * count * WIDTH + place, total, mask=inside[:, None])


@triton.jit
def _spans(rows, cols, spans, height, width, side, down, TILE: tl.constexpr, SIDE: tl.constexpr):
    # From the first to behind the last pixel of the small map that a tile of the large one uses.
    tile = tl.program_id(0)
    place = tl.arange(0, SIDE)
    if tile < down:
        line = tile * TILE + tl.arange(0, TILE)
        source = rows + line[:, None] * side + place[None, :]
        inside = (line[:, None] < height) & (place[None, :] < side)
    else:
        line = (tile - down) * TILE + tl.arange(0, TILE)
        source = cols + place[None, :] * width + line[:, None]
        inside = (line[:, None] < width) & (place[None, :] < side)
    used = tl.max((tl.load(source, mask=inside, other=0.0) != 0.0).to(tl.int32), 0)
    tl.store(spans + 2 * tile, tl.min(tl.where(used != 0, place, SIDE), 0))
    tl.store(spans + 2 * tile + 1, tl.max(tl.where(used != 0, place + 1, 0), 0))


@triton.jit
def _stretch(small, rows, cols, spans, large, height, width, side, down, TILE: tl.constexpr,
             STEP: tl.constexpr):
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (row[:, None] < height) & (column[None, :] < width)
    y_span = spans + 2 * tl.program_id(0)
    x_span = spans + 2 * (down + tl.program_id(1))
    total = tl.zeros((TILE, TILE), tl.float32)
    for left in range(tl.load(x_span), tl.load(x_span + 1), STEP):
        x = left + tl.arange(0, STEP)
        strip = tl.zeros((TILE, STEP), tl.float32)
        for top in range(tl.load(y_span), tl.load(y_span + 1), STEP):
            y = top + tl.arange(0, STEP)
            weight = tl.load(rows + row[:, None] * side + y[None, :],
                             mask=(row[:, None] < height) & (y[None, :] < side), other=0.0)
            part = tl.load(small + y[:, None] * side + x[None, :],
                           mask=(y[:, None] < side) & (x[None, :] < side), other=0.0)
            strip = tl.dot(weight, part, strip, input_precision='ieee')
        weight = tl.load(cols + x[:, None] * width + column[None, :],
                         mask=(x[:, None] < side) & (column[None, :] < width), other=0.0)
        total = tl.dot(strip, weight, total, input_precision='ieee')
    tl.store(large + row[:, None] * width + column[None, :], total, mask=inside)


@triton.jit
def _histogram(probability, thresholds, bins, count, BINS: tl.constexpr, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    value = tl.load(probability + index, mask=inside, other=0.0)
    # First of the hundred falling thresholds that the value is above, by bisection: 2**7 > 100.
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.full((BLOCK,), 100, tl.int32)
    for _ in range(7):
        middle = (low + high) // 2
        above = value > tl.load(thresholds + middle)
        searching = low < high
        high = tl.where(searching & above, middle, high)
        low = tl.where(searching & (above == 0), middle + 1, low)
    finite = (value == value) & (tl.abs(value) != float('inf'))
    place = tl.where(finite, low, BINS - 1)
    # Lanes outside the image count in a bin that nobody reads.
    place = tl.where(inside, place, BINS - 2)
    counts = tl.histogram(place, BINS)
    tl.atomic_add(bins + tl.arange(0, BINS), counts, mask=counts > 0)


@triton.jit
def _mask(probability, thresholds, wanted, bins, mask, found, count, BINS: tl.constexpr,
          BLOCK: tl.constexpr):
    bin_ = tl.arange(0, BINS)
    counts = tl.load(bins + bin_)
    above = tl.cumsum(tl.where(bin_ < 100, counts, 0), 0)
    enough = (above >= tl.load(wanted)) & (bin_ < tl.load(wanted + 1))
    chosen = tl.min(tl.where(enough, bin_, 100), 0)
    threshold = tl.load(thresholds + chosen)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    value = tl.load(probability + index, mask=inside, other=0.0)
    tl.store(mask + index, tl.where(value > threshold, 255, 0).to(tl.uint8), mask=inside)
    if tl.program_id(0) == 0:
        tl.store(found, chosen)
        tl.store(found + 1, tl.sum(tl.where(bin_ == BINS - 1, counts, 0), 0))


def empty_bins(device: torch.device) -> Tensor:
    """Return the histogram that `threshold_mask` works in."""
    return torch.empty(BINS, dtype=torch.int32, device=device)
