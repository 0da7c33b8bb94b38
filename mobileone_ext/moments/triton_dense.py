"""Sums over single pixels and over the patches of images, and the adjoint of the former, on a GPU: one read each.

As triton_kernels.py; here the products are those of matrices, on tensor cores where the map is of half precision.
"""

import triton
import triton.language as tl


@triton.jit
def pixel_sums(
    x, shift, out, pixels, channels, share,
    FACTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (programs, C + 1, C): X^T X, and the column sums of X, for X (P, C) less shift, ``share`` rows a program.

    X less shift is rounded to the map's type, as tensor cores want it. FACTOR is that type, or for the interpreter,
    which knows no products of bfloat16, float32.
    """
    c = tl.arange(0, BLOCK_C)
    center = tl.load(shift + c, mask=c < channels, other=0)[None, :]
    products = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    sums = tl.zeros([BLOCK_C], tl.float32)
    first = tl.program_id(0).to(tl.int64) * share
    for start in range(0, share, BLOCK_P):
        p = first + start + tl.arange(0, BLOCK_P)
        inside = (p < pixels)[:, None] & (c < channels)[None, :]
        raw = tl.load(x + p[:, None] * channels + c[None, :], mask=inside, other=0)
        v = tl.where(inside, raw.to(tl.float32) - center, 0).to(raw.dtype)
        factor = v.to(FACTOR)
        products += tl.dot(tl.trans(factor), factor)
        sums += tl.sum(v.to(tl.float32), 0)
    out += tl.program_id(0).to(tl.int64) * (channels + 1) * channels
    inside = (c < channels)[:, None] & (c < channels)[None, :]
    tl.store(out + c[:, None] * channels + c[None, :], products, mask=inside)
    tl.store(out + channels * channels + c, sums, mask=c < channels)


@triton.jit
def pixel_grad(
    x, dx, slope, offset, scale, pixels, channels,
    FACTOR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds scale * (X slope + offset) to dx, for X (P, C), slope (C, C) of the map's type, offset (C,), scale (1,)."""
    c = tl.arange(0, BLOCK_C)
    p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    known = (c < channels)[None, :]
    inside = (p < pixels)[:, None] & known
    at = p[:, None] * channels + c[None, :]
    v = tl.load(x + at, mask=inside, other=0)
    weights = tl.load(slope + c[:, None] * channels + c[None, :], mask=(c < channels)[:, None] & known, other=0)
    grad = tl.dot(v.to(FACTOR), weights.to(FACTOR)) + tl.load(offset + c, mask=c < channels, other=0)[None, :]
    before = tl.load(dx + at, mask=inside, other=0).to(tl.float32)
    tl.store(dx + at, before + grad * tl.load(scale), mask=inside)


@triton.jit
def stem_sums(
    x, shift, out, patches, channels, height, width, image_step, channel_step, row_step, step, share,
    ACC: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """out (programs, 32, 32): products of the taps [c][i] less shift[c] of 3x3 patches at stride 2, and of a tap 1."""
    tap = tl.arange(0, 32)
    channel, dy, dx = tap // 9, tap % 9 // 3 - 1, tap % 3 - 1
    used = tap < 9 * channels
    center = tl.load(shift + channel, mask=used, other=0).to(ACC)[None, :]
    rows, columns = tl.cdiv(height, 2), tl.cdiv(width, 2)
    products = tl.zeros([32, 32], ACC)
    first = tl.program_id(0) * share
    for start in range(0, share, BLOCK_P):
        p = first + start + tl.arange(0, BLOCK_P)
        y = (2 * (p // columns % rows))[:, None] + dy[None, :]
        w = (2 * (p % columns))[:, None] + dx[None, :]
        there = (p < patches)[:, None]
        inside = there & used[None, :] & (y >= 0) & (y < height) & (w >= 0) & (w < width)
        image = x + (p // (rows * columns)).to(tl.int64)[:, None] * image_step
        raw = tl.load(image + channel[None, :] * channel_step + y * row_step + w * step, mask=inside, other=0)
        v = tl.where(there & used[None, :], raw.to(ACC) - center, 0)
        v = tl.where(there & (tap == 9 * channels)[None, :], 1, v).to(ACC)
        products += tl.dot(tl.trans(v), v, input_precision='ieee', out_dtype=ACC)
    out += tl.program_id(0) * 1024
    tl.store(out + 32 * tap[:, None] + tap[None, :], products)
