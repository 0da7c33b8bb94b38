"""What the 256 steps of an activation span: uint8 with a zero point, one scale for the whole tensor."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

METHODS = ('minmax', 'percentile', 'mse')
PERCENTILE = 99.99
CLIPS = np.linspace(1.0, 0.4, 13)


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
            range with the least mean squared error.

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
    if method != 'mse':
        return grid_between(low, high)
    importance = (importance / importance.sum()).reshape(1, -1, *[1] * (x.dim() - 2))
    grids = [grid_between(low * clip, high * clip) for clip in CLIPS]
    errors = [float(((grid.apply(x) - x) ** 2 * importance).sum()) for grid in grids]
    return grids[int(np.argmin(errors))]
