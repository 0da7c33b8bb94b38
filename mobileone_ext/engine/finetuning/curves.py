"""Loss, learning rate and accuracy of a run over its epochs, read from the files that mmengine leaves."""

import json
from pathlib import Path
from typing import NamedTuple


class Curve(NamedTuple):
    """``values`` at ``epochs`` (which may lie between two)."""

    epochs: list[float]
    values: list[float]


def read_curves(work_dir: Path, monitor: str) -> dict[str, Curve]:
    """``loss``, ``lr`` and ``monitor`` of the run in ``work_dir``; where it was resumed, the later part counts.

    Args:
        monitor: the metric after each epoch, e.g. ``'accuracy/top1'``.
    """
    points: dict[str, dict[float, float]] = {'loss': {}, 'lr': {}, monitor: {}}
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        rows = [json.loads(line) for line in log.read_text(encoding='utf-8').splitlines() if line.strip()]
        steps = [row for row in rows if 'loss' in row]
        if not steps:
            continue
        length = _steps_per_epoch(steps)
        started = (steps[0]['step'] - 1) / length
        for curve in points.values():
            for epoch in [epoch for epoch in curve if epoch > started]:
                del curve[epoch]
        for row in rows:
            if 'loss' in row:
                points['loss'][row['step'] / length] = row['loss']
                points['lr'][row['step'] / length] = row['lr']
            elif monitor in row:
                points[monitor][float(row['step'])] = row[monitor]
    return {name: Curve(list(curve), list(curve.values())) for name, curve in points.items() if curve}


def _steps_per_epoch(rows: list[dict]) -> float:
    """Steps of an epoch: the last row of an epoch was logged at its end."""
    last = rows[-1]
    return last['step'] / last['epoch']
