"""Batch statistics of parallel convolutions, without keeping or even computing them all.

A train-time MobileOne block (arXiv 2206.04040, section 3.2) is a sum of
BN_b(W_b * x). With p the input patch under the kernel, zero padding included,
the statistics that batch norm takes from z_b = W_b * x are

    mean_b = W_b m,      m = E[p]
    var_b  = W_b q_b,    q_b = C W_b,    C = E[p p^T] - m m^T

so with a_b = gamma_b / sqrt(var_b + eps) the block trains as one convolution,
sum_b a_b W_b. Nothing is approximated: gradients flow through the statistics.

Dense kernels: C is one matrix product of the patches. Depthwise 3x3 kernels: see
depthwise.py.

Legend: N images, I = C_in input channels, G groups, T = I / G * K * K taps of a
patch, P = N * H_out * W_out patches, B branches, O output channels, R = B * O / G.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from ..reparam import Affine, Kernel, norm_affine, pad_kernel
from . import depthwise, gpu, kernels
from .patches import add_patch_grad, count_patches, patch_moments

# The lags cost about as much as two branches by themselves.
_LAGS_FROM_BRANCHES = 2


class Statistics(NamedTuple):
    """What batch norm takes from a batch.

    ``mean`` and biased ``var`` (B, O) of every branch's output; ``pixel_mean`` and
    ``pixel_var`` (I,) of the pixels under the kernel's center, which is all that a
    skip or a depthwise 1x1 branch needs; ``count`` P, a number or a scalar tensor.
    """

    mean: Tensor
    var: Tensor
    pixel_mean: Tensor
    pixel_var: Tensor
    count: int | Tensor


def is_covered(in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int, groups: int) -> bool:
    """Whether ``batch_statistics`` knows such a convolution: dense, or depthwise 3x3 at stride 1 or 2; dilation 1."""
    depthwise = groups == in_channels == out_channels and kernel_size == 3 and stride in (1, 2)
    return dilation == 1 and (groups == 1 or depthwise)


def batch_statistics(x: Tensor, weights: Tensor, stride: int, groups: int) -> tuple[Tensor, Statistics]:
    """``x`` (N, I, H, W) itself, and what batch norm takes from its "same" convolutions.

    ``weights`` (B, O, I / G, K, K), G = ``groups`` = 1 or I. Hand the returned ``x``
    to the convolution: its gradient then arrives here and the share of the
    statistics is added in place, without another map of that size. Statistics of
    half precision are computed in float32.
    """
    with torch.autocast(x.device.type, enabled=False):
        same, *statistics = _BatchStatistics.apply(x, weights, stride, groups)
    if x.requires_grad:  # otherwise leave it so, or the convolution computes a gradient for the images
        x = same
    return x, Statistics(*statistics, count_patches(x, stride))


class _BatchStatistics(Function):
    """``batch_statistics`` with its gradient.

    d var_b / d W_b = 2 q_b. With g_b the gradients of var_b, x receives patch by
    patch slope (p - m), where slope = sum_b 2 g_b W_b W_b^T / P.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weights: Tensor, stride: int, groups: int):
        sum_type = torch.promote_types(x.dtype, torch.float32)
        matrix = _to_matrix(weights, groups).to(sum_type)
        center = _center_taps(weights)
        on_gpu = gpu.usable(x)  # whose kernels take half precision as it is
        wide = x if on_gpu else x.to(sum_type)
        compiled = groups > 1 and (on_gpu or kernels.usable(wide))
        if groups > 1 and not compiled and (stride > 1 or len(weights) < _LAGS_FROM_BRANCHES):
            mean, q, pixel_var = depthwise.branch_moments(wide, matrix, stride)
        else:
            if compiled:
                mean, cov = depthwise.compiled_moments(wide, stride)
            elif groups > 1:
                mean, cov = depthwise.lag_moments(wide)
            else:
                mean, cov = patch_moments(wide, weights.shape[-1], stride)
            matrix = matrix.to(cov)
            q = matrix @ cov
            pixel_var = cov.diagonal(0, 1, 2)[:, center].flatten()
        ctx.save_for_backward(x, weights, mean.to(sum_type), q.to(sum_type))
        ctx.geometry = stride, groups
        ctx.set_materialize_grads(False)
        branch_mean = (matrix @ mean[..., None])[..., 0]
        branch_var = (matrix * q).sum(2).clamp_(min=0)
        branch_mean, branch_var = (_to_branches(value, len(weights)) for value in (branch_mean, branch_var))
        statistics = branch_mean, branch_var, mean[:, center].flatten(), pixel_var
        return x.view_as(x), *(value.to(sum_type) for value in statistics)

    @staticmethod
    def backward(ctx, dx: Tensor | None, *grads: Tensor | None):
        x, weights, mean, q = ctx.saved_tensors
        (stride, groups), kernel_size = ctx.geometry, weights.shape[-1]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            return *_differentiable_grads(x, weights, stride, groups, dx, grads), None, None
        if all(grad is None for grad in grads):
            return dx, None, None, None
        shapes = [(len(weights), weights.shape[1])] * 2 + [(x.shape[1],)] * 2
        grads = [mean.new_zeros(shape) if grad is None else grad for grad, shape in zip(grads, shapes)]
        grad_mean, grad_var = (_to_matrix(grad[..., None], groups)[..., 0] for grad in grads[:2])  # (G, R)
        grad_pixel_mean, grad_pixel_var = grads[2:]

        dw = grad_mean[..., None] * mean[:, None] + 2 * grad_var[..., None] * q
        dw = _to_branches(dw, len(weights)).reshape(weights.shape).to(weights)
        if not ctx.needs_input_grad[0]:
            return None, dw, None, None

        matrix = _to_matrix(weights, groups).to(mean.dtype)
        center = _center_taps(weights)
        with torch.autocast(x.device.type, enabled=False):
            slope = matrix.transpose(1, 2) @ (2 * grad_var[..., None] * matrix)
            slope.diagonal(0, 1, 2)[:, center] += 2 * grad_pixel_var.reshape(groups, -1)
            offset = (grad_mean[:, None] @ matrix)[:, 0]
            offset[:, center] += grad_pixel_mean.reshape(groups, -1)
            slope, offset = slope / count_patches(x, stride), offset / count_patches(x, stride)
            dx = torch.zeros_like(x) if dx is None else dx
            if groups == 1:
                add_patch_grad(dx, x, kernel_size, stride, slope[0], mean[0], offset[0])
            else:
                depthwise.add_grad(dx, x, slope, offset - (slope @ mean[..., None])[..., 0], stride)
        return dx, dw, None, None


