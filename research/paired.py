"""Predictions of two networks on the same photos: what changed on which, and intervals that count a photo once."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from torch import Tensor


def changes(expected: Tensor, actual: Tensor, labels: Tensor) -> str:
    """Predictions of ``actual`` unlike those of ``expected``: a photo's number, and ``-`` where only ``expected`` is
    right, ``+`` where only ``actual`` is, ``~`` where neither is. Outputs are (N, classes)."""
    before, after = expected.argmax(1), actual.argmax(1)
    signs = {(True, False): '-', (False, True): '+', (False, False): '~'}
    return ' '.join(
        f'{number}{signs[bool(before[number] == labels[number]), bool(after[number] == labels[number])]}'
        for number in (before != after).nonzero().flatten().tolist()
    )


def losses(row: dict) -> np.ndarray:
    """From a row's ``changes`` and ``num_images``: for each photo 1 where only the expected prediction is right, -1
    where only the actual one is, else 0."""
    values = np.zeros(int(row['num_images']))
    for change in row['changes'].split():
        values[int(change[:-1])] = {'-': 1, '+': -1, '~': 0}[change[-1]]
    return values


class Estimate(NamedTuple):
    """A mean over photos and half of its interval, in percent."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f'{self.mean:.2f} ({self.mean - self.half:.2f} to {self.mean + self.half:.2f})'


def estimate(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Of a value for each photo; the interval is normal."""
    width = NormalDist().inv_cdf((1 + confidence) / 2)
    return Estimate(100 * float(values.mean()), 100 * width * float(values.std(ddof=1)) / len(values) ** 0.5)
