"""Where a run is, for whoever waits for it."""

import math
import time
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..files import write_json

_SECONDS = 1.0  # between two writings


class ProgressHook(Hook):
    """Writes to a JSON file, once a second, what is done of a run.

    ``epoch`` and ``epochs`` (null for a run by iterations), ``iteration`` and ``iterations``, ``loss`` (null unless
    finite) and ``seconds_per_iteration`` since this process began, with loading and validation.

    Args:
        file: replaced as a whole each time.
    """

    priority = 'VERY_LOW'

    def __init__(self, file: str | Path):
        self.file = Path(file)

    def before_train(self, runner: Runner) -> None:
        self._first, self._began, self._written = runner.iter, time.monotonic(), -math.inf

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        now, done = time.monotonic(), runner.iter + 1
        if not is_main_process() or (now - self._written < _SECONDS and done < runner.max_iters):
            return
        self._written = now
        loss = torch.as_tensor((outputs or {}).get('loss', math.nan)).item()
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        progress = dict(
            epoch=runner.epoch + 1 if by_epoch else None,
            epochs=runner.max_epochs if by_epoch else None,
            iteration=done,
            iterations=runner.max_iters,
            loss=loss if math.isfinite(loss) else None,
            seconds_per_iteration=(now - self._began) / (done - self._first),
        )
        write_json(progress, self.file)
