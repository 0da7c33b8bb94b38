"""Training checkpoints that are plain, written whole, kept until a newer one is whole.

mmengine pickles its message hub, which torch >= 2.6 rightly refuses to read back.
Here a checkpoint holds nothing but containers, numbers, strings and tensors.
"""

import inspect
import math
import os
import re
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size, is_main_process, master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch.utils._pytree import tree_map_only

from ..checkpoints.training import digests
from ..files import write_atomically
from ..registry import HOOKS
from ..text import one_line
from .finite import check_finite
from .sync_buffers import SyncStatisticsHook

_HISTORY = 'history_buffer'
_VALIDATED = 'last_validated_iter'  # in the message hub; the log shows what begins with val


@HOOKS.register_module()
class PlainCheckpointHook(Hook):
    """Turn a checkpoint into plain data before it is saved, and back after it is read.

    Beside mmengine's, ``meta`` gets ``run`` (what a step and an epoch were) and ``digest`` (of each part).
    """

    priority = 'LOWEST'  # sees what the other hooks have put in

    def __init__(self):
        self.in_small = False  # of every tensor the first element alone, see check_saving

    def before_train(self, runner) -> None:
        check_saving(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['meta']['run'] = described_run(runner)
        if 'param_schedulers' in checkpoint:
            checkpoint['param_schedulers'] = without_functions(checkpoint['param_schedulers'])
        for key in ('meta', 'message_hub', 'param_schedulers'):
            if key in checkpoint:
                checkpoint[key] = to_plain(checkpoint[key])
        if self.in_small:
            checkpoint.update(tree_map_only(torch.Tensor, _first_element, dict(checkpoint)))
        checkpoint['meta']['digest'] = digests(checkpoint)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if isinstance(checkpoint.get('meta'), dict):
            checkpoint['meta'].pop('config', None)  # mmengine's Runner.resume would run it
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        for name, value in scalars.items():
            scalars[name] = restore_history(value)


def described_run(runner) -> dict:
    """Images a step (those of one process, and how many processes) and, where there are epochs, steps an epoch."""
    loader = runner.train_dataloader
    described = dict(batch_size=loader.batch_size, world_size=get_world_size(), steps_per_epoch=len(loader))
    if loader.batch_size is None:  # a batch sampler of its own
        del described['batch_size']
    if not isinstance(runner.train_loop, EpochBasedTrainLoop):
        del described['steps_per_epoch']
    return described


@HOOKS.register_module(name='CheckpointHook')
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``; a kill at any moment leaves a whole checkpoint and the right best one.

    - An older checkpoint goes when the newer one is whole. mmengine removes it first.
    - A checkpoint is written again when it has been validated, and knows the best score since. A run that is
      resumed from one that has not been validated makes up for it. The best file of before goes last.
    - Nothing but finite weights is written. A metric that is NaN is no best.
    - Files are removed in the run's own folder alone, also when the run was resumed from another one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # What the parent does not know itself goes to this, at the first save.
        inspect.signature(Runner.save_checkpoint).bind(None, '', '', **self.args)
        if self.backend_args is None and self.file_client_args is None:
            register_backend('atomic', AtomicBackend, force=True)
            self.backend_args = dict(backend='atomic')

    def before_train(self, runner) -> None:
        hub, step = runner.message_hub, self._step(runner)
        for key, path in list(hub.runtime_info.items()):
            if key.startswith('best_ckpt'):
                hub.update_info(key, os.path.join(runner.work_dir, os.path.basename(path)))
        self.keep_ckpt_ids, self._newest = [], None
        kept = list(hub.runtime_info.get('keep_ckpt_ids', ()))
        super().before_train(runner)  # removes what the newest one has outdated
        if step and os.path.isfile(self._path(step)):
            self._newest = step
            self.keep_ckpt_ids = [old for old in kept if os.path.isfile(self._path(old))]
            self._remove_outdated_best(runner)
        else:
            self.keep_ckpt_ids = []
        if step and _validation_is_due(runner) and hub.runtime_info.get(_VALIDATED) != runner.iter:
            runner.logger.info(f'{self.filename_tmpl.format(step)} has not been validated; doing so first')
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics) -> None:
        if not isinstance(runner._train_loop, BaseLoop):
            return  # Runner.val() measures
        unsound = [key for key, value in metrics.items() if isinstance(value, float) and math.isnan(value)]
        if unsound:
            runner.logger.warning(f'validation: {", ".join(unsound)} is NaN, which is never the best')
        runner.message_hub.update_info(_VALIDATED, runner.iter)
        super().after_val_epoch(runner, metrics)

    def after_val(self, runner) -> None:
        step = self._step(runner) if isinstance(runner._train_loop, BaseLoop) else None
        if step is not None and self._newest == step:
            self._save_checkpoint_with_step(runner, step, dict(epoch=runner.epoch, iter=runner.iter))

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        hub, step = runner.message_hub, self._step(runner)
        for name, rule in zip(self.key_indicators, self.rules):
            if not isinstance(metrics.get(name), (int, float)):
                raise ValueError(f'save_best: validation gives no number {name!r}, it gives {", ".join(metrics)}')
            score_key, path_key = (f'{key}{self._suffix(name)}' for key in ('best_score', 'best_ckpt'))
            best = hub.runtime_info.get(score_key, self.init_value_map[rule])
            if not self.is_better_than[name](metrics[name], best):
                continue
            check_finite(runner)
            path = os.path.join(self.out_dir, self._best_name(name).format(step))
            hub.update_info(score_key, metrics[name])
            hub.update_info(path_key, path)
            runner.save_checkpoint(
                self.out_dir,
                filename=os.path.basename(path),
                save_optimizer=False,
                save_param_scheduler=False,
                meta=dict(epoch=runner.epoch, iter=runner.iter),
                by_epoch=False,
                backend_args=self.backend_args,
            )
            runner.logger.info(f'the best so far, {name} {metrics[name]:0.4f}, is saved to {os.path.basename(path)}')
            if len(self.key_indicators) == 1:  # after_train publishes these
                self.best_ckpt_path = path
            else:
                self.best_ckpt_path_dict[name] = path

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        for hook in runner.hooks:
            if isinstance(hook, SyncStatisticsHook):
                hook.within_epoch(runner)
        check_finite(runner)
        memory = getattr(runner, 'memory', None)  # mmengine's own Runner keeps none
        if memory is not None:
            memory.gather()
        kept = [old for old in self.keep_ckpt_ids if old != step and os.path.isfile(self._path(old))]
        self.keep_ckpt_ids, limit = [*kept, step], self.max_keep_ckpts
        if limit > 0:
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.max_keep_ckpts = -1  # else the parent removes first
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = limit
        self._newest = step
        if limit > 0:
            outdated, self.keep_ckpt_ids = self.keep_ckpt_ids[:-limit], self.keep_ckpt_ids[-limit:]
            self._remove(self._path(old) for old in outdated)
        self._remove_outdated_best(runner)
        if memory is not None:
            memory.was_saved(partial(self._save_checkpoint_with_step, runner, step, meta))

    def _remove_outdated_best(self, runner) -> None:
        """Remove the best files, up to this step, that the newest checkpoint knows a better one than."""
        newest = self._newest
        for name in self.key_indicators if self.save_best else ():
            best = runner.message_hub.runtime_info.get(f'best_ckpt{self._suffix(name)}')
            if name == 'auto' or not best or not os.path.isfile(best):
                continue
            form = re.compile(re.escape(self._best_name(name)).replace(r'\{\}', r'(\d+)'))
            numbered = {file: form.fullmatch(file) for file in os.listdir(self.out_dir)}
            self._remove(
                os.path.join(self.out_dir, file)
                for file, match in numbered.items()
                if match and int(match[1]) <= newest and file != os.path.basename(best)
            )

    @master_only
    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            Path(path).unlink(missing_ok=True)

    def _step(self, runner) -> int:
        return runner.epoch if self.by_epoch else runner.iter

    def _path(self, step: int) -> str:
        return os.path.join(self.out_dir, self.filename_tmpl.format(step))

    def _best_name(self, metric: str) -> str:
        return f'best_{metric}_{self.filename_tmpl}'.replace('/', '_')

    def _suffix(self, metric: str) -> str:
        return '' if len(self.key_indicators) == 1 else f'_{metric}'


