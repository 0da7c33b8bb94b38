"""The algebra of a block: from the moments of its input to the one kernel that trains as its branches, and back.

With the mean m and covariance C of the input's patches, branch b of kernel W_b has the batch statistics

    mean_b = W_b m        q_b = C W_b        var_b = W_b q_b

so that its batch norm is a scale a_b = gamma_b / sqrt(var_b + eps_b), and the block one convolution,

    K = sum_b a_b W_b     bias = sum_b (beta_b - a_b mean_b)

Backward, with dK and db: da_b = dK W_b - db mean_b, and from there

    dgamma_b = da_b / sqrt(var_b + eps_b)     dbeta_b = db     dmean_b = -a_b db
    dvar_b = -da_b a_b / (2 (var_b + eps_b))  dW_b = a_b dK + dmean_b m + 2 dvar_b q_b

The map receives slope (p - m) + offset where a patch p lies: slope = sum_b 2 dvar_b W_b W_b^T / P and
offset = sum_b dmean_b W_b / P over P patches. A branch that only weighs the pixel under the kernel's center (skip, and
1x1 of a depthwise block) is the same with one tap.

This is the truth by torch's operators, batched over branches; kernels.cpp does it in one call.

Legend: B kernels, Q pixel weights, O output channels, G groups, T taps of a patch in a group.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from ..reparam import norm_affine


class Moments(NamedTuple):
    """Of a map: ``patch`` m (G, T), ``products`` q (B, O, T), ``pixel_var`` of the center tap (I,).

    ``var`` (B, O) where it is known with more digits than W q would have.
    """

    patch: Tensor
    products: Tensor
    pixel_var: Tensor
    var: Tensor | None = None


class Parts(NamedTuple):
    """Of a block: ``weights`` (B, O, I / G, K, K), ``vectors`` (Q + 2 (B + Q), O): pixel weights, gammas and betas, and
    the ``eps`` of its B + Q norms. So many ``patches`` are averaged over.
    """

    weights: Tensor
    vectors: Tensor
    eps: tuple[float, ...]
    groups: int
    patches: int

    @property
    def area(self) -> int:
        """The taps of a channel."""
        return self.weights.shape[-1] ** 2

    def center(self) -> slice:
        """Where the center taps are among the T taps of a patch."""
        return slice(self.area // 2, None, self.area)

    def split(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights (B, O, T), pixel weights (Q, O), gammas and betas (B + Q, O)."""
        pixels = len(self.eps) - len(self.weights)
        return self.weights.flatten(2), *self.vectors.split([pixels, len(self.eps), len(self.eps)])

    def eps_like(self, values: Tensor) -> Tensor | float:
        """One eps a norm, beside (B + Q, O); made on the device, where a copy from the host would make it wait."""
        if len({*self.eps}) == 1:
            return self.eps[0]
        return torch.cat([values.new_full((1, 1), eps) for eps in self.eps])


class Folded(NamedTuple):
    """``kernel`` (O, I / G, K, K), ``bias`` (O,), mean and biased variance (2, B + Q, O) that its norms took.

    Pooled, ``total`` is the count of patches of all processes.
    """

    kernel: Tensor
    bias: Tensor
    statistics: Tensor
    total: Tensor | None = None


class Gradients(NamedTuple):
    """Of the parts, and what the map receives: ``slope`` (G, T, T) and ``offset`` (G, T), see above."""

    weights: Tensor
    vectors: Tensor
    slope: Tensor
    offset: Tensor


def statistics(parts: Parts, moments: Moments) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (B + Q, O) of every branch's output."""
    weights, pixels, *_ = parts.split()
    grouped = weights.unflatten(1, (parts.groups, -1))  # (B, G, O / G, T)
    mean = torch.einsum('bgot,gt->bgo', grouped, moments.patch).flatten(1)
    var = (weights * moments.products).sum(2) if moments.var is None else moments.var
    if len(pixels):
        mean = torch.cat([mean, pixels * moments.patch[:, parts.center()].flatten()])
        var = torch.cat([var, pixels.square() * moments.pixel_var])
    return mean, var.clamp(min=0)


def fold(parts: Parts, moments: Moments, pool: 'Pool | None' = None) -> Folded:
    """The one kernel; with ``pool`` by the statistics of the batches of all processes."""
    mean, var = statistics(parts, moments)
    total = None
    if pool is not None:
        mean, var, total = pool(mean, var, parts.patches)
    return Folded(*_kernel(parts, mean, var), torch.stack([mean, var]), total)


