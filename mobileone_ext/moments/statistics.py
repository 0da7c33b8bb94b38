"""The one kernel that trains as parallel branches, without keeping or even computing their outputs.

A train-time MobileOne block (arXiv 2206.04040, section 3.2) is a sum of BN_b(W_b * x). What batch norm takes from
z_b = W_b * x follows from the mean and covariance of the input's patches, zero padding included, and so does the one
convolution that the block is (fold.py). Nothing is approximated: gradients flow through the statistics.

Dense kernels: the covariance is one matrix product of the patches. Depthwise 3x3 kernels: see depthwise.py.

Legend: N images, I = C_in input channels, G groups, T = I / G * K * K taps of a patch, B kernels, O output channels.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from ..reparam import Kernel
from . import depthwise, gpu, kernels
from .fold import Folded, Moments, Parts, Pool, by_convolutions, fold, fold_grad
from .patches import add_patch_grad, count_patches, near_mean, patch_moments

# The lags cost about as much as two branches by themselves.
_LAGS_FROM_BRANCHES = 2


class _Setting(NamedTuple):
    """Beside tensors: of the convolution, how many kernels there are, and of the norms."""

    stride: int
    groups: int
    kernels: int
    eps: tuple[float, ...]
    pool: Pool | None


def is_covered(in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int, groups: int) -> bool:
    """Whether ``one_kernel`` knows such a convolution: dense, or depthwise 3x3 at stride 1 or 2; dilation 1."""
    depthwise = groups == in_channels == out_channels and kernel_size == 3 and stride in (1, 2)
    return dilation == 1 and (groups == 1 or depthwise)


def one_kernel(
    x: Tensor,
    weights: Sequence[Tensor],
    pixels: Sequence[Tensor],
    norms: Sequence[Any],
    stride: int,
    groups: int,
) -> tuple[Tensor, Kernel]:
    """``x`` (N, I, H, W) itself, and the kernel that computes what the branches and their norms do to this batch.

    ``weights``, B of (O, I / G, K, K), G = ``groups`` = 1 or I; ``pixels``, one (I,) for each branch that only weighs
    the pixel under the center; ``norms`` of the former, then of the latter. Their running statistics move as in
    ``nn.BatchNorm2d``, those of SyncBN by the batches of all processes.

    Hand the returned ``x`` to the convolution: its gradient then arrives here and the share of the statistics is added
    in place, without another map of that size. Statistics of half precision are computed in float32.
    """
    pool = Pool(norms[0].process_group) if isinstance(norms[0], nn.SyncBatchNorm) and dist.is_initialized() else None
    setting = _Setting(stride, groups, len(weights), tuple(norm.eps for norm in norms), pool)
    affine = [norm.weight for norm in norms] + [norm.bias for norm in norms]
    with _without_autocast(x):
        function = _CompiledDepthwise if groups > 1 and _compiled(setting, x, *weights) else _OneKernel
        same, weight, bias, batch, *total = function.apply(x, setting, *weights, *pixels, *affine)
        _follow(norms, batch, total[0] if total else count_patches(x, stride))
    # Without a gradient of its own, x stays so, or the convolution computes one for the images.
    return (same if x.requires_grad else x), Kernel(weight, bias)


def _without_autocast(x: Tensor) -> AbstractContextManager:
    """Entered where it changes something: it takes as long as a small operator."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


@torch.no_grad()
def _follow(norms: Sequence[Any], batch: Tensor, count: int | Tensor) -> None:
    """Move running statistics by ``count`` values, whose mean and variance (2, norms, O) end ``batch``."""
    if isinstance(count, int) and kernels.usable(batch, any_layout=True) and kernels.follow(norms, batch, count):
        return
    mean, var = batch.flatten()[-2 * sum(len(norm.weight) for norm in norms) :].view(2, len(norms), -1)
    var = var * (count / (count - 1))
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
    momenta = {norm.momentum for norm in norms}
    for running, new in (([n.running_mean for n in norms], mean), ([n.running_var for n in norms], var)):
        batches = (new if new.dtype == running[0].dtype else new.to(running[0].dtype)).unbind()
        if len(momenta) == 1 and None not in momenta:
            torch._foreach_lerp_(running, batches, *momenta)
            continue
        for norm, own, one in zip(norms, running, batches):
            momentum = norm.momentum  # None: a cumulative average
            own.lerp_(one, 1 / norm.num_batches_tracked.to(one) if momentum is None else momentum)


