"""Fusion algebra of MobileOne: branches in, one convolution kernel out.

MobileOne, arXiv 2206.04040, section 3.2: a train-time block is a sum of
linear branches, so it equals one convolution. Pure functions on tensors; the
modules that own the tensors are in branches.py.

Shapes: O output channels, I input channels per group, K kernel size (odd).
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kernel(NamedTuple):
    """A convolution with bias: ``weight`` (O, I, K, K), ``bias`` (O,)."""

    weight: Tensor
    bias: Tensor


class Affine(NamedTuple):
    """What a normalization layer does to a channel: ``scale * z + shift``, each (O,)."""

    scale: Tensor
    shift: Tensor


def norm_affine(
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Affine:
    """The affine map of batch norm with statistics ``mean`` and ``var``, all (O,).

    ``gamma`` and ``beta`` are None for a norm without affine parameters.
    """
    scale = torch.rsqrt(var + eps)
    if gamma is not None:
        scale = gamma * scale
    shift = -mean * scale
    if beta is not None:
        shift = shift + beta
    return Affine(scale, shift)


def fold_affine(weight: Tensor, affine: Affine, bias: Tensor | None = None) -> Kernel:
    """The convolution ``weight`` (O, I, K, K), ``bias`` (O,) followed by ``affine``, as one kernel."""
    shift = affine.shift if bias is None else affine.shift + affine.scale * bias
    return Kernel(weight * affine.scale.reshape(-1, 1, 1, 1), shift)


def pad_kernel(weight: Tensor, kernel_size: int) -> Tensor:
    """Zero-pad a centered odd kernel (O, I, k, k) to (O, I, K, K).

    With padding ``dilation * (K - 1) // 2`` the larger kernel computes what the
    smaller one does with ``dilation * (k - 1) // 2``, at any stride.

    Raises:
        ValueError: if the sizes differ by an odd number or k > K.
    """
    margin, odd = divmod(kernel_size - weight.shape[-1], 2)
    if margin < 0 or odd:
        raise ValueError(f'cannot center a {weight.shape[-1]}x{weight.shape[-1]} kernel in {kernel_size}x{kernel_size}')
    return F.pad(weight, [margin] * 4)


def identity_kernel(channels: int, groups: int, kernel_size: int, like: Tensor) -> Tensor:
    """The kernel (channels, channels // groups, K, K) that returns its input."""
    weight = like.new_zeros(channels, channels // groups, kernel_size, kernel_size)
    return nn.init.dirac_(weight, groups)


def compose_kernels(first: Kernel, weight: Tensor, groups: int) -> Kernel:
    """The 1x1 convolution ``first`` (M, I, 1, 1), then ``weight`` (O, M / groups, K, K), as one kernel (O, I, K, K).

    Both have the same groups. Exact where the map between is padded by ``first.bias``, that is, by what ``first`` makes
    of zero. Diverse Branch Block, arXiv 2103.13425, section 3.2, Transform III.
    """
    outer, inner = weight.unflatten(0, (groups, -1)), first.weight.unflatten(0, (groups, -1))[..., 0, 0]
    composed = torch.einsum('gomhw,gmi->goihw', outer, inner).flatten(0, 1)
    bias = torch.einsum('gomhw,gm->go', outer, first.bias.unflatten(0, (groups, -1))).flatten()
    return Kernel(composed, bias)


def sum_kernels(kernels: Iterable[Kernel]) -> Kernel:
    """One kernel that computes the sum of parallel kernels of equal shape."""
    weights, biases = zip(*kernels)
    return Kernel(torch.stack(weights).sum(0), torch.stack(biases).sum(0))
