"""The one kernel that trains as parallel branches, without keeping or even computing their outputs.

A train-time MobileOne block (arXiv 2206.04040, section 3.2) is a sum of BN_b(W_b * x). What batch norm takes from
z_b = W_b * x follows from the mean and covariance of the input's patches, zero padding included, and so does the one
convolution that the block is (fold.py). Nothing is approximated: gradients flow through the statistics.

Dense kernels: the covariance is one matrix product of the patches. Depthwise 3x3 kernels: see depthwise.py.

Legend: N images, I = C_in input channels, G groups, T = I / G * K * K taps of a patch, B kernels, O output channels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from ..reparam import Kernel
from . import compiled, kernels, operators
from .batch import add_grads, batch_moments, without_autocast
from .fold import Folded, Moments, Parts, Pool, by_convolutions, fold
from .linears import Linears, Tensors
from .patches import CHUNK_PATCHES, add_patch_grad, count_patches, pixel_rows

# Multiplications of a 1x1 block by its branches' outputs and by the covariance, per P and per I (O = I, four kernels):
# 12 P I^2 and 1.6 P I^2 + 8 I^3. Below this share of I patches, the former are fewer.
_FEW_PATCHES = 0.75


def is_covered(in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int, groups: int) -> bool:
    """Whether ``one_kernel`` knows such a convolution: dense, or depthwise 3x3 at stride 1 or 2; dilation 1."""
    depthwise = groups == in_channels == out_channels and kernel_size == 3 and stride in (1, 2)
    return dilation == 1 and (groups == 1 or depthwise)


def one_kernel(x: Tensor, linears: Linears) -> tuple[Tensor, Kernel]:
    """``x`` (N, I, H, W) itself, and the kernel that computes what the branches and their norms do to this batch.

    Hand the returned ``x`` to the convolution: its gradient then arrives here and the share of the statistics is added
    in place, without another map of that size. Statistics of half precision are computed in float32.
    """
    pool = Pool(linears.sync.process_group) if linears.sync is not None and dist.is_initialized() else None
    with without_autocast(x):
        if pool is None and torch.compiler.is_compiling():
            parts = linears.parts(x, linears.tensors)
            weight, bias, batch = operators.one_kernel(x, *parts[:3], linears.stride, linears.groups)
            _follow(linears, batch, count_patches(x, linears.stride))
            return x, Kernel(_laid_out_as(linears.tensors[0], weight), bias)
        if pool is None and compiled.take(x, linears):
            function = _Depthwise if linears.groups > 1 else _Dense
            same, weight, bias = function.apply(x, linears, *linears.tensors)
        else:
            same, weight, bias, batch, *total = _OneKernel.apply(x, linears, pool, *linears.tensors)
            _follow(linears, batch, total[0] if total else count_patches(x, linears.stride))
    # Without a gradient of its own, x stays so, or the convolution computes one for the images.
    return (same if x.requires_grad else x), Kernel(weight, bias)


@torch.no_grad()
def _follow(linears: Linears, batch: Tensor, count: int | Tensor) -> None:
    """Move running statistics by ``count`` values, whose mean and biased variance (2, norms, O) are ``batch``."""
    number = len(linears.eps)
    means, variances, tracked = (linears.buffers[i : i + number] for i in range(0, 3 * number, number))
    mean, var = batch
    var = var * (count / (count - 1))
    torch._foreach_add_(tracked, 1)
    momenta = {*linears.momenta}
    for running, new in ((means, mean), (variances, var)):
        batches = (new if new.dtype == running[0].dtype else new.to(running[0].dtype)).unbind()
        if len(momenta) == 1 and None not in momenta:
            torch._foreach_lerp_(running, batches, *momenta)
            continue
        for momentum, own, one, times in zip(linears.momenta, running, batches, tracked):  # None: a cumulative average
            own.lerp_(one, 1 / times.to(one) if momentum is None else momentum)


class _Depthwise(Function):
    """``one_kernel`` of a depthwise block and its gradient by one compiled call each."""

    @staticmethod
    def forward(ctx, x: Tensor, linears: Linears, *tensors: Tensor | None):
        kernel, bias, saved = compiled.depthwise_forward(x, linears, tensors)
        ctx.linears = linears
        ctx.save_for_backward(x, *tensors, saved)
        ctx.set_materialize_grads(False)
        return x.view_as(x), kernel, bias

    @staticmethod
    def backward(ctx, dx: Tensor | None, dk: Tensor | None, db: Tensor | None):
        return _backward(ctx, dx, dk, db, compiled.depthwise_backward)


class _Dense(Function):
    """``one_kernel`` of a dense block: products of matrices by torch, the rest of the algebra by one compiled call."""

    @staticmethod
    def forward(ctx, x: Tensor, linears: Linears, *tensors: Tensor | None):
        count, in_order = count_patches(x, linears.stride), _in_order(tensors, linears.kernels)
        weights = _rows_of(in_order[: linears.kernels])
        outputs = None
        if tensors[0].shape[-1] == linears.stride == 1 and count <= CHUNK_PATCHES:
            moments, outputs = _few_pixels(x, weights, len(linears.eps) > linears.kernels)
        else:
            moments = batch_moments(x, weights.view(linears.kernels, *tensors[0].shape), linears.stride, 1)
        kernel = torch.empty_like(in_order[0])
        bias, statistics = compiled.fold(x, linears, in_order, moments, kernel)
        if in_order[0] is not tensors[0]:
            kernel = _laid_out_as(tensors[0], kernel)
        ctx.linears = linears
        ctx.save_for_backward(x, *tensors, *moments[:3], outputs, statistics)
        ctx.set_materialize_grads(False)
        return x.view_as(x), kernel, bias

    @staticmethod
    def backward(ctx, dx: Tensor | None, dk: Tensor | None, db: Tensor | None):
        return _backward(ctx, dx, dk, db, _dense_backward)


def _dense_backward(
    dx: Tensor | None, x: Tensor, linears: Linears, tensors: Tensors, saved: Sequence[Any], dk: Tensor, db: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`mobileone_ext.moments.compiled.depthwise_backward`, of a dense block."""
    patch, products, pixel_var, outputs, statistics = saved
    tensors = _in_order(tensors, linears.kernels)
    grads = compiled.fold_grad(x, linears, tensors, Moments(patch, products, pixel_var), statistics, dk, db)
    if dx is None:
        return grads[:2]
    if outputs is not None:
        share = torch.addmm(grads.offset, outputs, grads.slopes)
        if len(linears.eps) > linears.kernels:
            share.addcmul_(pixel_rows(x) - patch, grads.pixel_slope)
    else:
        slope = grads.slopes.t() @ _rows_of(tensors[: linears.kernels])
        compiled.dense_adjoint(x, linears, tensors, grads, patch, slope)
        size, stride = tensors[0].shape[-1], linears.stride
        if size > 1 or stride > 1 or count_patches(x, stride) > CHUNK_PATCHES:
            add_patch_grad(dx, x, size, stride, slope, grads.offset, patch.view(-1))
            return grads[:2]
        share = torch.addmm(grads.offset, pixel_rows(x), slope)
    dx += share.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
    return grads[:2]


