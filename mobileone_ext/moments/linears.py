"""What moments need of a block's branches."""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from . import kernels
from .fold import Parts
from .patches import count_patches

# Of a block: tensors and Nones, see Linears.
Tensors = Sequence[Any]


@dataclass(frozen=True, eq=False)
class Linears:
    """What moments need of a block: of every branch the kernel before the norm, and the norm; B kernels come first.

    ``tensors``: B kernels (O, I / G, K, K) with G = ``groups`` = 1 or I; Q weights (O,), or None for ones, of branches
    that only weigh the pixel under the center; B + Q gammas and as many betas. ``buffers``: running means, variances,
    counts of batches; they move as in ``nn.BatchNorm2d``; those of SyncBN by the batches of all processes.
    """

    tensors: Tensors
    buffers: list[Tensor]
    momenta: tuple[float | None, ...]
    eps: tuple[float, ...]
    kernels: int
    stride: int
    groups: int
    sync: nn.SyncBatchNorm | None

    @cached_property
    def numbers(self) -> ctypes.Array:
        """Every eps, then every momentum; one below 0 stands for a cumulative average."""
        return kernels.doubles([*self.eps, *(-1.0 if momentum is None else momentum for momentum in self.momenta)])

    @cached_property
    def sizes(self) -> ctypes.Array:
        """B, Q, O, G, T and K * K."""
        channels, per_group, size, _ = self.tensors[0].shape
        pixels, area = len(self.eps) - self.kernels, size * size
        return kernels.sizes([self.kernels, pixels, channels, self.groups, per_group * area, area])

    def parts(self, x: Tensor, tensors: Sequence[Tensor]) -> Parts:
        """``tensors`` stacked, in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = _stack(tensors[: self.kernels], dtype)
        ones = torch.ones_like(tensors[-1])
        vectors = _stack([ones if each is None else each.flatten() for each in tensors[self.kernels :]], dtype)
        return Parts(weights, vectors, self.eps, self.groups, count_patches(x, self.stride))


def collect(linears: Iterable[tuple[Tensor | None, Any]], stride: int, groups: int) -> Linears:
    """From pairs of a kernel, or of the weights of pixels, and a norm; kernels come first."""
    weights, norms = zip(*linears)
    size = weights[0].shape[-1]
    buffers = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    return Linears(
        [*weights, *(norm.weight for norm in norms), *(norm.bias for norm in norms)],
        [buffer for each in zip(*buffers) for buffer in each],
        tuple(norm.momentum for norm in norms),
        tuple(norm.eps for norm in norms),
        sum(weight is not None and weight.dim() == 4 and weight.shape[-1] == size for weight in weights),
        stride,
        groups,
        norms[0] if isinstance(norms[0], nn.SyncBatchNorm) else None,
    )


def _stack(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    stacked = torch.stack(tensors)
    if stacked.dtype == dtype and stacked.is_contiguous():  # as a rule
        return stacked
    return stacked.to(dtype).contiguous()
