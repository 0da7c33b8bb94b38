"""The algebra of a block (fold.py) by the compiled kernels, in one call each way; they read tensors where they lie."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import gpu, kernels
from .fold import Moments
from .linears import Linears
from .patches import count_patches


def take(x: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels do the algebra of a block with these ``tensors``, too: they read them where they lie."""
    if gpu.INTERPRETED or not kernels.usable(x, any_layout=tensors[0].shape[1] > 1):
        return False
    return all(tensor.dtype == x.dtype and tensor.is_contiguous() for tensor in tensors)


def fold(
    x: Tensor, linears: Linears, tensors: Sequence[Tensor], moments: Moments, kernel: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`mobileone_ext.moments.fold.fold`, into ``kernel``: its bias, and the statistics of the norms."""
    channels = len(kernel)
    bias, statistics = kernel.new_empty(channels), kernel.new_empty(2, len(linears.eps), channels)
    given = _block(x, linears, tensors)
    moments = Moments(*(value if value is None else kernels.in_order(value, x) for value in moments))
    kernels.run('fold', x.dtype, *given, *moments, kernel, bias, statistics, torch.get_num_threads())
    return bias, statistics


class RowGradients(NamedTuple):
    """Gradients of a block's weights (B, O, I, K, K) and vectors (.., O).

    For its map ``slopes`` (B O, T), ``offset`` (T,) and ``pixel_slope`` (O,).
    """

    weights: Tensor
    vectors: Tensor
    slopes: Tensor
    offset: Tensor
    pixel_slope: Tensor


def fold_grad(
    x: Tensor, linears: Linears, tensors: Sequence[Tensor], moments: Moments, statistics: Tensor, dk: Tensor, db: Tensor
) -> RowGradients:
    """As :func:`mobileone_ext.moments.fold.fold_grad`, but for the products of ``slopes`` with the kernels."""
    dk, db, channels, number = dk.contiguous(), db.contiguous(), len(dk), linears.kernels
    weights = dk.new_empty(number, *dk.shape)
    result = RowGradients(
        weights,
        dk.new_empty(len(tensors) - number, channels),
        dk.new_empty(number * channels, dk[0].numel()),
        dk.new_empty(dk[0].numel()),
        dk.new_empty(channels),
    )
    given = (*_block(x, linears, tensors), *moments[:3], statistics, dk, db)
    kernels.run('fold_grad', dk.dtype, *given, *result, torch.get_num_threads())
    return result


def dense_adjoint(
    x: Tensor, linears: Linears, tensors: Sequence[Tensor], grads: RowGradients, patch: Tensor, slope: Tensor
) -> None:
    """Add what pixels give to ``slope`` (T, T); take its product with the mean ``patch`` (T) off ``grads.offset``."""
    kernels.run('dense_adjoint', x.dtype, *_block(x, linears, tensors), grads.pixel_slope, patch, slope, grads.offset)


def depthwise_forward(x: Tensor, linears: Linears, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The one kernel of a depthwise block and its bias, and what ``depthwise_backward`` needs.

    That ends with the mean and biased variance of its norms (2, B + Q, O).
    """
    channels = x.shape[1]
    kernel, bias = torch.empty_like(tensors[0]), x.new_empty(channels)
    saved = x.new_empty(channels * (10 + 10 * linears.kernels + 2 * len(linears.eps)))
    given = *_block(x, linears, tensors), kernels.sizes((*x.shape, *x.stride())), linears.stride, x
    kernels.run('depthwise_forward', x.dtype, *given, saved, kernel, bias, torch.get_num_threads())
    return kernel, bias, saved


def depthwise_backward(
    dx: Tensor | None, x: Tensor, linears: Linears, tensors: Sequence[Tensor], saved: Tensor, dk: Tensor, db: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and vectors; what the statistics give x is added to ``dx``, if it is given."""
    dk, db, number = dk.contiguous(), db.contiguous(), linears.kernels
    grads = dk.new_empty(number, *dk.shape), dk.new_empty(len(tensors) - number, len(dk))
    steps = x.stride()
    maps = kernels.sizes((*x.shape, *steps)), linears.stride, x, dx, kernels.sizes(steps if dx is None else dx.stride())
    given = *_block(x, linears, tensors), *maps
    kernels.run('depthwise_backward', x.dtype, *given, saved, dk, db, *grads, torch.get_num_threads())
    return grads


def follow(buffers: Sequence[Tensor], momenta: tuple[float | None, ...], batch: Tensor, count: int) -> bool:
    """Move running statistics as ``nn.BatchNorm2d`` does, if they are of the type of ``batch``, on a CPU.

    ``batch`` ends with mean and biased variance (2, norms, O) of ``count`` values a channel; ``buffers`` as in
    :class:`Linears`.
    """
    number, channels = len(momenta), len(buffers[0])
    if not all(each.dtype == batch.dtype and each.is_contiguous() for each in buffers[: 2 * number]):
        return False
    address = batch.data_ptr() + (batch.numel() - 2 * number * channels) * batch.element_size()
    factors = kernels.doubles(tuple(-1.0 if momentum is None else momentum for momentum in momenta))
    kernels.run('follow', batch.dtype, address, number, channels, count, factors, kernels.pointers(buffers))
    return True


def _block(x: Tensor, linears: Linears, tensors: Sequence[Tensor]) -> tuple:
    """A block as functions of kernels.cpp take it: sizes, where its tensors lie, and eps."""
    channels, per_group, size, _ = tensors[0].shape
    number, norms, area = linears.kernels, len(linears.eps), size * size
    sizes = number, norms - number, channels, linears.groups, per_group * area, area, count_patches(x, linears.stride)
    return kernels.sizes(sizes), kernels.pointers(tensors), kernels.doubles(linears.eps)