def _backward(ctx, dx: Tensor | None, dk: Tensor | None, db: Tensor | None, grads_of: Callable) -> tuple:
    """Gradients of a compiled block: ``grads_of`` gives those of its tensors and adds that of the map to another."""
    linears: Linears = ctx.linears
    x, *saved = ctx.saved_tensors
    tensors, saved = saved[: len(linears.tensors)], saved[len(linears.tensors) :]
    if torch.is_grad_enabled():  # create_graph=True
        dx, *each = _differentiable_grads(linears, None, x, tensors, dx, dk, db)
        return dx, None, *each
    if dk is None and db is None:
        return dx, None, *[None] * len(tensors)
    dx, own = _onto(dx, x) if ctx.needs_input_grad[0] else (None, None)
    grads = grads_of(own, x, linears, tensors, saved, *_given(dk, db, tensors))
    if own is not dx:
        dx = dx + own
    return dx, None, *_each(grads, tensors)


def _few_pixels(x: Tensor, weights: Tensor, with_var: bool) -> tuple[Moments, Tensor | None]:
    """Moments of few pixels; also the branches' outputs (P, B O) less their means, if those are less work than C."""
    pixels = pixel_rows(x)
    mean = pixels.mean(0)
    pixels = pixels - mean
    scale: dict[str, Any] = dict(beta=0, alpha=1 / len(pixels))
    if len(pixels) > _FEW_PATCHES * len(mean):
        cov = torch.addmm(mean, pixels.t(), pixels, **scale)
        return Moments(mean, weights @ cov, cov.diagonal().contiguous() if with_var else mean), None
    outputs = pixels @ weights.t()
    products = torch.addmm(mean, outputs.t(), pixels, **scale)
    return Moments(mean, products, pixels.square().mean(0) if with_var else mean), outputs


