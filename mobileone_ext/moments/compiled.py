"""The algebra of a block (fold.py) by the compiled kernels, in one call each way; they read tensors where they lie."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import gpu, kernels
from .fold import Moments
from .linears import Linears, Tensors
from .patches import count_patches


def take(x: Tensor, linears: Linears) -> bool:
    """Whether the kernels do the algebra of a block, too: its tensors are of the type of ``x`` and lie in order.

    Kernels of a dense block may lie in any way.
    """
    if gpu.INTERPRETED or not kernels.usable(x, any_layout=linears.groups == 1):
        return False
    counts = len(linears.buffers) - len(linears.eps)
    tensors = [tensor for tensor in (*linears.tensors, *linears.buffers[:counts]) if tensor is not None]
    types = {tensor.dtype for tensor in tensors}, {tensor.dtype for tensor in linears.buffers[counts:]}
    return types == ({x.dtype}, {torch.long}) and all(
        map(Tensor.is_contiguous, tensors[0 if linears.groups > 1 else linears.kernels :])
    )


def fold(x: Tensor, linears: Linears, tensors: Tensors, moments: Moments, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`mobileone_ext.moments.fold.fold`, into ``kernel``: its bias, and the statistics of the norms.

    Running statistics follow them.
    """
    channels = len(kernel)
    bias, statistics = kernel.new_empty(channels), kernel.new_empty(2, len(linears.eps), channels)
    given = _block(x, linears, tensors)
    moments = Moments(*[value if value is None else kernels.in_order(value, x) for value in moments])
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
    x: Tensor,
    linears: Linears,
    tensors: Tensors,
    moments: Moments,
    statistics: Tensor,
    dk: Tensor,
    db: Tensor,
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
    x: Tensor, linears: Linears, tensors: Tensors, grads: RowGradients, patch: Tensor, slope: Tensor
) -> None:
    """Add what pixels give to ``slope`` (T, T); take its product with the mean ``patch`` (T) off ``grads.offset``."""
    kernels.run('dense_adjoint', x.dtype, *_block(x, linears, tensors), grads.pixel_slope, patch, slope, grads.offset)


def depthwise_forward(x: Tensor, linears: Linears, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """The one kernel of a depthwise block and its bias, and what ``depthwise_backward`` needs.

    Running statistics follow those of the batch.
    """
    channels = x.shape[1]
    kernel, bias = torch.empty_like(tensors[0]), x.new_empty(channels)
    saved = x.new_empty(channels * (10 + 10 * linears.kernels + 2 * len(linears.eps)))
    given = *_block(x, linears, tensors), kernels.sizes((*x.shape, *x.stride())), linears.stride, x
    kernels.run('depthwise_forward', x.dtype, *given, saved, kernel, bias, torch.get_num_threads())
    return kernel, bias, saved


def depthwise_backward(
    dx: Tensor | None,
    x: Tensor,
    linears: Linears,
    tensors: Tensors,
    saved: Sequence[Tensor],
    dk: Tensor,
    db: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and vectors; what the statistics give x is added to ``dx``, if it is given."""
    dk, db, number = dk.contiguous(), db.contiguous(), linears.kernels
    grads = dk.new_empty(number, *dk.shape), dk.new_empty(len(tensors) - number, len(dk))
    steps = x.stride()
    maps = kernels.sizes((*x.shape, *steps)), linears.stride, x, dx, kernels.sizes(steps if dx is None else dx.stride())
    given = *_block(x, linears, tensors), *maps
    kernels.run('depthwise_backward', x.dtype, *given, *saved, dk, db, *grads, torch.get_num_threads())
    return grads


def _block(x: Tensor, linears: Linears, tensors: Tensors) -> tuple:
    """A block as functions of kernels.cpp take it: sizes, count of patches, where tensors lie, eps and momenta."""
    pointers = kernels.pointers([*tensors, *linears.buffers])
    return linears.sizes, count_patches(x, linears.stride), pointers, linears.numbers
