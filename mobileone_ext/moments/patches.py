"""Patches of a map: counted, taken some at a time, and the moments of dense ones with their adjoint.

Legend: N images, I channels, T = I * K * K taps of a patch, P = N * H_out * W_out patches.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Values of a map worked on at a time on CPU: few enough for the cache, which the passes over them then read.
_CHUNK_VALUES = 2**21
# Patches summed up at a time on CPU: few enough for the cache, and to lose no digits.
_CHUNK_PATCHES = 2048


def count_patches(x: Tensor, stride: int) -> int:
    """P: the patches of a "same" convolution over x (N, I, H, W)."""
    return x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)


def few_patches(x: Tensor, stride: int, patches: int | None = None) -> Sequence[Tensor]:
    """x (N, ...) by so few images that their patches can be summed up without losing digits."""
    patches = patches or _CHUNK_PATCHES
    return x.split(max(patches // count_patches(x[:1], stride), 1)) if x.device.type == 'cpu' else (x,)


def chunks(x: Tensor) -> Sequence[Tensor]:
    """x (N, ...) by some images at a time."""
    return x.split(max(_CHUNK_VALUES // x[0].numel(), 1)) if x.device.type == 'cpu' else (x,)


def patch_moments(x: Tensor, kernel_size: int, stride: int) -> tuple[Tensor, Tensor]:
    """m (1, T) and C (1, T, T) of dense patches.

    Subtracting the channel's mean from every tap first keeps the digits where the
    mean is large against the deviation; a shift changes no covariance. Sums in float64
    keep them where a kernel, as one that finds edges, sees little of that covariance.
    """
    sum_type = x.dtype if x.device.type == 'mps' else torch.float64  # which Metal lacks
    shift = x.mean((0, 2, 3)).repeat_interleave(kernel_size**2)[:, None]  # (T, 1)
    taps = len(shift)
    sums, squares = x.new_zeros(taps, 1, dtype=sum_type), x.new_zeros(taps, taps, dtype=sum_type)
    for images in few_patches(x, stride):
        patches = _patches(images, kernel_size, stride) - shift  # (T, P)
        sums += patches @ patches.new_ones(patches.shape[1], 1)  # faster than a sum over images (torch 2.14, CPU)
        squares += patches @ patches.t()
    count = count_patches(x, stride)
    sums /= count
    squares /= count
    return (shift + sums).t().to(x), squares.sub_(sums @ sums.t())[None].to(x)


def add_patch_grad(dx: Tensor, x: Tensor, kernel_size: int, stride: int, slope: Tensor, offset: Tensor) -> None:
    """Add ``slope`` (T, T) @ patch + ``offset`` (T,) of every patch to ``dx``, where the patch lies."""
    slope, offset = slope.to(x), offset.to(x)
    if kernel_size == stride == 1:
        for target, images in zip(chunks(dx), chunks(x)):
            target += F.conv2d(images, slope[:, :, None, None], offset)
        return
    geometry = dict(kernel_size=kernel_size, padding=kernel_size // 2, stride=stride)
    for target, images in zip(few_patches(dx, stride), few_patches(x, stride)):
        patches = F.unfold(images, **geometry)  # (n, T, H_out * W_out)
        target += F.fold(slope @ patches + offset[:, None], images.shape[2:], **geometry)


def _patches(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """(n, I, H, W) -> (T, P); for 1x1 patches of a channels-last map a view."""
    if kernel_size == stride == 1:
        return x.transpose(0, 1).flatten(1)
    return F.unfold(x, kernel_size, padding=kernel_size // 2, stride=stride).transpose(0, 1).flatten(1)