def _validation_is_due(runner) -> bool:
    """Whether the loop would validate where the run stands now."""
    if runner._val_loop is None:
        return False
    loop = runner.train_loop
    loop._decide_current_val_interval()
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    count, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    return count >= loop.val_begin and (count % loop.val_interval == 0 or count == end)


def to_plain(value: Any) -> Any:
    """``value`` as containers, numbers, strings and tensors alone.

    Raises:
        ValueError: for an object that has no such form.
    """
    if isinstance(value, np.generic):  # first: np.float64 is a float
        return value.item()
    if value is None or isinstance(value, torch.Tensor):
        return value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # an enumeration's members are such, but pickled as code
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {to_plain(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)([to_plain(item) for item in value])
    if isinstance(value, HistoryBuffer):
        history, counts = value.data
        return {_HISTORY: to_plain(history), 'counts': to_plain(counts), 'max_length': value.max_length}
    raise ValueError(f'a checkpoint cannot hold a {type(value).__name__}: {value!r}')


def without_functions(states: Any) -> Any:
    """The states of schedulers without functions: the schedulers have those from their config again."""
    if isinstance(states, dict):
        return {key: without_functions(value) for key, value in states.items() if not callable(value)}
    return [without_functions(value) for value in states] if isinstance(states, list) else states


def _first_element(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().flatten()[:1].cpu().clone()


def check_saving(runner) -> dict:
    """Save a checkpoint of ``runner`` aside, in small, and read it back; what was read.

    Raises:
        ValueError: for a state that a checkpoint cannot hold, before an hour's work and not at its first save.
    """
    plain = next((hook for hook in runner.hooks if isinstance(hook, PlainCheckpointHook)), None)
    if plain is None or not is_main_process():
        return {}
    plain.in_small = True
    try:
        with tempfile.TemporaryDirectory() as folder:
            runner.save_checkpoint(folder, 'small.pth', save_optimizer=True)
            return torch.load(Path(folder, 'small.pth'), weights_only=True)
    except Exception as error:
        reason = one_line(error)
        raise ValueError(f'checkpoints of this run could not be saved and read back: {reason[:300]}') from error
    finally:
        plain.in_small = False


def restore_history(value: Any) -> Any:
    """The ``HistoryBuffer`` that :func:`to_plain` took apart; anything else as it is."""
    if not isinstance(value, dict) or _HISTORY not in value:
        return value
    return HistoryBuffer(value[_HISTORY].numpy(), value['counts'].numpy(), value['max_length'])


class AtomicBackend(LocalBackend):
    """Local files that are either whole or not there: written aside, then renamed."""

    def put(self, obj: bytes, filepath) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(filepath)), exist_ok=True)
        with write_atomically(filepath) as part, open(part, 'wb') as file:
            file.write(obj)