def _differentiable_grads(
    x: Tensor, weights: Tensor, stride: int, groups: int, dx: Tensor | None, grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``x`` and ``weights`` by operators that can be differentiated again, at the branches' cost."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    padding = weights.shape[-1] // 2
    outputs = [F.conv2d(wide, w.to(wide), None, stride, padding, groups=groups) for w in weights.unbind()]
    pixels = wide[:, :, ::stride, ::stride]
    over = (0, 2, 3)
    statistics = [
        torch.stack([z.mean(over) for z in outputs]),
        torch.stack([z.var(over, correction=0) for z in outputs]),
        pixels.mean(over),
        pixels.var(over, correction=0),
    ]
    used = [pair for pair in zip(statistics, grads) if pair[1] is not None and pair[0].requires_grad]
    inputs = [tensor for tensor in (x, weights) if tensor.requires_grad]
    gradients = [None] * len(inputs)
    if used and inputs:
        outputs, output_grads = zip(*used)
        gradients = torch.autograd.grad(outputs, inputs, output_grads, create_graph=True, allow_unused=True)
    by_input = dict(zip(map(id, inputs), gradients))
    from_statistics = by_input.get(id(x))
    if from_statistics is not None:
        dx = from_statistics if dx is None else dx + from_statistics
    return dx, by_input.get(id(weights))


def _to_matrix(weights: Tensor, groups: int) -> Tensor:
    """(B, O, ...) -> (G, R, ...): one matrix of kernels a group."""
    branches = len(weights)
    return weights.reshape(branches, groups, -1, weights[0, 0].numel()).transpose(0, 1).flatten(1, 2)


def _to_branches(values: Tensor, branches: int) -> Tensor:
    """(G, R, ...) -> (B, O, ...): the inverse of ``_to_matrix``."""
    return values.unflatten(1, (branches, -1)).transpose(0, 1).flatten(1, 2)


def _center_taps(weights: Tensor) -> slice:
    """Where the center taps are among the T taps of a patch."""
    size = weights.shape[-1] ** 2
    return slice(size // 2, None, size)


def pool_processes(statistics: Statistics, group: dist.ProcessGroup | None = None) -> Statistics:
    """The statistics of the batches of all processes together, as SyncBN takes them."""
    count = statistics.mean.new_full((1,), statistics.count)
    mean = torch.cat([statistics.mean.flatten(), statistics.pixel_mean])
    var = torch.cat([statistics.var.flatten(), statistics.pixel_var])
    totals = _AllReduce.apply(torch.cat([count, count * mean]), group)
    total, mean_of_all = totals[0], totals[1:] / totals[0]
    var = _AllReduce.apply(count * (var + (mean - mean_of_all).square()), group) / total

    branches = statistics.mean.shape
    sizes = [branches.numel(), len(mean) - branches.numel()]
    (mean, pixel_mean), (var, pixel_var) = mean_of_all.split(sizes), var.split(sizes)
    return Statistics(mean.reshape(branches), var.reshape(branches), pixel_mean, pixel_var, total)


class _AllReduce(Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _AllReduce.apply(grad, ctx.group), None


def batch_kernel(
    weights: Tensor, pixel_weights: Sequence[Tensor], statistics: Statistics, norms: Sequence[nn.Module]
) -> Kernel:
    """The one kernel that computes what the branches and their batch norms do to this batch.

    ``weights`` (B, O, I / G, K, K); ``pixel_weights``, one (I,) for each branch that
    only scales the pixel under the center; ``norms`` of the former, then of the
    latter. Their running statistics move as in ``nn.BatchNorm2d``.
    """
    mean, var, pixel_mean, pixel_var, count = statistics
    if pixel_weights:
        pixel_weights = torch.stack(pixel_weights)
        mean = torch.cat([mean, pixel_weights * pixel_mean])
        var = torch.cat([var, pixel_weights.square() * pixel_var])
    scale, shift = _batch_norm_affine(norms, mean, var, count)
    kernel = (scale[: len(weights), :, None, None, None] * weights).sum(0)
    if len(scale) > len(weights):
        diagonal = (scale[len(weights) :] * pixel_weights).sum(0)
        per_group, kernel_size = kernel.shape[1], kernel.shape[-1]
        identity = torch.eye(per_group, dtype=kernel.dtype, device=kernel.device).repeat(len(kernel) // per_group, 1)
        kernel = kernel + pad_kernel((identity * diagonal[:, None])[..., None, None], kernel_size)
    # As a product: the gradient of a plain sum would be one piece of memory that the biases of all norms share,
    # and a change in place, as by clipping, would reach each of them several times.
    return Kernel(kernel, (shift.new_ones(1, len(shift)) @ shift)[0])


def _batch_norm_affine(norms: Sequence[nn.Module], mean: Tensor, var: Tensor, count: int | Tensor) -> Affine:
    """What batch norms do to their channels in training mode: scale and shift (B, O).

    ``mean`` and biased ``var`` (B, O) of the batch, ``count`` values a channel. The
    running statistics follow, as in ``nn.BatchNorm2d``.
    """
    with torch.no_grad():
        unbiased = var * (count / (count - 1))
        for norm, batch_mean, batch_var in zip(norms, mean, unbiased):
            norm.num_batches_tracked += 1
            momentum = norm.momentum
            if momentum is None:  # a cumulative average
                momentum = 1 / norm.num_batches_tracked.to(batch_mean)
            norm.running_mean.lerp_(batch_mean.to(norm.running_mean), momentum)
            norm.running_var.lerp_(batch_var.to(norm.running_var), momentum)
    gamma, beta = (torch.stack(values).to(mean) for values in zip(*((norm.weight, norm.bias) for norm in norms)))
    return norm_affine(mean, var, gamma, beta, var.new_tensor([[norm.eps] for norm in norms]))
