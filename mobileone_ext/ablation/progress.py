"""What a training checkpoint remembers of its run: how long the steps took, and what each validation found."""

from itertools import accumulate
from pathlib import Path

from mmengine.config import Config

from ..checkpoints.training import read_training_checkpoint


def training_minutes(checkpoint: str | Path) -> float | None:
    """Wall-clock minutes of all training steps, also of those before a resume; with loading, without validations.

    None where the run had no ``IterTimerHook``.
    """
    seconds = _history(read_training_checkpoint(checkpoint), 'train/time')
    return sum(seconds) / 60 if seconds else None


def validations(checkpoint: str | Path, config: Config, metric: str = 'accuracy/top1') -> list[tuple[float, float]]:
    """(minutes of training, ``metric``) of each validation of the run that ``config`` describes."""
    saved = read_training_checkpoint(checkpoint)
    interval = config.train_cfg.get('val_interval', 1) * saved['meta']['run'].get('steps_per_epoch', 1)
    minutes = list(accumulate(seconds / 60 for seconds in _history(saved, 'train/time')))
    found = _history(saved, f'val/{metric}')
    return [(minutes[min(index * interval, len(minutes)) - 1], value) for index, value in enumerate(found, 1)]


def _history(checkpoint: dict, name: str) -> list[float]:
    found = checkpoint['message_hub']['log_scalars'].get(name)
    return found['history_buffer'].tolist() if found else []
