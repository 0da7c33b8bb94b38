"""How far the runs of a study are: shown while it waits for one, and how long a finished one took."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.status import Status
from rich.text import Text

from ..checkpoints.training import history, read_training_checkpoint
from ..text import make_console

_SECONDS_BETWEEN_LINES = 600


class Display:
    """Shows the run that a study waits for: on a terminal a line that is kept up to date, in a log one now and then.

    Within ``with``; call it as often as you like.

    Args:
        file: that :class:`~mobileone_ext.recipe.progress.ProgressHook` writes.
        finished: seconds that each finished run trained.
        waiting: number of runs that come after this one.
    """

    def __init__(self, file: Path, finished: Sequence[float] = (), waiting: int = 0):
        self.file, self.finished, self.waiting = file, finished, waiting
        console = make_console(stderr=True)
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._is_logged = not (self._is_live and sys.stdout.isatty())
        self._status = Status(Text('it starts'), console=console, spinner='line')
        self._tenth, self._printed = 0, time.monotonic()

    def __enter__(self) -> 'Display':
        self.file.unlink(missing_ok=True)  # a killed run's
        if self._is_live:
            self._status.start()
        return self

    def __exit__(self, *_) -> None:
        self._status.stop()

    def __call__(self) -> None:
        """Show what the run has written since."""
        try:
            progress = json.loads(self.file.read_text(encoding='utf-8'))
        except FileNotFoundError:
            return
        line, now = describe(progress, self.finished, self.waiting), time.monotonic()
        tenth = 10 * progress['iteration'] // progress['iterations']
        if self._is_live:
            self._status.update(Text(line))
        if self._is_logged and (tenth > self._tenth or now - self._printed > _SECONDS_BETWEEN_LINES):
            self._tenth, self._printed = tenth, now
            print(f'    {line}', flush=True)


def describe(progress: dict, finished: Sequence[float], waiting: int) -> str:
    """Where a run is, and how long it and its study will take; arguments as of :class:`Display`."""
    unit = 'epoch' if progress['epoch'] else 'iteration'
    whole = progress['seconds_per_iteration'] * progress['iterations']
    left = whole * (1 - progress['iteration'] / progress['iterations'])
    study = left + waiting * statistics.mean([*finished, whole])
    loss = 'not finite' if progress['loss'] is None else f'{progress["loss"]:.4g}'
    run_left, study_left = (timedelta(seconds=round(seconds)) for seconds in (left, study))
    then = '' if left else ' and measuring'
    return (
        f'{unit} {progress[unit]} of {progress[f"{unit}s"]}, loss {loss}; '
        f'time left: run {run_left}{then}, study {study_left}'
    )


def training_minutes(checkpoint: str | Path) -> float | None:
    """Wall-clock minutes of all training steps, also of those before a resume; with loading, without validations.

    None where the run had no ``IterTimerHook``.
    """
    seconds = history(read_training_checkpoint(checkpoint), 'train/time')
    return sum(seconds) / 60 if seconds else None
