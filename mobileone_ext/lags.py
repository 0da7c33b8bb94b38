"""Second moments of depthwise 3x3 patches at stride 1, and their adjoints.

The patch of a pixel q has nine taps p_i(q) = x(q + i), i in {-1, 0, 1}^2, zero outside the plane. Wanted per
channel are S(i) = sum_q p_i and M(i, j) = sum_q p_i p_j. M depends on the lag j - i alone, but for the borders:
with A(d) = sum_u x(u) x(u + d),

    M(i, j) = A(j - i) - [i_y = j_y != 0] R(j_x - i_x) - [i_x = j_x != 0] K(j_y - i_y) + [both] corner^2

where R and K are the autocorrelations of the border row and column that tap i never reaches: the top row for
i_y = +1, the bottom row for i_y = -1, and so on. A depthwise weight gradient computes nine lags in one pass, so
two of them give A on half the plane of lags; the other half is its mirror image. What is linear in such sums is
written as one constant matrix (``_tables``), and the adjoint uses its transpose.

Legend: N images, C channels, H x W plane, 9 taps in row-major order.
"""

from functools import lru_cache
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
_HALF_PLANE = [(y, x) for y in (0, 1, 2) for x in (-2, -1, 0, 1, 2)]


def correlate(x: Tensor, grad: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """sum_q grad(q) x(stride * q + tap - padding) of a depthwise kernel: (N, C, H, W), (N, C, Q) -> (C, K * K)."""
    channels = x.shape[1]
    weight = x.new_empty(channels, 1, kernel_size, kernel_size)
    geometry = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], channels)
    _, out, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [False, True, False])
    return out.flatten(1)


def plane_moments(x: Tensor) -> Tuple[Tensor, Tensor]:
    """S (C, 9) and M (C, 9, 9) at stride 1."""
    rows, columns, corners = _borders(x)
    sums = [x.sum((0, 2, 3))[:, None], rows.sum((1, 3)).t(), columns.sum((1, 3)).t(), _by_channel(corners.sum(1))]
    right = correlate(F.pad(x, (0, 2, 0, 2)), x, 3, 1, padding=0).reshape(-1, 3, 3)
    left = correlate(F.pad(x, (2, 0, 0, 2)), x, 3, 1, padding=0).reshape(-1, 3, 3)
    squares = [
        torch.cat([left[:, :, :2], right], 2).flatten(1),
        _by_channel(_autocorrelation(rows)),
        _by_channel(_autocorrelation(columns)),
        _by_channel(corners.square().sum(1)),
    ]
    sum_table, square_table = _tables(x.dtype, x.device)
    return torch.cat(sums, 1) @ sum_table, (torch.cat(squares, 1) @ square_table).reshape(-1, 9, 9)


def plane_moments_grad(dx: Tensor, x: Tensor, grad_sum: Tensor, grad_square: Tensor) -> None:
    """Add to ``dx`` (N, C, H, W) the gradient of ``plane_moments``; for ``grad_sum`` (C, 9), ``grad_square`` (C, 9, 9).

    ``grad_square`` is symmetrised already, G + G^T, and so counts every lag from both of its ends.
    """
    channels = x.shape[1]
    sum_table, square_table = _tables(grad_sum.dtype, x.device)
    total, row_sum, column_sum, corner_sum = (grad_sum @ sum_table.t()).split([1, 2, 2, 4], 1)
    half, row, column, corner = (grad_square.flatten(1) @ square_table.t() / 2).split([15, 6, 6, 4], 1)

    lags = F.pad(half.reshape(channels, 3, 5), (0, 0, 2, 0))
    lags = (lags + lags.flip(1, 2)).to(x)
    dx += F.conv2d(x, lags[:, None], total[:, 0].to(x), padding=2, groups=channels)

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


def _borders(x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
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


@lru_cache
def _tables(dtype: torch.dtype, device: torch.device) -> Tuple[Tensor, Tensor]:
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
