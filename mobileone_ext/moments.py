"""Batch statistics of convolutions without computing the convolutions.

A train-time MobileOne block (arXiv 2206.04040, section 3.2) is a sum of
BN_b(W_b * x). With p the input patch under the kernel, zero padding included,
the statistics that batch norm takes from z_b = W_b * x are

    mean_b = W_b m,              m = E[p]
    var_b  = diag(W_b C W_b^T),  C = E[p p^T] - m m^T

so two moments of the input serve all branches, and the block trains as one
convolution. Nothing is approximated: gradients flow through m and C.

Legend: N images, I = C_in input channels, G groups, T = I / G * K * K taps of a
patch, P = N * H_out * W_out patches, B branches, O output channels.
"""

from typing import NamedTuple, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .lags import plane_moments, plane_moments_grad, strided_moments, strided_moments_grad, tap
from .reparam import Kernel, identity_kernel, norm_affine

# Rows of a patch matrix worked on at a time: small enough for the cache, so that centring them costs no memory traffic.
_CHUNK_PATCHES = 2048


class Moments(NamedTuple):
    """What batch norm needs to know about the patches of a batch.

    ``mean`` (G, T), ``cov`` (G, T, T) with divisor P, ``count`` P (a float, or a tensor once processes are pooled).
    """

    mean: Tensor
    cov: Tensor
    count: float


def is_covered(kernel_size: int, stride: int, dilation: int, groups: int, in_channels: int) -> bool:
    """Whether ``input_moments`` knows this convolution: dense, or depthwise 3x3; dilation 1; "same" padding."""
    depthwise = groups == in_channels and kernel_size == 3
    return dilation == 1 and (groups == 1 or depthwise)


def pays(block, x) -> bool:
    return True


def input_moments(x: Tensor, kernel_size: int, stride: int, groups: int) -> Tuple[Tensor, Moments]:
    """``x`` (N, I, H, W) itself and the moments of its patches, in float32 at least.

    Hand the returned ``x`` to the convolution: its gradient then arrives here and
    the moments' share is added in place, without another map of that size.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, mean, cov = _InputMoments.apply(x, kernel_size, stride, groups)
    patches = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    return x, Moments(mean, cov, float(patches))


class _InputMoments(Function):
    @staticmethod
    def forward(ctx, x: Tensor, kernel_size: int, stride: int, groups: int):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if groups == 1:
            mean, cov = _dense(wide, kernel_size, stride)
        else:
            mean, cov = _depthwise(wide, stride)
        ctx.save_for_backward(x, mean)
        ctx.geometry = kernel_size, stride, groups
        ctx.set_materialize_grads(False)
        return x.view_as(x), mean, cov

    @staticmethod
    @once_differentiable
    def backward(ctx, dx: Optional[Tensor], grad_mean: Optional[Tensor], grad_cov: Optional[Tensor]):
        x, mean = ctx.saved_tensors
        kernel_size, stride, groups = ctx.geometry
        if grad_mean is None and grad_cov is None:
            return dx, None, None, None
        grad_mean = torch.zeros_like(mean) if grad_mean is None else grad_mean
        grad_cov = mean.new_zeros(*mean.shape, mean.shape[1]) if grad_cov is None else grad_cov
        with torch.autocast(x.device.type, enabled=False):
            patches = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
            slope = (grad_cov + grad_cov.transpose(1, 2)) / patches
            # d C / d p = p - m on either side, so the constant part of the gradient is this:
            offset = grad_mean / patches - (slope @ mean[..., None])[..., 0]
            dx = torch.zeros_like(x) if dx is None else dx
            if groups == 1:
                _dense_grad(dx, x, kernel_size, stride, slope[0], offset[0])
            elif stride == 1:
                plane_moments_grad(dx, x, offset, slope)
            else:
                strided_moments_grad(dx, x, stride, offset, slope)
        return dx, None, None, None


def _dense(x: Tensor, kernel_size: int, stride: int) -> Tuple[Tensor, Tensor]:
    """Mean (1, T) and covariance (1, T, T) of dense patches, in one pass over the shifted patches.

    Subtracting the channel's mean from every tap first keeps the digits where the
    mean is large against the deviation; a shift changes no covariance.
    """
    shift = x.mean((0, 2, 3)).repeat_interleave(kernel_size**2)[:, None]  # (T, 1)
    taps = len(shift)
    sums, squares = x.new_zeros(taps, 1), x.new_zeros(taps, taps)
    count = 0
    for images in x.split(_chunk_images(x, stride)):
        patches = _patches(images, kernel_size, stride) - shift  # (T, P)
        sums += patches.sum(1, keepdim=True)
        squares.addmm_(patches, patches.t())
        count += patches.shape[1]
    sums /= count
    squares /= count
    return (shift + sums).t(), squares.sub_(sums @ sums.t())[None]


def _dense_grad(dx: Tensor, x: Tensor, kernel_size: int, stride: int, slope: Tensor, offset: Tensor) -> None:
    """Add to ``dx`` the fold of slope @ patches + offset: slope (T, T), offset (T,)."""
    if kernel_size == 1 and stride == 1:
        dx += F.conv2d(x, slope[:, :, None, None].to(x), offset.to(x))
        return
    size = _chunk_images(x, stride)
    geometry = dict(kernel_size=kernel_size, padding=kernel_size // 2, stride=stride)
    for target, images in zip(dx.split(size), x.split(size)):
        patches = F.unfold(images, **geometry)  # (n, T, Q)
        target += F.fold(slope.to(x) @ patches + offset[:, None].to(x), images.shape[2:], **geometry)


def _chunk_images(x: Tensor, stride: int) -> int:
    patches = -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
    return max(_CHUNK_PATCHES // patches, 1)


def _patches(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """(n, I, H, W) -> (T, P); for 1x1 patches of a channels-last map a view."""
    if kernel_size == 1 and stride == 1:
        return x.transpose(0, 1).flatten(1)
    return F.unfold(x, kernel_size, padding=kernel_size // 2, stride=stride).transpose(0, 1).flatten(1)


def _depthwise(x: Tensor, stride: int) -> Tuple[Tensor, Tensor]:
    """Mean (I, 9) and covariance (I, 9, 9) of depthwise 3x3 patches."""
    sums, squares = plane_moments(x) if stride == 1 else strided_moments(x, stride)
    centre = tap(x, (0, 0), stride)
    patches = centre.numel() // centre.shape[1]
    mean = sums / patches
    cov = squares / patches - mean[:, :, None] * mean[:, None]
    # Scale and skip branch see the centre tap alone: take its variance without the cancellation.
    mean[:, 4], cov[:, 4, 4] = torch.batch_norm_update_stats(centre, None, None, 0)
    return mean, cov


def pool_processes(moments: Moments, group: Optional[dist.ProcessGroup] = None) -> Moments:
    """The moments of the batches of all processes together, as SyncBN takes them."""
    count = moments.mean.new_full((1,), moments.count)
    totals = _AllReduce.apply(torch.cat([count, (count * moments.mean).flatten()]), group)
    count = totals[0]
    mean = (totals[1:] / count).reshape(moments.mean.shape)
    away = moments.mean - mean
    cov = moments.count * (moments.cov + away[:, :, None] * away[:, None])
    return Moments(mean, _AllReduce.apply(cov, group) / count, count)


class _AllReduce(Function):
    """Sum over processes; so is the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Optional[dist.ProcessGroup]) -> Tensor:
        ctx.group = group
        x = x.clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def branch_statistics(weights: Tensor, moments: Moments) -> Tuple[Tensor, Tensor]:
    """Mean and biased variance of every branch's output: weights (B, O, I / G, K, K) -> (B, O) twice."""
    branches, outputs = weights.shape[:2]
    groups, taps = moments.mean.shape
    # (B, G, O / G, T) -> (G, B * O / G, T)
    matrix = weights.reshape(branches, groups, -1, taps).transpose(0, 1).reshape(groups, -1, taps).to(moments.mean)
    mean = matrix @ moments.mean[..., None]
    var = _QuadraticForm.apply(matrix, moments.cov)
    mean, var = (s.reshape(groups, branches, -1).transpose(0, 1).reshape(branches, outputs) for s in (mean, var))
    return mean, var


