"""Moments of depthwise 3x3 patches, and their adjoints; statistics.py says what for.

The patch of an output pixel q has nine taps p_i(q) = x(stride * q + i), i in {-1, 0, 1}^2, zero outside the plane.
Wanted per channel are m = E[p] and, for kernels W_b, the products q_b = C W_b with the covariance C of p.

By branch (``branch_moments``): q_b is the weight gradient of the convolution z_b = W_b * x at z_b - mean.

By lags (``lag_moments``), at stride 1, for all branches at once: sum_q p_i p_j depends on the lag j - i alone, but
for the borders. With A(d) = sum_u x(u) x(u + d),

    sum_q p_i p_j = A(j - i) - [i_y = j_y != 0] R(j_x - i_x) - [i_x = j_x != 0] K(j_y - i_y) + [both] corner^2

where R and K are the autocorrelations of the border row and column that tap i never reaches: the top row for
i_y = +1, the bottom row for i_y = -1, and so on. A depthwise weight gradient computes nine lags in one pass, so
two of them give A on half the plane of lags; the other half is its mirror image. What is linear in such sums is
written as one constant matrix (``_tables``), and the adjoint uses its transpose.

Adjoint: x receives slope (p - m) wherever a patch lies, and slope is a 9 x 9 matrix a channel. Gathered by the
pixel that receives, this is a 5x5 convolution of x; at stride 2 one of another size for even and odd rows and columns.

Legend: N images, C channels, H x W plane, B kernels, 9 taps in row-major order.
"""

from functools import lru_cache
from itertools import product
from math import prod
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import gpu, kernels
from .kernels import constant_when_compiled
from .patches import chunks, count_patches, few_patches, near_mean

TAPS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
# At stride 2, for even and odd receivers: the taps above them, and how far on the patch of each begins.
_TAPS_ONTO = (((0, 0),), ((1, 0), (-1, 2)))
_HALF_PLANE = [(y, x) for y in (0, 1, 2) for x in (-2, -1, 0, 1, 2)]

# Patches whose lags are summed up at a time on CPU, to lose no digits: oneDNN adds up a weight gradient in float32,
# one product after the other.
LAG_PATCHES = 8192


def correlate(x: Tensor, grad: Tensor, stride: int, padding: int) -> Tensor:
    """sum_q grad(q) x(stride * q + tap - padding), the weight gradient of a depthwise 3x3 kernel, as (C, 9)."""
    channels = x.shape[1]
    weight = x.new_empty(channels, 1, 3, 3)
    geometry = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], channels)
    _, out, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [False, True, False])
    return out.flatten(1)


