"""What a schedule does to the parameters: weight decay by group, EMA decay."""

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm, _InstanceNorm
from torch import nn

from ..registry import HOOKS

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)


def named_groups(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    """One optimizer group for each weight decay, by the kinds of parameters that have it.

    Kinds are ``norm``, ``weight`` and ``bias``, joined where they share a decay
    (``bias_weight``); a name that occurs twice gets a number.
    """
    norms = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    kinds, first = {}, {}
    for group in groups:
        decay = group.get('initial_weight_decay', group['weight_decay'])
        found = {'norm' if id(p) in norms else 'bias' if p.dim() == 1 else 'weight' for p in group['params']}
        kinds.setdefault(decay, set()).update(found)
        first.setdefault(decay, group)
    named = {}
    for decay, group in first.items():
        name = '_'.join(sorted(kinds[decay]))
        named[name if name not in named else f'{name}{len(named)}'] = group
    return named


def ema_decay(hook: EMAHook, epoch: int, epoch_length: int) -> float:
    """The share of the old average that ``hook`` keeps at the first step of ``epoch``; 0 before it begins.

    Tried out on the averaging function itself, so it holds for any kind of average.
    """
    step = epoch * epoch_length
    if epoch + 1 < hook.begin_epoch or step + 1 < hook.begin_iter:
        return 0.0
    average = torch.ones(1, dtype=torch.float64)
    hook.ema_model.avg_func(average, torch.zeros(1, dtype=torch.float64), step)
    return average.item()


@HOOKS.register_module()
class WeightDecayLogHook(Hook):
    """Log ``weight_decay/NAME`` for each group, named by :func:`named_groups`."""

    def before_train(self, runner) -> None:
        self.groups = named_groups(runner.model, runner.optim_wrapper.param_groups)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        for name, group in self.groups.items():
            runner.message_hub.update_scalar(f'train/weight_decay/{name}', group['weight_decay'])
