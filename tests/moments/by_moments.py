"""Batch statistics of parallel convolutions as a block takes them, for tests."""

from typing import NamedTuple

import torch
from torch import Tensor

from mobileone_ext.moments.batch import batch_moments
from mobileone_ext.moments.fold import Parts, statistics
from mobileone_ext.moments.patches import count_patches


class Statistics(NamedTuple):
    """Mean and biased variance (B, O) of every output, of the pixels (I,), and the count of patches."""

    mean: Tensor
    var: Tensor
    pixel_mean: Tensor
    pixel_var: Tensor
    count: int


def batch_statistics(x, weights, stride, groups):
    """Of x (N, I, H, W) through ``weights`` (B, O, I / G, K, K), without autograd."""
    weights = weights.detach().to(torch.promote_types(x.dtype, torch.float32))
    x, count = x.detach(), count_patches(x, stride)
    vectors = weights.new_ones(2 * len(weights), weights.shape[1])
    parts = Parts(weights, vectors, (1e-5,) * len(weights), groups, count)
    with torch.autocast(x.device.type, enabled=False):
        moments = batch_moments(x, weights, stride, groups)
        mean, var = statistics(parts, moments)
    return Statistics(mean, var, moments.patch[:, parts.center()].flatten(), moments.pixel_var, count)