def _kernel(parts: Parts, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    weights, pixels, gamma, beta = parts.split()
    scale, shift = norm_affine(mean, var, gamma, beta, parts.eps_like(mean))
    kernel = (scale[: len(weights), :, None] * weights).sum(0)
    if len(pixels):
        diagonal = (scale[len(weights) :] * pixels).sum(0)
        one = torch.eye(kernel.shape[1] // parts.area, dtype=kernel.dtype, device=kernel.device)
        one = one.repeat(len(kernel) // len(one), 1) * diagonal[:, None]
        kernel = kernel + F.pad(one[..., None], (parts.area // 2, parts.area // 2)).flatten(1)
    return kernel.view(parts.weights.shape[1:]), shift.sum(0)


def fold_grad(
    parts: Parts, moments: Moments, folded: Folded, dk: Tensor, db: Tensor, pool: 'Pool | None' = None
) -> Gradients:
    """The adjoint of :func:`fold` for the gradients ``dk`` of its kernel and ``db`` of its bias."""
    weights, pixels, gamma, _ = parts.split()
    branches, groups, center, dk = len(weights), parts.groups, parts.center(), dk.flatten(1)
    mean, var = folded.statistics
    rstd = (var + parts.eps_like(var)).rsqrt()
    scale = gamma * rstd
    dpixel = dk[:, center].diagonal() if groups == 1 else dk[:, parts.area // 2]
    dscale = (dk * weights).sum(2)
    if len(pixels):
        dscale = torch.cat([dscale, dpixel * pixels])
    dscale = dscale - db * mean
    dmean, dvar = -scale * db, -0.5 * dscale * scale * rstd.square()
    dgamma, dbeta = dscale * rstd, db.expand_as(dscale)
    if pool is not None:
        dmean, dvar = pool.grad(dmean, dvar, statistics(parts, moments)[0], folded, parts.patches)

    (dmean, dpixel_mean), (dvar, dpixel_var) = (grad.tensor_split([branches]) for grad in (dmean, dvar))
    patch = moments.patch.repeat_interleave(weights.shape[1] // groups, 0)  # (O, T)
    dweights = scale[:branches, :, None] * dk + dmean[..., None] * patch + 2 * dvar[..., None] * moments.products
    grouped = weights.unflatten(1, (groups, -1))
    slopes = (2 * dvar[..., None] / parts.patches * weights).unflatten(1, (groups, -1))
    slope = torch.einsum('bgot,bgos->gts', slopes, grouped)
    offset = torch.einsum('bgo,bgot->gt', dmean.unflatten(1, (groups, -1)), grouped) / parts.patches
    dpixels = pixels
    if len(pixels):
        of_mean, of_var = (dpixel_mean * pixels).sum(0), (2 * dpixel_var * pixels.square()).sum(0)
        offset[:, center] += of_mean.reshape(groups, -1) / parts.patches
        slope.diagonal(0, 1, 2)[:, center] += of_var.reshape(groups, -1) / parts.patches
        dpixels = scale[branches:] * dpixel + dpixel_mean * moments.patch[:, center].flatten()
        dpixels = dpixels + 2 * dpixel_var * pixels * moments.pixel_var
    return Gradients(dweights.view_as(parts.weights), torch.cat([dpixels, dgamma, dbeta]), slope, offset)


class Pool(NamedTuple):
    """Batch statistics of all processes together, as SyncBN takes them."""

    group: dist.ProcessGroup | None

    def __call__(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        own = mean.new_full((1,), count)
        totals = _AllReduce.apply(torch.cat([own, count * mean.flatten()]), self.group)
        total, mean_of_all = totals[0], (totals[1:] / totals[0]).view_as(mean)
        var = _AllReduce.apply(count * (var + (mean - mean_of_all).square()), self.group) / total
        return mean_of_all, var, total

    def grad(self, dmean: Tensor, dvar: Tensor, mean: Tensor, folded: Folded, count: int) -> tuple[Tensor, Tensor]:
        """Gradients of this process's statistics (``mean`` its own) from those of the pooled ones on every process."""
        dmean, dvar = _AllReduce.apply(torch.stack([dmean, dvar]), self.group) * (count / folded.total)
        return dmean + 2 * (mean - folded.statistics[0]) * dvar, dvar


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


def by_convolutions(
    x: Tensor,
    kernels: Sequence[Tensor],
    pixels: Sequence[Tensor | None],
    affine: Sequence[Tensor],
    eps: tuple[float, ...],
    stride: int,
    groups: int,
    pool: Pool | None = None,
) -> tuple[Tensor, Tensor]:
    """Kernel (O, I / G, K, K) and bias as of :func:`fold`, by operators that can be differentiated twice.

    It costs what the branches do: their outputs are computed. ``affine``: every gamma, then every beta.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    padding, pixel = kernels[0].shape[-1] // 2, wide[:, :, ::stride, ::stride]
    outputs = [F.conv2d(wide, w.to(wide), None, stride, padding, groups=groups) for w in kernels]
    pixels = [wide.new_ones(wide.shape[1]) if weight is None else weight.to(wide) for weight in pixels]
    outputs += [pixel * weight[:, None, None] for weight in pixels]
    mean = torch.stack([z.mean((0, 2, 3)) for z in outputs])
    var = torch.stack([z.var((0, 2, 3), correction=0) for z in outputs])
    count = outputs[0].numel() // outputs[0].shape[1]
    if pool is not None:
        mean, var, _ = pool(mean, var, count)
    weights = torch.stack([w.to(wide) for w in kernels])
    vectors = torch.stack([value.to(wide) for value in (*pixels, *affine)])
    return _kernel(Parts(weights, vectors, eps, groups, count), mean, var)