def branch_moments(x: Tensor, kernels: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """m (C, 9), q (C, B, 9) for ``kernels`` (C, B, 9), and the variance (C,) of the center tap."""
    mean = patch_mean(x, stride)
    shift = (kernels @ mean[..., None])[..., 0]  # (C, B)
    products, rest = torch.zeros_like(kernels), torch.zeros_like(shift)
    for images in chunks(x):
        for index, kernel in enumerate(kernels.unbind(1)):
            weight = kernel.reshape(-1, 1, 3, 3)
            z = F.conv2d(images, weight, -shift[:, index], stride, 1, groups=x.shape[1])
            products[:, index] += correlate(images, z, stride, padding=1)
            rest[:, index] += z.sum((0, 2, 3))
    # The shift is the mean but for rounding, which counts where the mean is large against the deviation.
    products -= rest[..., None] * mean[:, None]
    return mean, products / count_patches(x, stride), _pixel_var(x, mean, stride)


def _pixel_var(x: Tensor, mean: Tensor, stride: int) -> Tensor:
    """Variance (C,) of the center tap, whose mean is known.

    That of torch's batch norm (2.14, CPU, channels last) is wrong in the fourth digit.
    """
    pixels = x[:, :, ::stride, ::stride]
    squares = [(part - mean[:, 4, None, None]).square_().sum((0, 2, 3)) for part in few_patches(pixels, 1)]
    return torch.stack(squares).sum(0) / count_patches(x, stride)


def kernels_for(*maps: Tensor) -> ModuleType | None:
    """What has kernels for these maps: gpu.py, kernels.py, or nothing."""
    for module in (gpu, kernels):
        if module.usable(*maps):
            return module
    return None


def compiled_moments(x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """m (C, 9) and the covariance (C, 9, 9) of the patches, in float64, by the kernels that there are for x."""
    compiled = kernels_for(x)
    assert compiled is not None
    count = count_patches(x, stride)
    shift = near_mean(x)
    if stride == 1:
        totals = compiled.plane_sums(x, shift)
        sums = totals[:, 31:40] @ _sum_table(totals.dtype, x.device)
        squares = (totals[:, :31] @ _square_table(totals.dtype, x.device)).reshape(-1, 9, 9)
    else:
        totals = compiled.strided_sums(x, shift)
        sums, squares = totals[:, 45:54], totals[:, _pairs(x.device)]
    mean = sums / count
    cov = squares / count - mean[:, :, None] * mean[:, None]
    shifted_mean, shifted_squares = (totals[:, -2:] / count).unbind(1)
    cov[:, 4, 4] = shifted_squares - shifted_mean.square()
    return mean, cov


def lag_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """m (C, 9) and the covariance (C, 9, 9) of the patches at stride 1."""
    squares = torch.stack([_squares(images) for images in few_patches(x, 1, LAG_PATCHES)])
    square_table = _square_table(x.dtype, x.device)
    mean = patch_mean(x, stride=1)
    cov = squares.sum(0) @ square_table / count_patches(x, 1)
    cov = cov.reshape(-1, 9, 9) - mean[:, :, None] * mean[:, None]
    cov[:, 4, 4] = _pixel_var(x, mean, 1)  # all that skip and 1x1 branch see: without that cancellation
    return mean, cov


def _squares(x: Tensor) -> Tensor:
    """Autocorrelations (C, 31) of the plane and its borders, in the order of ``_tables``."""
    rows, columns, corners = _borders(x)
    left, right = (correlate(padded, x, 1, padding=0).reshape(-1, 3, 3) for padded in _pad(x))
    squares = [
        torch.cat([left[:, :, :2], right], 2).flatten(1),
        _by_channel(_autocorrelation(rows)),
        _by_channel(_autocorrelation(columns)),
        _by_channel(corners.square().sum(1)),
    ]
    return torch.cat(squares, 1)


def _pad(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, C, H, W) with two rows of zeros below, and two columns of zeros on its left; on its right.

    Both are the same memory: what follows a row on its right is what precedes the next on its left.
    """
    images, channels, height, width = x.shape
    shape = (images, channels, height + 2, width + 2)
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    strides = torch.empty(shape, device='meta', memory_format=memory_format).stride()
    memory = x.new_zeros(prod(shape) + 2 * strides[3])
    left, right = (memory.as_strided(shape, strides, offset) for offset in (0, 2 * strides[3]))
    right[:, :, :height, :width] = x
    return left, right


def patch_mean(x: Tensor, stride: int) -> Tensor:
    """m (C, 9)."""
    rows, columns = (_reached(size, stride, x.dtype, x.device) for size in x.shape[2:])
    # Summing over images is 20 times faster where the channels come last in the view too (torch 2.14, CPU).
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    plane = x.permute(0, 2, 3, 1).sum(0) if channels_last else x.sum(0).permute(1, 2, 0)  # (H, W, C)
    sums = torch.tensordot(columns, torch.tensordot(rows, plane, 1), ([1], [1]))  # (3 columns, 3 rows, C)
    return sums.transpose(0, 1).flatten(0, 1).t() / count_patches(x, stride)


@lru_cache
def _reached(size: int, stride: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3, size): 1 where a tap, -1, 0 or 1, comes upon a row (or column) of the plane."""
    outputs = stride * torch.arange(-(-size // stride))
    positions = torch.arange(size)
    taps = [torch.isin(positions, outputs + tap) for tap in (-1, 0, 1)]
    return torch.stack(taps).to(device, dtype)


def add_grad(dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor, stride: int) -> None:
    """Add ``slope`` (C, 9, 9, symmetric) @ p + ``offset`` (C, 9) of every patch to ``dx``, where the patch lies."""
    compiled = kernels_for(dx, x)
    if compiled is not None:
        (_add_plane_grad_compiled if stride == 1 else _add_strided_grad_compiled)(compiled, dx, x, slope, offset)
        return
    add = _add_plane_grad if stride == 1 else _add_strided_grad
    if x.dtype == slope.dtype:
        add(dx, x, slope, offset)
    else:  # half precision, whose range is too small for slopes and whose digits are too few for sums
        wide = torch.zeros_like(x, dtype=slope.dtype)
        add(wide, x.to(slope.dtype), slope, offset)
        dx += wide


def _add_plane_grad_compiled(compiled: ModuleType, dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
    sum_table, square_table = _sum_table(slope.dtype, x.device), _square_table(slope.dtype, x.device)
    half, borders = (slope.flatten(1) @ square_table.t() / 2).split([15, 16], 1)
    weights = torch.cat([_both_halves(half).flatten(1), borders, offset @ sum_table.t()], 1)
    compiled.plane_grad(dx, x, weights.t())


def _add_strided_grad_compiled(compiled: ModuleType, dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
    compiled.strided_grad(dx, x, slope.permute(1, 2, 0), offset.t())


def _both_halves(half: Tensor) -> Tensor:
    """(C, 15) of half the plane of lags -> (C, 5, 5)."""
    lags = F.pad(half.reshape(-1, 3, 5), (0, 0, 2, 0))
    return lags + lags.flip(1, 2)


def _add_plane_grad(dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
    """``add_grad`` at stride 1: the plane as if it had no border, then the borders.

    ``slope`` counts every lag from both of its ends, hence the half.
    """
    channels = x.shape[1]
    sum_table, square_table = _sum_table(slope.dtype, x.device), _square_table(slope.dtype, x.device)
    total, row_sum, column_sum, corner_sum = (offset @ sum_table.t()).split([1, 2, 2, 4], 1)
    half, row, column, corner = (slope.flatten(1) @ square_table.t() / 2).split([15, 6, 6, 4], 1)

    lags = _both_halves(half).to(x)
    for target, images in zip(chunks(dx), chunks(x)):
        target += F.conv2d(images, lags[:, None], total[:, 0].to(x), padding=2, groups=channels)

    rows, columns, corners = _borders(x)
    row_grad = _line_grad(rows, row, row_sum)
    column_grad = _line_grad(columns, column, column_sum)
    corner = corner.reshape(channels, 2, 2).transpose(0, 1)
    corner_sum = corner_sum.reshape(channels, 2, 2).transpose(0, 1)
    corner_grad = torch.addcmul(corner_sum[:, None], corners, corner[:, None], value=2)  # (2, N, C, 2)
    for side, edge in enumerate((0, -1)):
        dx[:, :, edge] += row_grad[side]
        dx[:, :, :, edge] += column_grad[side]
        for other_side, other_edge in enumerate((0, -1)):
            dx[:, :, edge, other_edge] += corner_grad[side, :, :, other_side]


def _add_strided_grad(dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
    """``add_grad`` at stride 2, one convolution for each parity of the receiving row and column.

    An even row lies under the taps i_y = 0 of one output row, an odd one under
    i_y = 1 of that row and i_y = -1 of the next, whose taps lie two rows further on.
    """
    channels, height, width = x.shape[1:]
    slope = slope.reshape(-1, 3, 3, 3, 3).to(x)  # i_y, i_x, j_y, j_x
    offset = offset.reshape(-1, 3, 3).to(x)
    receivers = []
    for rows, columns in product((0, 1), repeat=2):  # parities
        size_y, size_x = 3 + 2 * rows, 3 + 2 * columns
        if height + 2 < size_y or width + 2 < size_x:
            continue
        kernel, bias = slope.new_zeros(channels, size_y, size_x), slope.new_zeros(channels)
        for (tap_y, shift_y), (tap_x, shift_x) in product(_TAPS_ONTO[rows], _TAPS_ONTO[columns]):
            kernel[:, shift_y : shift_y + 3, shift_x : shift_x + 3] += slope[:, tap_y + 1, tap_x + 1]
            bias += offset[:, tap_y + 1, tap_x + 1]
        receivers.append((rows, columns, kernel[:, None], bias))
    for target, images in zip(chunks(dx), chunks(x)):
        for rows, columns, kernel, bias in receivers:
            source = F.conv2d(images, kernel, bias, 2, 1, groups=channels)
            target[:, :, rows::2, columns::2][:, :, : source.shape[2], : source.shape[3]] += source
    # The last row of an even plane has no next output row below it.
    if height % 2 == 0:
        _add_last_row(dx, x, slope, offset)
    if width % 2 == 0:
        dx = dx[:, :, :-1] if height % 2 == 0 else dx
        _add_last_row(dx.transpose(2, 3), x.transpose(2, 3), slope.permute(0, 2, 1, 4, 3), offset.transpose(1, 2))


def _add_last_row(dx: Tensor, x: Tensor, slope: Tensor, offset: Tensor) -> None:
    """The share of the taps i_y = 1 of the last output row, at stride 2 and an even height."""
    for column in range(3):  # i_x + 1
        kernel = slope[:, 2, column][:, None].contiguous()
        source = F.conv2d(x[:, :, -4:], kernel, offset[:, 2, column], 2, 1, groups=x.shape[1])[:, :, -1]
        if column == 0:  # the first output column has no pixel to its left
            source, target = source[..., 1:], dx[:, :, -1, 1::2]
        else:
            target = dx[:, :, -1, column - 1 :: 2]
        size = min(target.shape[-1], source.shape[-1])
        target[..., :size] += source[..., :size]


def _borders(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Top and bottom row (2, N, C, W), left and right column (2, N, C, H), corners (2, N, C, 2) [row, .., column]."""
    rows = torch.stack([x[:, :, 0], x[:, :, -1]])
    columns = torch.stack([x[:, :, :, 0], x[:, :, :, -1]])
    return rows, columns, torch.stack([rows[..., 0], rows[..., -1]], -1)


def _autocorrelation(lines: Tensor) -> Tensor:
    """Lags 0, 1, 2 of two border lines, summed over the images: (2, N, C, L) -> (2, C, 3)."""
    size = lines.shape[-1]
    pairs = ((lines[..., : max(size - lag, 0)], lines[..., lag:]) for lag in range(3))
    return torch.stack([(one * other).sum((1, 3)) for one, other in pairs], -1)


def _line_grad(lines: Tensor, grad: Tensor, grad_sum: Tensor) -> Tensor:
    """Adjoint of ``_autocorrelation`` (grad: C, 6) and of the sum (grad_sum: C, 2): (2, N, C, L)."""
    sides, images, channels, size = lines.shape
    kernel = grad.reshape(channels, 2, 3).transpose(0, 1).reshape(-1, 1, 3)
    kernel = F.pad(kernel, (2, 0))
    kernel = (kernel + kernel.flip(2)).to(lines)
    flat = lines.transpose(0, 1).reshape(images, sides * channels, size)
    out = F.conv1d(flat, kernel, grad_sum.t().reshape(-1).to(lines), padding=2, groups=sides * channels)
    return out.reshape(images, sides, channels, size).transpose(0, 1)


def _by_channel(values: Tensor) -> Tensor:
    """(2, C, n) -> (C, 2 n)."""
    return values.transpose(0, 1).flatten(1)


def _sum_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    return _sum_constant(device).to(dtype) if torch.compiler.is_compiling() else _tables(dtype, device)[0]


def _square_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    return _square_constant(device).to(dtype) if torch.compiler.is_compiling() else _tables(dtype, device)[1]


# torch.compile takes what these return as it is, and does not follow how it is made. It knows them by their names, so
# that a graph can hold one result of each.
@constant_when_compiled
def _sum_constant(device: torch.device) -> Tensor:
    return _tables(torch.float32, device)[0]


@constant_when_compiled
def _square_constant(device: torch.device) -> Tensor:
    return _tables(torch.float32, device)[1]


@constant_when_compiled
def _pairs(device: torch.device) -> Tensor:
    """(9, 9): where the product of two taps is among those of ``strided_sums``."""
    return _all_pairs(device)


@lru_cache
def _all_pairs(device: torch.device) -> Tensor:
    places = torch.empty(9, 9, dtype=torch.long)
    first, second = torch.triu_indices(9, 9)
    places[first, second] = places[second, first] = torch.arange(45)
    return places.to(device)


@lru_cache
def _tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The constant matrices behind S = sums @ (9, 9) and M = squares @ (31, 81).

    Rows are, for sums: the plane; top and bottom row; left and right column; the
    four corners. For squares: the half plane of lags; lags 0, 1, 2 of the top and
    bottom row; of the left and right column; the corners.
    """
    never_reached = {1: 0, -1: 1}  # tap offset -> which border it misses: 0 top / left, 1 bottom / right
    sums = torch.zeros(9, 9)
    squares = torch.zeros(31, 9, 9)
    for i, (y, x) in enumerate(TAPS):
        sums[0, i] = 1
        if y:
            sums[1 + never_reached[y], i] = -1
        if x:
            sums[3 + never_reached[x], i] = -1
        if y and x:
            sums[5 + 2 * never_reached[y] + never_reached[x], i] = 1
        for j, (other_y, other_x) in enumerate(TAPS):
            lag = (other_y - y, other_x - x)
            squares[_HALF_PLANE.index(max(lag, (-lag[0], -lag[1]))), i, j] = 1
            if y and y == other_y:
                squares[15 + 3 * never_reached[y] + abs(lag[1]), i, j] = -1
            if x and x == other_x:
                squares[21 + 3 * never_reached[x] + abs(lag[0]), i, j] = -1
            if i == j and y and x:
                squares[27 + 2 * never_reached[y] + never_reached[x], i, j] = 1
    return sums.to(device, dtype), squares.flatten(1).to(device, dtype)
