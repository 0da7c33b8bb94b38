"""Processor time of training, step by step: what other work on the machine does not change much."""

import time

from mmengine.hooks import Hook

from mobileone_ext.registry import HOOKS

SCALAR = 'train/cpu_time'


@HOOKS.register_module()
class ProcessorTimeHook(Hook):
    """Logs the seconds of processor time of each step, ``train/cpu_time``, with loading and without validation.

    Loading counts where the training process does it: ``num_workers=0``.
    """

    priority = 'LOWEST'

    def before_train_epoch(self, runner) -> None:
        self._last = time.process_time()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        now = time.process_time()
        runner.message_hub.update_scalar(SCALAR, now - self._last)
        self._last = now
