"""A run whose loss or weights are no longer numbers stops; what it saved before stays."""

import itertools
import os
from collections.abc import Iterator

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from torch import Tensor

from ..registry import HOOKS
from .run import averages


def first_bad(losses: Tensor) -> int | None:
    """The place of the first loss (N,) that is NaN or infinite."""
    bad = ~torch.isfinite(losses)
    return int(bad.int().argmax()) if bad.any() else None


def all_finite(tensors: Iterator[Tensor]) -> bool:
    """Whether every floating-point tensor is finite."""
    sums = [tensor.detach().sum(dtype=torch.float64) for tensor in tensors if tensor.is_floating_point()]
    return bool(torch.isfinite(torch.stack(sums)).all()) if sums else True


def check_finite(runner) -> None:
    """Raise ValueError if a weight or buffer of the model or of its moving average is NaN or infinite."""
    if not all_finite(_tensors(runner)):
        raise ValueError(_message('weights or batch norm statistics are NaN or infinite', runner, runner.iter))


def _tensors(runner) -> Iterator[Tensor]:
    modules = [runner.model, *averages(runner)]
    return itertools.chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)


def _message(what: str, runner, iteration: int) -> str:
    last = runner.message_hub.runtime_info.get('last_ckpt')
    kept = f'{last} is the last finite checkpoint' if last and os.path.exists(last) else 'nothing was saved yet'
    epoch = runner.message_hub.runtime_info['epoch'] + 1
    lr = runner.optim_wrapper.get_lr()['lr'][0]
    return (
        f'training has diverged: {what} at epoch {epoch}, iteration {iteration} (lr {lr:.3g}); {kept}. '
        'Start again with a lower lr or a longer warm-up'
    )


@HOOKS.register_module()
class StopOnNanHook(Hook):
    """Stop, on all ranks, when the loss is NaN or infinite.

    The loss stays on its device between two looks. A step that the loss scaler of mixed
    precision skips leaves the weights as they were, and is no reason to stop.

    Args:
        interval: steps between two looks; there is another one at an epoch's end.
    """

    priority = 'NORMAL'  # before anything is saved

    def __init__(self, interval: int = 10):
        if interval < 1:
            raise ValueError(f'StopOnNanHook: interval={interval}, must be 1 or more')
        self.interval = interval
        self._losses = {}

    def before_train(self, runner) -> None:
        self._losses = {}

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        values = [value for value in (outputs or {}).values() if isinstance(value, Tensor) and value.numel() == 1]
        if outputs and isinstance(outputs.get('loss'), Tensor):
            values = [outputs['loss']]
        if values:
            self._losses[runner.iter + 1] = sum(value.detach().float().reshape(()) for value in values)
        if (runner.iter + 1) % self.interval == 0:
            self._look(runner)

    def after_train_epoch(self, runner) -> None:
        self._look(runner)

    def _look(self, runner) -> None:
        iterations, losses = list(self._losses), list(self._losses.values())
        self._losses = {}
        if not losses:
            return
        losses = torch.stack(losses)
        finite = torch.isfinite(losses).int()
        all_reduce(finite, op='min')
        worst = torch.where(finite.bool(), 0.0, float('nan'))
        place = first_bad(worst)
        if place is None or (_may_skip_steps(runner) and finite.any() and self._weights_are_finite(runner)):
            return
        shown = float(losses[place])
        what = f'loss is {shown}' if shown != shown or abs(shown) == float('inf') else 'loss of another rank is NaN'
        raise ValueError(_message(what, runner, iterations[place]))

    @staticmethod
    def _weights_are_finite(runner) -> bool:
        flag = torch.tensor(int(all_finite(_tensors(runner))), device=next(runner.model.parameters()).device)
        all_reduce(flag, op='min')
        return bool(flag)


def _may_skip_steps(runner) -> bool:
    scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()
