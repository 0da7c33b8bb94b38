"""The moments of a batch and what their gradient gives its map, by whichever kernels take the map."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import depthwise, gpu
from .fold import Folded, Moments, Parts, Pool, fold_grad
from .patches import add_patch_grad, patch_moments

# The lags cost about as much as two branches by themselves.
_LAGS_FROM_BRANCHES = 2


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Entered where it changes something: it takes as long as a small operator."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


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


def add_grads(
    dx: Tensor | None,
    x: Tensor,
    stride: int,
    parts: Parts,
    moments: Moments,
    folded: Folded,
    dk: Tensor,
    db: Tensor,
    pool: Pool | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of the parts' weights and vectors; that of the map is added to ``dx``, if it is given."""
    with without_autocast(x):
        grads = fold_grad(parts, moments, folded, dk, db, pool)
        if dx is not None:
            offset = grads.offset - (grads.slope @ moments.patch[..., None])[..., 0]
            if parts.groups > 1:
                depthwise.add_grad(dx, x, grads.slope, offset, stride)
            else:
                add_patch_grad(dx, x, dk.shape[-1], stride, grads.slope[0], offset[0], moments.patch[0])
    return grads.weights, grads.vectors