class _CompiledDepthwise(Function):
    """``one_kernel`` of a depthwise block and its gradient by one call each."""

    @staticmethod
    def forward(ctx, x: Tensor, setting: _Setting, *tensors: Tensor):
        parts = _parts(x, setting, tensors)
        kernel = torch.empty_like(tensors[0])
        bias, saved = kernels.depthwise_forward(x, near_mean(x), parts, setting.stride, kernel)
        ctx.setting, ctx.rest, ctx.inputs = setting, parts[2:], 1 + len(tensors)
        ctx.save_for_backward(x, *tensors, *parts[:2], saved)
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        return x.view_as(x), kernel, bias, saved

    @staticmethod
    def backward(ctx, dx: Tensor | None, dk: Tensor | None, db: Tensor | None, _):
        x, *tensors, weights, vectors, saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_grads(ctx.setting, x, tensors, dx, dk, db)
        if dk is None and db is None:
            return dx, *[None] * ctx.inputs
        dk, db = _given(dk, weights.shape[1:], weights), _given(db, weights.shape[1:2], weights)
        onto_x = ctx.needs_input_grad[0]
        parts = Parts(weights, vectors, *ctx.rest)
        if not onto_x:
            dx = None
        elif dx is None:
            dx = torch.zeros_like(x)
        with_layout = dx is None or kernels.usable(dx)  # a sum of gradients may lie in memory in any way
        own = dx if with_layout else torch.zeros_like(x)
        grads = kernels.depthwise_backward(own, x, parts, saved, dk, db, ctx.setting.stride)
        if not with_layout:
            dx = dx + own
        return dx, None, *grads[0].unbind(), *grads[1].unbind()


class _OneKernel(Function):
    """``one_kernel`` with its gradient; also mean and biased variance of what the norms saw, and pooled, its count."""

    @staticmethod
    def forward(ctx, x: Tensor, setting: _Setting, *tensors: Tensor):
        parts = _parts(x, setting, tensors)
        moments = batch_moments(x, parts.weights, setting.stride, setting.groups)
        # Laid out as the branches' kernels: an NCHW image convolved with an NHWC kernel becomes an NHWC map, and so do
        # those of all further blocks.
        kernel = torch.empty_like(tensors[0], dtype=parts.weights.dtype)
        compiled = setting.groups == 1 and _compiled(setting, x, kernel)
        folded = kernels.fold(parts, moments, kernel) if compiled else fold(parts, moments, setting.pool)
        if not compiled:
            kernel.copy_(folded.kernel)
        of_norms = [value for value in folded[2:] if value is not None]
        ctx.setting, ctx.rest, ctx.inputs = setting, parts[2:], 1 + len(tensors)
        ctx.save_for_backward(x, *tensors, *parts[:2], *moments, *of_norms)
        ctx.mark_non_differentiable(*of_norms)
        ctx.set_materialize_grads(False)
        return x.view_as(x), kernel, folded.bias, *of_norms

    @staticmethod
    def backward(ctx, dx: Tensor | None, dk: Tensor | None, db: Tensor | None, *_):
        setting: _Setting = ctx.setting
        saved = ctx.saved_tensors
        x, *tensors = saved[: ctx.inputs]
        weights, vectors, *rest = saved[ctx.inputs :]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            return _differentiable_grads(setting, x, tensors, dx, dk, db)
        if dk is None and db is None:
            return dx, *[None] * ctx.inputs
        parts, moments = Parts(weights, vectors, *ctx.rest), Moments(*rest[:4])
        folded = Folded(*[weights.new_empty(0)] * 2, *rest[4:])
        dk, db = _given(dk, weights.shape[1:], weights), _given(db, weights.shape[1:2], weights)
        onto_x, size = ctx.needs_input_grad[0], weights.shape[-1]
        if onto_x and dx is None:
            dx = torch.zeros_like(x)
        with _without_autocast(x):
            if setting.groups == 1 and _compiled(setting, x):
                grads = kernels.fold_grad(parts, moments, folded, dk, db)
                if onto_x:
                    slope = kernels.slope_of(parts, moments, grads)
                    add_patch_grad(dx, x, size, setting.stride, slope, grads.offset.view(-1), moments.patch)
            else:
                grads = fold_grad(parts, moments, folded, dk, db, setting.pool)
                if onto_x:
                    offset = grads.offset - (grads.slope @ moments.patch[..., None])[..., 0]
                    if setting.groups > 1:
                        depthwise.add_grad(dx, x, grads.slope, offset, setting.stride)
                    else:
                        add_patch_grad(dx, x, size, setting.stride, grads.slope[0], offset[0], moments.patch[0])
        each = [*grads.weights.unbind(), *grads.vectors.unbind()]
        if weights.dtype != tensors[0].dtype or vectors.dtype != tensors[-1].dtype:
            each = [grad.to(tensor) for grad, tensor in zip(each, tensors)]
        return dx if onto_x else None, None, *each


