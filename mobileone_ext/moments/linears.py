"""What moments need of a block's branches."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .fold import Parts
from .patches import count_patches


class Linears(NamedTuple):
    """What moments need of a block: of every branch the kernel before the norm, and the norm; B kernels come first.

    ``tensors``: B kernels (O, I / G, K, K) with G = ``groups`` = 1 or I; Q weights (O,) of branches that only weigh the
    pixel under the center; B + Q gammas and as many betas. ``buffers``: running means, then variances, then counts of
    batches, which move as in ``nn.BatchNorm2d``; those of SyncBN by the batches of all processes.
    """

    tensors: Sequence[Tensor]
    buffers: Sequence[Tensor]
    momenta: tuple[float | None, ...]
    eps: tuple[float, ...]
    kernels: int
    stride: int
    groups: int
    sync: nn.SyncBatchNorm | None

    def parts(self, x: Tensor, tensors: Sequence[Tensor]) -> Parts:
        """``tensors`` stacked, in float32 at least."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        weights = _stack(tensors[: self.kernels], dtype)
        vectors = _stack([tensor.flatten() for tensor in tensors[self.kernels :]], dtype)
        return Parts(weights, vectors, self.eps, self.groups, count_patches(x, self.stride))


def collect(linears: Iterable[tuple[Tensor, Any]], stride: int, groups: int) -> Linears:
    """From pairs of a kernel, or of the weights of pixels, and a norm; kernels come first."""
    weights, norms = zip(*linears)
    size = weights[0].shape[-1]
    buffers = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    return Linears(
        [*weights, *(norm.weight for norm in norms), *(norm.bias for norm in norms)],
        [buffer for each in zip(*buffers) for buffer in each],
        tuple(norm.momentum for norm in norms),
        tuple(norm.eps for norm in norms),
        sum(weight.dim() == 4 and weight.shape[-1] == size for weight in weights),
        stride,
        groups,
        norms[0] if isinstance(norms[0], nn.SyncBatchNorm) else None,
    )


def _stack(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    stacked = torch.stack(tensors)
    if stacked.dtype == dtype and stacked.is_contiguous():  # as a rule
        return stacked
    return stacked.to(dtype).contiguous()
