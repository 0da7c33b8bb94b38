"""What the 256 steps of an activation span: uint8 with a zero point, one scale for the whole tensor."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

METHODS = ('minmax', 'percentile', 'mse', 'entropy')
PERCENTILE = 99.99  # what vendors' tools take
CLIPS = np.linspace(1.0, 0.4, 13)  # of the largest value, that mse tries: below, the errors of what is cut off rule
# Entropy needs to be told of more: it weighs a value by how many there are, not by how large it is.
ENTROPY_CLIPS = np.geomspace(1.0, 0.02, 60)
BINS = 4096  # of the histogram, 16 a step


class Grid(NamedTuple):
    """``(q - zero_point) * scale`` for q in 0 .. 255."""

    scale: float
    zero_point: int

    def apply(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid."""
        q = (x / self.scale).round_().add_(self.zero_point).clamp_(0, 255)
        return q.sub_(self.zero_point).mul_(self.scale)


def grid_between(low: float, high: float) -> Grid:
    """The grid from ``low`` to ``high``, widened to hold 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, 1e-9) / 255))
    return Grid(scale, min(255, round(-low / scale)))


def choose_grid(x: Tensor, importance: Tensor, method: str) -> Grid:
    """The grid for an activation.

    Args:
        x: samples (N, C) or (N, C, H, W).
        importance: (C,), how much an error in a channel matters to the next layer.
        method: ``minmax``; ``percentile`` cuts what lies beyond 99.99 %; ``mse`` takes the
            range with the least mean squared error; ``entropy`` the one whose rounded values
            are distributed most like the values (least Kullback-Leibler divergence).

    Raises:
        ValueError: for another method.
    """
    if method not in METHODS:
        raise ValueError(f'ranges={method!r}: allowed are {", ".join(METHODS)}')
    low, high = float(x.min()), float(x.max())
    if method == 'percentile':
        values = np.sort(x.flatten().numpy())
        outside = int(len(values) * (1 - PERCENTILE / 100))
        low, high = float(values[outside]), float(values[-1 - outside])
    if method == 'entropy' and x.any():
        # What ReLU set to 0 lies on every grid; counted, it would ask for a step as narrow as its bin.
        counts, edges = np.histogram(x[x != 0].numpy(), BINS, (min(low, 0.0), max(high, 1e-9)))
        grids = [grid_between(low * clip, high * clip) for clip in ENTROPY_CLIPS]
        return grids[int(np.argmin([divergence(counts, (edges[:-1] + edges[1:]) / 2, grid) for grid in grids]))]
    if method != 'mse':
        return grid_between(low, high)
    importance = (importance / importance.sum()).reshape(1, -1, *[1] * (x.dim() - 2))
    grids = [grid_between(low * clip, high * clip) for clip in CLIPS]
    errors = [float(((grid.apply(x) - x) ** 2 * importance).sum()) for grid in grids]
    return grids[int(np.argmin(errors))]


def divergence(counts: np.ndarray, centers: np.ndarray, grid: Grid) -> float:
    """Kullback-Leibler divergence of a histogram, clipped to ``grid``, from the same with one height for each step.

    Clipping counts what it cuts off to the outermost bins, where the steps do not expect it: that is its price, as
    coarse steps are that of a wide range (Migacz, "8-bit inference with TensorRT", GTC 2017).
    """
    lowest, highest = -grid.zero_point * grid.scale, (255 - grid.zero_point) * grid.scale
    inside = (centers >= lowest) & (centers <= highest)
    if not inside.any():
        return float('inf')
    kept = counts[inside].astype(np.float64)
    clipped = kept.copy()
    clipped[0] += counts[centers < lowest].sum()
    clipped[-1] += counts[centers > highest].sum()
    steps = np.round(centers[inside] / grid.scale).astype(int) + grid.zero_point
    filled = (clipped > 0).astype(np.float64)
    height = np.bincount(steps, kept, 256) / np.bincount(steps, filled, 256).clip(1)
    expected = np.where(filled, height[steps], 0).clip(1e-9)
    p, q = clipped / clipped.sum(), expected / expected.sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())
