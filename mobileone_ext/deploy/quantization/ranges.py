"""What the 256 steps of an activation span: uint8 with a zero point, one scale for the whole tensor."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

PERCENTILE = 99.99  # what vendors' tools take
CLIPS = np.linspace(1.0, 0.4, 13)  # of the largest value, that mse tries: below, the errors of what is cut off rule
# Entropy needs to be told of more: it weighs a value by how many there are, not by how large it is.
ENTROPY_CLIPS = np.geomspace(1.0, 0.02, 60)
PIXELS = 14  # a range is chosen on at most about this many rows and columns: neighbors tell little more
BINS = 4096  # of the histogram, 16 a step


class QParams(NamedTuple):
    """``(q - zero_point) * scale`` for q in 0 .. 255."""

    scale: float
    zero_point: int

    def apply(self, x: Tensor) -> Tensor:
        """``x`` rounded to a step that there is."""
        q = (x / self.scale).round_().add_(self.zero_point).clamp_(0, 255)
        return q.sub_(self.zero_point).mul_(self.scale)


def qparams_between(low: float, high: float) -> QParams:
    """Steps from ``low`` to ``high``, widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, 1e-9) / 255))
    return QParams(scale, min(255, round(-low / scale)))


def choose_qparams(x: Tensor, importance: Tensor, method: str) -> QParams:
    """Scale and zero point for an activation.

    Args:
        x: samples (N, C) or (N, C, H, W).
        importance: (C,), how much an error in a channel matters to the next layer.
        method: ``minmax``; ``percentile`` cuts what lies beyond 99.99 %; ``mse`` takes the
            range with the least mean squared error; ``entropy`` the one whose rounded values
            are distributed most like the values (least Kullback-Leibler divergence).
    """
    if x.dim() == 4 and method != 'minmax':
        rows, columns = (max(1, size // PIXELS) for size in x.shape[2:])
        x = x[:, :, ::rows, ::columns]
    return METHODS[method](x, importance)


def minmax(x: Tensor, importance: Tensor) -> QParams:
    return qparams_between(float(x.min()), float(x.max()))


def percentile(x: Tensor, importance: Tensor) -> QParams:
    values = np.sort(x.flatten().numpy())
    outside = int(len(values) * (1 - PERCENTILE / 100))
    return qparams_between(float(values[outside]), float(values[-1 - outside]))


def mse(x: Tensor, importance: Tensor) -> QParams:
    importance = (importance / importance.sum()).reshape(1, -1, *[1] * (x.dim() - 2))
    return _best(x, CLIPS, lambda qparams: float(((qparams.apply(x) - x) ** 2 * importance).sum()))


def entropy(x: Tensor, importance: Tensor) -> QParams:
    if not x.any():
        return minmax(x, importance)
    # What ReLU set to 0 has a step whatever the scale; counted, it would ask for a step as narrow as its bin.
    counts, edges = np.histogram(x[x != 0].numpy(), BINS, (min(float(x.min()), 0.0), max(float(x.max()), 1e-9)))
    return _best(x, ENTROPY_CLIPS, lambda qparams: divergence(counts, (edges[:-1] + edges[1:]) / 2, qparams))


def _best(x: Tensor, clips: np.ndarray, error: Callable[[QParams], float]) -> QParams:
    """Of the range of ``x`` and ``clips`` of it, the one with the least ``error``."""
    low, high = float(x.min()), float(x.max())
    return min((qparams_between(low * clip, high * clip) for clip in clips), key=error)


METHODS = dict(minmax=minmax, percentile=percentile, mse=mse, entropy=entropy)


def divergence(counts: np.ndarray, centers: np.ndarray, qparams: QParams) -> float:
    """Kullback-Leibler divergence of a histogram, clipped as ``qparams`` do, from the same with one height a step.

    Clipping counts what it cuts off to the outermost bins, where the steps do not expect it: that is its price, as
    coarse steps are that of a wide range (Migacz, "8-bit inference with TensorRT", GTC 2017).
    """
    lowest, highest = -qparams.zero_point * qparams.scale, (255 - qparams.zero_point) * qparams.scale
    inside = (centers >= lowest) & (centers <= highest)
    if not inside.any():
        return float('inf')
    kept = counts[inside].astype(np.float64)
    clipped = kept.copy()
    clipped[0] += counts[centers < lowest].sum()
    clipped[-1] += counts[centers > highest].sum()
    steps = np.round(centers[inside] / qparams.scale).astype(int) + qparams.zero_point
    filled = (clipped > 0).astype(np.float64)
    height = np.bincount(steps, kept, 256) / np.bincount(steps, filled, 256).clip(1)
    expected = np.where(filled, height[steps], 0).clip(1e-9)
    p, q = clipped / clipped.sum(), expected / expected.sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
