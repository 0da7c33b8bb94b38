"""Patches of a map: counted, taken some at a time, and the moments of dense ones with their adjoint.

Legend: N images, I channels, T = I * K * K taps of a patch, P = N * H_out * W_out patches.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import gpu, kernels
from .gpu import HALF

# Values of a map worked on at a time on CPU: few enough for the cache, which the passes over them then read.
CHUNK_VALUES = 2**21
# Patches summed up at a time on CPU: few enough for the cache, and to lose no digits.
CHUNK_PATCHES = 2048
# Values of the matrices of products that are held at once on a GPU.
PART_VALUES = 2**21


def count_patches(x: Tensor, stride: int) -> int:
    """P: the patches of a "same" convolution over x (N, I, H, W)."""
    return x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)


def few_patches(x: Tensor, stride: int, patches: int | None = None) -> Sequence[Tensor]:
    """x (N, ...) by so few images that their patches can be summed up without losing digits."""
    patches = patches or CHUNK_PATCHES
    return x.split(max(patches // count_patches(x[:1], stride), 1)) if x.device.type == 'cpu' else (x,)


def chunks(x: Tensor) -> Sequence[Tensor]:
    """x (N, ...) by some images at a time."""
    if x.device.type != 'cpu' or x.numel() <= CHUNK_VALUES:
        return (x,)
    return x.split(max(CHUNK_VALUES // x[0].numel(), 1))


def pixel_rows(x: Tensor) -> Tensor:
    """(N, I, H, W) -> (N H W, I); of a channels-last map a view."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def patch_moments(x: Tensor, kernel_size: int, stride: int) -> tuple[Tensor, Tensor]:
    """m (1, T) and C (1, T, T) of dense patches, in float32 at least.

    Subtracting the channel's mean from every tap first keeps the digits where the
    mean is large against the deviation; a shift changes no covariance. Sums in float64
    keep them where a kernel, as one that finds edges, sees little of that covariance.
    """
    if kernel_size == stride == 1 and x.dtype in HALF:
        return _pixel_moments(x)
    if kernel_size == 3 and stride == 2 and x.shape[1] <= 3:
        if gpu.usable(x) and x.dtype != torch.float64:
            return _stem_moments(x, gpu.stem_sums)
        if kernels.usable(x, any_layout=True):
            return _stem_moments(x, kernels.stem_sums)
    if x.dtype in HALF:
        x = x.float()
    count = count_patches(x, stride)
    if kernel_size == stride == 1 and count <= CHUNK_PATCHES:  # few enough for their own mean, and for float32
        pixels = pixel_rows(x)
        mean = pixels.mean(0)
        centered = pixels - mean
        return mean[None], (centered.t() @ centered).div_(count)[None]
    sum_type = x.dtype if x.device.type == 'mps' else torch.float64  # which Metal lacks
    shift = near_mean(x).repeat_interleave(kernel_size**2)[:, None]  # (T, 1)
    taps = len(shift)
    sums = x.new_zeros(taps, 1, dtype=sum_type)
    # By blocks of rows from the diagonal on: the rest is their mirror image. Four of them multiply 0.63 of all.
    block = -(-taps // min(max(taps // 32, 1), 4))
    squares = [x.new_zeros(min(block, taps - i), taps - i, dtype=sum_type) for i in range(0, taps, block)]
    for images in few_patches(x, stride):
        patches = _patches(images, kernel_size, stride) - shift  # (T, P)
        sums += patches @ patches.new_ones(patches.shape[1], 1)  # faster than a sum over images (torch 2.14, CPU)
        for index, total in enumerate(squares):
            total += patches[index * block : (index + 1) * block] @ patches[index * block :].t()
    upper = torch.cat([F.pad(total, (taps - total.shape[1], 0)) for total in squares]).triu()
    sums /= count
    cov = (upper + upper.triu(1).t()) / count - sums @ sums.t()
    return (shift + sums).t().to(x), cov[None].to(x)


def _pixel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """``patch_moments`` of single pixels of half precision on a GPU, in float32.

    Products in the map's type, float32 sums over a few images, then float64 totals. Without kernels for it, the shift
    makes a copy of the map, rounded as it is: float32 sums would lose more where the mean is large.
    """
    images, channels, height, width = x.shape
    shift, count = near_mean(x), count_patches(x, 1)
    if gpu.takes_pixels(x):
        totals = gpu.pixel_sums(x, shift) / count
        sums = totals[-1]
        cov = totals[:-1] - sums[:, None] * sums
        return (shift + sums).float()[None], cov.float()[None]
    # A view of a channels-last map.
    pixels = (x - shift[:, None, None]).permute(0, 2, 3, 1).reshape(_parts(images, channels), -1, channels)
    sums = pixels.sum(1, dtype=torch.float32).double().sum(0) / count
    squares = gram(pixels).double().sum(0) / count
    cov = squares - sums[:, None] * sums
    return (shift + sums).float()[None], cov.float()[None]


def _parts(images: int, channels: int) -> int:
    """Into how many parts of equal size the images go: many for short sums, few for small matrices (C, C) of them."""
    most = max(PART_VALUES // channels**2, 1)
    return next(parts for parts in range(min(images, most), 0, -1) if images % parts == 0)


def gram(rows: Tensor) -> Tensor:
    """X^T X (n, C, C) in float32 of X (n, P, C) in half precision, by products in that type where the device can."""
    if rows.device.type == 'cuda':
        return torch.bmm(rows.transpose(1, 2), rows, out_dtype=torch.float32)
    rows = rows.float()
    return rows.transpose(1, 2) @ rows


def near_mean(x: Tensor) -> Tensor:
    """(I,): about the mean of every channel, of a few images; a shift by it leaves variances their digits."""
    few = x[:: len(x) // 4] if len(x) >= 8 else x
    return few.mean((0, 2, 3))


def _stem_moments(x: Tensor, stem_sums: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """``patch_moments`` of 3x3 patches at stride 2 of images, in float64, by kernels."""
    shift = near_mean(x)
    taps, count = 9 * x.shape[1], count_patches(x, 2)
    totals = stem_sums(x, shift).triu() / count
    sums, squares = totals[:taps, taps], totals[:taps, :taps]
    squares = squares + squares.triu(1).t()
    mean = shift.double().repeat_interleave(9) + sums
    return mean[None], (squares - sums[:, None] * sums)[None]


def add_patch_grad(
    dx: Tensor, x: Tensor, kernel_size: int, stride: int, slope: Tensor, offset: Tensor, mean: Tensor
) -> None:
    """Add ``slope`` (T, T) @ patch + ``offset`` (T) to ``dx`` where a patch lies; ``mean`` (T) is that of patches."""
    scale = None
    if x.dtype == torch.float16:  # whose range is too small for slopes
        scale = slope.abs().sum(1).amax().clamp_min(torch.finfo(slope.dtype).tiny)
        slope, offset = slope / scale, offset / scale
    factor = slope
    if slope.dtype != x.dtype:
        factor = slope.to(x.dtype)
        offset = offset + (slope - factor.to(slope)) @ mean  # or the mean would not cancel
    if kernel_size == stride == 1 and gpu.takes_pixels(dx, x):
        gpu.pixel_grad(dx, x, factor, offset, scale if scale is not None else offset.new_ones(()))
        return
    if kernel_size == stride == 1:
        weight, bias = factor.view(*factor.shape, 1, 1), offset if offset.dtype == x.dtype else offset.to(x.dtype)
        for target, images in zip(chunks(dx), chunks(x)):
            share = F.conv2d(images, weight, bias)
            target += share if scale is None else share * scale
        return
    geometry = dict(kernel_size=kernel_size, padding=kernel_size // 2, stride=stride)
    for target, images in zip(few_patches(dx, stride), few_patches(x, stride)):
        patches = F.unfold(images, **geometry)  # (n, T, H_out * W_out)
        share = F.fold(factor @ patches + offset[:, None].to(x.dtype), images.shape[2:], **geometry)
        target += share if scale is None else share * scale


def _patches(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """(n, I, H, W) -> (T, P); for 1x1 patches of a channels-last map a view."""
    if kernel_size == stride == 1:
        return x.transpose(0, 1).flatten(1)
    return F.unfold(x, kernel_size, padding=kernel_size // 2, stride=stride).transpose(0, 1).flatten(1)
