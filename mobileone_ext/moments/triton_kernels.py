"""Sums over the depthwise 3x3 patches of a map, and their adjoints, on a GPU: one read of the map each.

The same sums in the same order as kernels.cpp; gpu.py launches these. A program works on BLOCK_W columns and BLOCK_C
channels and walks down the rows, keeping those that it needs again in registers. Products and sums run in ACC, which is
float32 for maps of half precision. Every program writes sums of its own, which the caller adds up in float64: no
atomics, so the same map gives the same bits.

Legend: v[dy][dx] the pixel at (y + dy, w + dx), 0 outside the plane; steps: strides of the map in values.
"""

# mypy: disable-error-code="assignment"
import triton
import triton.language as tl


@triton.jit
def _pixels(image, y, w, height, width, row_step, step, channel, ACC: tl.constexpr):
    """(BLOCK_W, BLOCK_C) of row y at columns w of an image; ``channel`` says which channels there are."""
    inside = (y >= 0) & (y < height) & (w >= 0) & (w < width)
    return tl.load(image + y * row_step + w[:, None] * step, mask=inside[:, None] & channel, other=0).to(ACC)


@triton.jit
def _row(image, y, w, height, width, row_step, step, channel, ACC: tl.constexpr):
    """Row y at columns w - 2 .. w + 2."""
    return (
        _pixels(image, y, w - 2, height, width, row_step, step, channel, ACC),
        _pixels(image, y, w - 1, height, width, row_step, step, channel, ACC),
        _pixels(image, y, w, height, width, row_step, step, channel, ACC),
        _pixels(image, y, w + 1, height, width, row_step, step, channel, ACC),
        _pixels(image, y, w + 2, height, width, row_step, step, channel, ACC),
    )


@triton.jit
def _three(image, y, w, height, width, row_step, step, channel, ACC: tl.constexpr):
    """Row y at columns w - 1 .. w + 1."""
    return (
        _pixels(image, y, w - 1, height, width, row_step, step, channel, ACC),
        _pixels(image, y, w, height, width, row_step, step, channel, ACC),
        _pixels(image, y, w + 1, height, width, row_step, step, channel, ACC),
    )


@triton.jit
def _store(out, index, values, c, channels):
    """Sum of ``values`` (BLOCK_W, BLOCK_C) over the columns to place ``index`` of a program's sums."""
    tl.store(out + index * channels + c, tl.sum(values, 0), mask=c < channels)