def _given(grad: Tensor | None, shape: Sequence[int], like: Tensor) -> Tensor:
    if grad is None:
        return like.new_zeros(shape)
    return grad if grad.dtype == like.dtype else grad.to(like.dtype)


def _parts(x: Tensor, setting: _Setting, tensors: Sequence[Tensor]) -> Parts:
    """The tensors of a block, stacked, in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weights, vectors = (_stack(part, dtype) for part in (tensors[: setting.kernels], tensors[setting.kernels :]))
    return Parts(weights, vectors, setting.eps, setting.groups, count_patches(x, setting.stride))


def _stack(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    stacked = torch.stack(tensors)
    if stacked.dtype == dtype and stacked.is_contiguous():  # as a rule
        return stacked
    return stacked.to(dtype).contiguous()


def _compiled(setting: _Setting, x: Tensor, *kernel: Tensor) -> bool:
    """Whether the compiled kernels do the algebra of a block, too; one ``kernel`` to write lies in memory in order."""
    if setting.pool is not None or gpu.INTERPRETED or not kernels.usable(x, any_layout=setting.groups == 1):
        return False
    return all(each.dtype == x.dtype and each.is_contiguous() for each in kernel)


def batch_moments(x: Tensor, weights: Tensor, stride: int, groups: int) -> Moments:
    """The moments of ``x`` (N, I, H, W) that kernels ``weights`` (B, O, I / G, K, K) ask for."""
    wide = x if x.dtype == weights.dtype or gpu.usable(x) else x.to(weights.dtype)
    branches, outputs, _, size, _ = weights.shape
    if groups == 1:
        patch, cov = patch_moments(wide, size, stride)
        matrix = weights.view(branches * outputs, -1)
        products = (matrix if matrix.dtype == cov.dtype else matrix.to(cov)) @ cov[0]
        products = products.view(branches, outputs, -1)
        pixel_var = cov[0].diagonal()[size**2 // 2 :: size**2].contiguous()
    else:
        compiled = depthwise.kernels_for(wide)
        by_channel = weights.flatten(2).transpose(0, 1)  # (C, B, 9)
        if compiled is None and (stride > 1 or branches < _LAGS_FROM_BRANCHES):
            patch, products, pixel_var = depthwise.branch_moments(wide, by_channel, stride)
        else:
            patch, cov = depthwise.compiled_moments(wide, stride) if compiled else depthwise.lag_moments(wide)
            products, pixel_var = by_channel.to(cov) @ cov, cov[:, 4, 4]
        products = products.transpose(0, 1)
    if products.dtype == weights.dtype:
        return Moments(patch, products, pixel_var)
    var = (weights.flatten(2) * products).sum(2)  # with the digits that there are
    return Moments(*(value.to(weights.dtype) for value in (patch, products, pixel_var, var)))


def _differentiable_grads(
    setting: _Setting, x: Tensor, tensors: Sequence[Tensor], dx: Tensor | None, dk: Tensor | None, db: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients by operators that can be differentiated again, at the branches' cost."""
    norms = len(setting.eps)
    parts = tensors[: setting.kernels], tensors[setting.kernels : norms], tensors[norms:]
    outputs = by_convolutions(x, *parts, setting.eps, setting.stride, setting.groups, setting.pool)
    used = [pair for pair in zip(outputs, (dk, db)) if pair[1] is not None and pair[0].requires_grad]
    inputs = [tensor for tensor in (x, *tensors) if tensor.requires_grad]
    gradients = [None] * len(inputs)
    if used and inputs:
        outputs, output_grads = zip(*used)
        gradients = torch.autograd.grad(outputs, inputs, output_grads, create_graph=True, allow_unused=True)
    by_input = dict(zip(map(id, inputs), gradients))
    from_statistics = by_input.get(id(x))
    if from_statistics is not None:
        dx = from_statistics if dx is None else dx + from_statistics
    return dx, None, *(by_input.get(id(tensor)) for tensor in tensors)
