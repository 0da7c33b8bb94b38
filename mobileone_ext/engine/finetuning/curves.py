"""Loss, learning rate and accuracy of a run over its epochs, as its checkpoint remembers them."""

from statistics import mean
from typing import NamedTuple

from ...checkpoints.training import history

PARTS = 4  # of an epoch, of each of which the curve of the loss has the mean


class Curve(NamedTuple):
    """``values`` at ``epochs`` (which may lie between two)."""

    epochs: list[float]
    values: list[float]


def read_curves(checkpoint: dict, monitor: str) -> dict[str, Curve]:
    """``loss``, ``lr`` and ``monitor`` of a run by epochs that validates after each; nothing of one by iterations.

    Args:
        monitor: the metric after each epoch, e.g. ``'accuracy/top1'``.
    """
    steps = checkpoint['meta']['run'].get('steps_per_epoch')
    if steps is None:
        return {}
    span = max(1, steps // PARTS)
    curves = {}
    for name in ('loss', 'lr'):
        values = history(checkpoint, f'train/{name}')
        parts = [values[start : start + span] for start in range(0, len(values), span)]
        ends = [min((number + 1) * span, len(values)) / steps for number in range(len(parts))]
        curves[name] = Curve(ends, [mean(part) for part in parts])
    measured = history(checkpoint, f'val/{monitor}')
    curves[monitor] = Curve([float(epoch + 1) for epoch in range(len(measured))], measured)
    return {name: curve for name, curve in curves.items() if curve.values}