class _OneKernel(Function):
    """``one_kernel`` with its gradient by torch; also the statistics of the norms, and pooled, their count."""

    @staticmethod
    def forward(ctx, x: Tensor, linears: Linears, pool: Pool | None, *tensors: Tensor | None):
        parts = linears.parts(x, tensors)
        moments = batch_moments(x, parts.weights, linears.stride, linears.groups)
        folded = fold(parts, moments, pool)
        of_norms = [value for value in folded[2:] if value is not None]
        ctx.linears, ctx.pool, ctx.rest, ctx.inputs = linears, pool, parts[2:], 1 + len(tensors)
        ctx.save_for_backward(x, *tensors, *parts[:2], *moments, *of_norms)
        ctx.mark_non_differentiable(*of_norms)
        ctx.set_materialize_grads(False)
        return x.view_as(x), _laid_out_as(tensors[0], folded.kernel), folded.bias, *of_norms

    @staticmethod
    def backward(ctx, dx: Tensor | None, dk: Tensor | None, db: Tensor | None, *_):
        linears: Linears = ctx.linears
        saved = ctx.saved_tensors
        x, *tensors = saved[: ctx.inputs]
        weights, vectors, *rest = saved[ctx.inputs :]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            dx, *each = _differentiable_grads(linears, ctx.pool, x, tensors, dx, dk, db)
            return dx, None, None, *each
        if dk is None and db is None:
            return dx, None, None, *[None] * len(tensors)
        parts, moments = Parts(weights, vectors, *ctx.rest), Moments(*rest[:4])
        folded = Folded(*[weights.new_empty(0)] * 2, *rest[4:])
        if not ctx.needs_input_grad[0]:
            dx = None
        elif dx is None:
            dx = torch.zeros_like(x)
        elif 0 in dx.stride():  # one value for many pixels, as of a sum
            dx = dx.contiguous()
        given = _given(dk, db, weights.unbind())
        grads = add_grads(dx, x, linears.stride, parts, moments, folded, *given, ctx.pool)
        return dx, None, None, *_each(grads, tensors)


def _laid_out_as(weight: Tensor, kernel: Tensor) -> Tensor:
    """A kernel in memory as one of the branches.

    An NCHW image convolved with an NHWC kernel becomes an NHWC map, and so do those of all further blocks.
    """
    return torch.empty_like(weight, dtype=kernel.dtype).copy_(kernel)


def _onto(dx: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of ``x`` that has arrived, and what to add to: itself, if the kernels take how it lies in memory."""
    if dx is None:
        dx = torch.zeros_like(x)
    return dx, dx if kernels.usable(dx) else torch.zeros_like(x)


def _given(dk: Tensor | None, db: Tensor | None, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Gradients of the kernel and its bias, in the type of ``weights``; zeros if there are none."""
    like = weights[0]
    dk = like.new_zeros(like.shape) if dk is None else dk
    db = like.new_zeros(len(like)) if db is None else db
    return (dk, db) if dk.dtype == db.dtype == like.dtype else (dk.to(like.dtype), db.to(like.dtype))


def _each(grads: Sequence[Tensor], tensors: Tensors) -> list[Tensor]:
    """Gradients (B, O, I / G, K, K) of kernels and (.., O) of vectors, one for each of the tensors."""
    each = [*grads[0].unbind(), *grads[1].unbind()]
    for index in range(len(grads[0]), len(each) // 3):  # of pixels
        tensor = tensors[index]
        each[index] = None if tensor is None else each[index].view(tensor.shape)
    if each[0].dtype == tensors[0].dtype == tensors[-1].dtype:
        return each
    return [grad if grad is None else grad.to(tensor.dtype) for grad, tensor in zip(each, tensors)]


def _in_order(tensors: Tensors, kernels: int) -> Tensors:
    """``tensors`` whose kernels are contiguous, as the compiled ones read them: those of the stem are channels-last."""
    return [*[tensor.contiguous() for tensor in tensors[:kernels]], *tensors[kernels:]]


def _rows_of(weights: Sequence[Tensor]) -> Tensor:
    """(B O, T)"""
    rows = torch.stack(weights) if len(weights) > 1 else weights[0]
    return rows.view(-1, weights[0][0].numel())


def _differentiable_grads(
    linears: Linears,
    pool: Pool | None,
    x: Tensor,
    tensors: Tensors,
    dx: Tensor | None,
    dk: Tensor | None,
    db: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients by operators that can be differentiated again, at the branches' cost."""
    norms = len(linears.eps)
    pixels = [tensor if tensor is None else tensor.flatten() for tensor in tensors[linears.kernels : norms]]
    parts = tensors[: linears.kernels], pixels, tensors[norms:]
    outputs = by_convolutions(x, *parts, linears.eps, linears.stride, linears.groups, pool)
    used = [pair for pair in zip(outputs, (dk, db)) if pair[1] is not None and pair[0].requires_grad]
    inputs = [tensor for tensor in (x, *tensors) if tensor is not None and tensor.requires_grad]
    gradients = [None] * len(inputs)
    if used and inputs:
        outputs, output_grads = zip(*used)
        gradients = torch.autograd.grad(outputs, inputs, output_grads, create_graph=True, allow_unused=True)
    by_input = dict(zip(map(id, inputs), gradients))
    from_statistics = by_input.get(id(x))
    if from_statistics is not None:
        dx = from_statistics if dx is None else dx + from_statistics
    return dx, *[None if tensor is None else by_input.get(id(tensor)) for tensor in tensors]