def skip_statistics(moments: Moments, kernel_size: int) -> Tuple[Tensor, Tensor]:
    """Mean and biased variance (I,) of the input itself: the centre taps."""
    centre = slice(kernel_size**2 // 2, None, kernel_size**2)
    return moments.mean[:, centre].flatten(), moments.cov.diagonal(0, 1, 2)[:, centre].flatten()


class _QuadraticForm(Function):
    """diag(W C W^T), at least 0, for symmetric C: (G, R, T), (G, T, T) -> (G, R).

    By hand, because the symmetry saves one of three products of the gradient and
    because a variance that rounds below zero must keep its gradient.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, cov: Tensor) -> Tensor:
        product = matrix @ cov
        ctx.save_for_backward(matrix, product)
        return (product * matrix).sum(2).clamp_(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        matrix, product = ctx.saved_tensors
        grad = grad[..., None]
        return 2 * grad * product, matrix.transpose(1, 2) @ (grad * matrix)


def batch_kernel(
    weights: Tensor,
    moments: Moments,
    norms: Sequence[nn.Module],
    skip: bool,
) -> Tuple[Kernel, Tensor, Tensor]:
    """The one kernel that computes what the branches do in training mode.

    ``weights`` (B, O, I / G, K, K) of the convolutions; ``norms`` in their order,
    with the skip branch's last if ``skip``. Returns as well the mean and the
    biased variance of every branch, (B, O) or (B + 1, O).
    """
    kernel_size, groups = weights.shape[-1], len(moments.mean)
    mean, var = branch_statistics(weights, moments)
    if skip:
        skip_mean, skip_var = skip_statistics(moments, kernel_size)
        mean, var = torch.cat([mean, skip_mean[None]]), torch.cat([var, skip_var[None]])
    gamma, beta = (torch.stack(values) for values in zip(*((norm.weight, norm.bias) for norm in norms)))
    eps = var.new_tensor([norm.eps for norm in norms])[:, None]
    scale, shift = norm_affine(mean, var, gamma, beta, eps)
    kernel = (weights * scale[: len(weights), :, None, None, None]).sum(0)
    if skip:
        identity = identity_kernel(kernel.shape[0], groups, kernel_size, kernel)
        kernel = kernel + identity * scale[-1].reshape(-1, 1, 1, 1)
    return Kernel(kernel, shift.sum(0)), mean, var


def update_running(norms: Sequence[nn.Module], mean: Tensor, var: Tensor, count) -> None:
    """What batch norm does to its buffers, given the batch's statistics (B, O) of each norm."""
    with torch.no_grad():
        unbiased = var * (count / (count - 1))
        for norm, batch_mean, batch_var in zip(norms, mean, unbiased):
            norm.num_batches_tracked += 1
            momentum = norm.momentum
            if momentum is None:  # a cumulative average
                momentum = 1 / norm.num_batches_tracked.to(batch_mean)
            norm.running_mean.lerp_(batch_mean.to(norm.running_mean), momentum)
            norm.running_var.lerp_(batch_var.to(norm.running_var), momentum)