@triton.jit
def plane_sums(
    x, shift, out, images, height, width, channels, image_step, channel_step, row_step, step, group,
    ACC: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (programs along axis 0, 42, C): sums of ``group`` images, BLOCK_W columns each, at stride 1."""
    tiles = tl.cdiv(width, BLOCK_W)
    part = tl.program_id(0)
    w = part % tiles * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = (c < channels)[None, :]
    inside = (w < width)[:, None] & channel
    center = tl.load(shift + c, mask=c < channels, other=0).to(ACC)[None, :]
    zero = tl.zeros([BLOCK_W, BLOCK_C], ACC)
    lags = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
    shifted, squares = zero, zero
    top, bottom = (zero, zero, zero, zero), (zero, zero, zero, zero)
    first = part // tiles * group
    last = tl.minimum(first + group, images)
    image = x + first.to(tl.int64) * image_step + c[None, :] * channel_step
    for _ in range(first, last):
        v0 = _row(image, 0, w, height, width, row_step, step, channel, ACC)
        v1 = _row(image, 1, w, height, width, row_step, step, channel, ACC)
        a0, a1, a2 = v0[2], v0[3], v0[4]
        top = (top[0] + a0 * a0, top[1] + a0 * a1, top[2] + a0 * a2, top[3] + a0)
        b0, b1, b2, b3, b4 = v1[0], v1[1], v1[2], v1[3], v1[4]
        for y in range(height):
            d = _row(image, y + 2, w, height, width, row_step, step, channel, ACC)
            lags = (
                lags[0] + a0 * a0,
                lags[1] + a0 * a1,
                lags[2] + a0 * a2,
                lags[3] + a0 * b0,
                lags[4] + a0 * b1,
                lags[5] + a0 * b2,
                lags[6] + a0 * b3,
                lags[7] + a0 * b4,
                lags[8] + a0 * d[0],
                lags[9] + a0 * d[1],
                lags[10] + a0 * d[2],
                lags[11] + a0 * d[3],
                lags[12] + a0 * d[4],
            )
            rest = tl.where(inside, a0 - center, 0)
            shifted += rest
            squares += rest * rest
            a0, a1, a2 = b2, b3, b4
            b0, b1, b2, b3, b4 = d[0], d[1], d[2], d[3], d[4]
        v0 = _row(image, height - 1, w, height, width, row_step, step, channel, ACC)
        a0 = v0[2]
        bottom = (bottom[0] + a0 * a0, bottom[1] + a0 * v0[3], bottom[2] + a0 * v0[4], bottom[3] + a0)
        image += image_step

    out += part.to(tl.int64) * 42 * channels
    rows = (last - first) * height
    sums = tl.where(inside, shifted + rows * center, 0)
    _store(out, 0, zero, c, channels)
    _store(out, 1, zero, c, channels)
    for i in tl.static_range(13):
        _store(out, 2 + i, lags[i], c, channels)
    for i in tl.static_range(3):
        _store(out, 15 + i, top[i], c, channels)
        _store(out, 18 + i, bottom[i], c, channels)
    _store(out, 31, sums, c, channels)
    _store(out, 32, top[3], c, channels)
    _store(out, 33, bottom[3], c, channels)
    for side in tl.static_range(2):
        # The sums over a column are what its lanes hold before they are added up.
        edge = (w == side * (width - 1))[:, None]
        _store(out, 21 + 3 * side, tl.where(edge, lags[0], 0), c, channels)
        _store(out, 22 + 3 * side, tl.where(edge, lags[5], 0), c, channels)
        _store(out, 23 + 3 * side, tl.where(edge, lags[10], 0), c, channels)
        _store(out, 27 + side, tl.where(edge, top[0], 0), c, channels)
        _store(out, 29 + side, tl.where(edge, bottom[0], 0), c, channels)
        _store(out, 34 + side, tl.where(edge, sums, 0), c, channels)
        _store(out, 36 + side, tl.where(edge, top[3], 0), c, channels)
        _store(out, 38 + side, tl.where(edge, bottom[3], 0), c, channels)
    _store(out, 40, shifted, c, channels)
    _store(out, 41, squares, c, channels)


@triton.jit
def _weight(weights, index, c, channels):
    """(1, BLOCK_C) of weights (n, C)."""
    return tl.load(weights + index * channels + c, mask=c < channels, other=0)[None, :]


@triton.jit
def _line(weights, lags, total, v, near, far, c, channels):
    """What a pixel of a border line receives along it: ``near`` and ``far`` are sums of both neighbors."""
    along = 2 * _weight(weights, lags, c, channels) * v + _weight(weights, lags + 1, c, channels) * near
    return _weight(weights, total, c, channels) + along + _weight(weights, lags + 2, c, channels) * far


@triton.jit
def plane_grad(
    x, dx, weights, height, width, channels, image_step, channel_step, row_step, step,
    dx_image_step, dx_channel_step, dx_row_step, dx_step,
    ACC: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds to dx the adjoint of ``plane_sums``; weights (50, C) as in kernels.cpp, the 5x5 ones symmetric."""
    tiles = tl.cdiv(width, BLOCK_W)
    w = tl.program_id(0) % tiles * BLOCK_W + tl.arange(0, BLOCK_W)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    channel = (c < channels)[None, :]
    inside = (w < width)[:, None] & channel
    left, right = (w == 0)[:, None], (w == width - 1)[:, None]
    image = x + n * image_step + c[None, :] * channel_step
    target = dx + n * dx_image_step + c[None, :] * dx_channel_step + w[:, None] * dx_step
    total = _weight(weights, 41, c, channels)
    k0 = _weight(weights, 12, c, channels)
    k1, k2 = _weight(weights, 13, c, channels), _weight(weights, 14, c, channels)
    k3, k4 = _weight(weights, 15, c, channels), _weight(weights, 16, c, channels)
    k5, k6 = _weight(weights, 17, c, channels), _weight(weights, 18, c, channels)
    k7, k8 = _weight(weights, 19, c, channels), _weight(weights, 20, c, channels)
    k9, k10 = _weight(weights, 21, c, channels), _weight(weights, 22, c, channels)
    k11, k12 = _weight(weights, 23, c, channels), _weight(weights, 24, c, channels)
    zero = tl.zeros([BLOCK_W, BLOCK_C], ACC)
    v0, v1 = (zero, zero, zero, zero, zero), (zero, zero, zero, zero, zero)
    v2 = _row(image, 0, w, height, width, row_step, step, channel, ACC)
    v3 = _row(image, 1, w, height, width, row_step, step, channel, ACC)
    for y in range(height):
        v4 = _row(image, y + 2, w, height, width, row_step, step, channel, ACC)
        v = v2[2]
        grad = total + k0 * v + k1 * (v2[3] + v2[1]) + k2 * (v2[4] + v2[0])
        grad += k3 * (v3[0] + v1[4]) + k4 * (v3[1] + v1[3]) + k5 * (v3[2] + v1[2])
        grad += k6 * (v3[3] + v1[1]) + k7 * (v3[4] + v1[0])
        grad += k8 * (v4[0] + v0[4]) + k9 * (v4[1] + v0[3]) + k10 * (v4[2] + v0[2])
        grad += k11 * (v4[3] + v0[1]) + k12 * (v4[4] + v0[0])
        grad += tl.where(left, _line(weights, 31, 44, v, v1[2] + v3[2], v0[2] + v4[2], c, channels), 0)
        grad += tl.where(right, _line(weights, 34, 45, v, v1[2] + v3[2], v0[2] + v4[2], c, channels), 0)
        if y == 0:
            grad += _line(weights, 25, 42, v, v2[1] + v2[3], v2[0] + v2[4], c, channels)
            grad += tl.where(left, _weight(weights, 46, c, channels) + 2 * _weight(weights, 37, c, channels) * v, 0)
            grad += tl.where(right, _weight(weights, 47, c, channels) + 2 * _weight(weights, 38, c, channels) * v, 0)
        if y == height - 1:
            grad += _line(weights, 28, 43, v, v2[1] + v2[3], v2[0] + v2[4], c, channels)
            grad += tl.where(left, _weight(weights, 48, c, channels) + 2 * _weight(weights, 39, c, channels) * v, 0)
            grad += tl.where(right, _weight(weights, 49, c, channels) + 2 * _weight(weights, 40, c, channels) * v, 0)
        to = target + y * dx_row_step
        before = tl.load(to, mask=inside, other=0).to(ACC)
        tl.store(to, before + grad, mask=inside)
        v0, v1, v2, v3 = v1, v2, v3, v4


@triton.jit
def strided_sums(
    x, shift, out, images, height, width, channels, image_step, channel_step, row_step, step, group,
    ACC: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out (programs along axis 0, 56, C): sums of ``group`` images, BLOCK_W patches a row each, at stride 2."""
    rows, patches = tl.cdiv(height, 2), tl.cdiv(width, 2)
    tiles = tl.cdiv(patches, BLOCK_W)
    part = tl.program_id(0)
    q = part % tiles * BLOCK_W + tl.arange(0, BLOCK_W)
    w = 2 * q
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    # A patch that is none begins on the last column of an odd plane.
    channel = (c < channels)[None, :] & (q < patches)[:, None]
    center = tl.load(shift + c, mask=c < channels, other=0).to(ACC)[None, :]
    zero = tl.zeros([BLOCK_W, BLOCK_C], ACC)
    products = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    products = products + products + products + products + products
    sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    shifted, squares = zero, zero
    first = part // tiles * group
    image = x + first.to(tl.int64) * image_step + c[None, :] * channel_step
    for _ in range(first, tl.minimum(first + group, images)):
        above = (zero, zero, zero)
        for y in range(rows):
            row = _three(image, 2 * y, w, height, width, row_step, step, channel, ACC)
            below = _three(image, 2 * y + 1, w, height, width, row_step, step, channel, ACC)
            taps = above + row + below
            more = ()
            for i in tl.static_range(9):
                for j in tl.static_range(i, 9):
                    more = more + (products[9 * i - i * (i - 1) // 2 + j - i] + taps[i] * taps[j],)
            products = more
            more = ()
            for i in tl.static_range(9):
                more = more + (sums[i] + taps[i],)
            sums = more
            rest = tl.where(channel, row[1] - center, 0)
            shifted += rest
            squares += rest * rest
            above = below
        image += image_step
    out += part.to(tl.int64) * 56 * channels
    for i in tl.static_range(45):
        _store(out, i, products[i], c, channels)
    for i in tl.static_range(9):
        _store(out, 45 + i, sums[i], c, channels)
    _store(out, 54, shifted, c, channels)
    _store(out, 55, squares, c, channels)


@triton.jit
def _tap_grad(slope, offset, tap: tl.constexpr, patch, c, channels):
    """Row ``tap`` of slope @ patch + offset."""
    grad = _weight(offset, tap, c, channels)
    for j in tl.static_range(9):
        grad += _weight(slope, 9 * tap + j, c, channels) * patch[j]
    return grad


@triton.jit
def _add(target, values, inside, ACC: tl.constexpr):
    tl.store(target, tl.load(target, mask=inside, other=0).to(ACC) + values, mask=inside)


@triton.jit
def strided_grad(
    x, dx, slope, offset, height, width, channels, image_step, channel_step, row_step, step,
    dx_image_step, dx_channel_step, dx_row_step, dx_step,
    ACC: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Adds slope (81, C) @ patch + offset (9, C) to dx where the patch lies, at stride 2.

    By the pixels that receive, four at a time: of even and odd row and column. An odd one lies under two patches.
    """
    rows, patches = tl.cdiv(height, 2), tl.cdiv(width, 2)
    tiles = tl.cdiv(patches, BLOCK_W)
    q = tl.program_id(0) % tiles * BLOCK_W + tl.arange(0, BLOCK_W)
    w = 2 * q
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = (tl.program_id(0) // tiles).to(tl.int64)
    channel = (c < channels)[None, :]
    image = x + n * image_step + c[None, :] * channel_step
    target = dx + n * dx_image_step + c[None, :] * dx_channel_step + w[:, None] * dx_step
    even, odd = (w < width)[:, None] & channel, (w + 1 < width)[:, None] & channel
    right = (q + 1 < patches)[:, None]
    zero = tl.zeros([BLOCK_W, BLOCK_C], ACC)
    v0 = (zero, zero, zero, zero, zero)
    v1 = _row(image, 0, w + 1, height, width, row_step, step, channel, ACC)
    v2 = _row(image, 1, w + 1, height, width, row_step, step, channel, ACC)
    for y in range(rows):
        v3 = _row(image, 2 * y + 2, w + 1, height, width, row_step, step, channel, ACC)
        v4 = _row(image, 2 * y + 3, w + 1, height, width, row_step, step, channel, ACC)
        here = (v0[0], v0[1], v0[2], v1[0], v1[1], v1[2], v2[0], v2[1], v2[2])
        beside = (v0[2], v0[3], v0[4], v1[2], v1[3], v1[4], v2[2], v2[3], v2[4])
        to = target + 2 * y * dx_row_step
        _add(to, _tap_grad(slope, offset, 4, here, c, channels), even, ACC)
        grad = tl.where(right, _tap_grad(slope, offset, 3, beside, c, channels), 0)
        _add(to + dx_step, grad + _tap_grad(slope, offset, 5, here, c, channels), odd, ACC)
        if 2 * y + 1 < height:
            even_grad = _tap_grad(slope, offset, 7, here, c, channels)
            odd_grad = tl.where(right, _tap_grad(slope, offset, 6, beside, c, channels), 0)
            odd_grad += _tap_grad(slope, offset, 8, here, c, channels)
            if y + 1 < rows:
                below = (v2[0], v2[1], v2[2], v3[0], v3[1], v3[2], v4[0], v4[1], v4[2])
                across = (v2[2], v2[3], v2[4], v3[2], v3[3], v3[4], v4[2], v4[3], v4[4])
                even_grad += _tap_grad(slope, offset, 1, below, c, channels)
                odd_grad += _tap_grad(slope, offset, 2, below, c, channels)
                odd_grad += tl.where(right, _tap_grad(slope, offset, 0, across, c, channels), 0)
            _add(to + dx_row_step, even_grad, even, ACC)
            _add(to + dx_row_step + dx_step, odd_grad, odd, ACC)
        v0, v1, v2 = v2, v3, v4
