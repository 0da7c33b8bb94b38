"""A schedule at another length of the run, and what it does to the parameters: weight decay by group, EMA decay."""

import copy
import re
from collections.abc import Collection
from fractions import Fraction

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm, _InstanceNorm
from torch import nn

from ..registry import HOOKS
from ..text import type_name

# Arguments of schedulers that are places in the run, and those that must be whole numbers of steps.
_SPANS = ('begin', 'end', 'T_max', 'total_iters')
_STEPS = ('step_size', 'milestones', 'periods', 'total_steps')
_KNOWN = {*_SPANS, *_STEPS, 'by_epoch', 'convert_to_iter_based', 'last_step'}
_INF = int(1e9)  # mmengine's "to the end"
# Arguments of hooks that are an epoch or iteration of the run.
_BEGINS = ('begin_epoch', 'begin_iter', 'start_iters', 'warmup_epochs', 'epoch_queue_starts')

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
        own = {'norm' if id(p) in norms else 'bias' if p.dim() == 1 else 'weight' for p in group['params']}
        kinds.setdefault(decay, set()).update(own)
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


def for_length(config: Config, length: int, keep: Collection[str] = ()) -> Config:
    """A copy of ``config`` that trains for ``length`` epochs, or iterations where it has those, and its schedule too.

    Schedulers, hooks that begin at an epoch and validation keep their share of the run.

    Args:
        keep: which of ``'param_scheduler'`` and ``'custom_hooks'`` to leave as they are.

    Raises:
        ValueError: naming the keys that are not known to scale.
    """
    config = copy.deepcopy(config)
    loop = config.train_cfg
    name = 'max_epochs' if loop.get('max_epochs') else 'max_iters'
    share = Fraction(length, loop[name])
    if 'param_scheduler' not in keep and config.get('param_scheduler'):
        schedulers = config.param_scheduler
        many = isinstance(schedulers, (list, tuple))
        scaled = [scaled_scheduler(s, share) for s in (schedulers if many else [schedulers])]
        config.param_scheduler = scaled if many else scaled[0]
    if 'custom_hooks' not in keep:
        hooks = config.get('custom_hooks') or []
        config.custom_hooks = [scaled_hook(hook, share, length, f'custom_hooks.{i}') for i, hook in enumerate(hooks)]
    loop[name] = length
    if loop.get('val_interval'):
        loop.val_interval = min(loop.val_interval, length)
    if loop.get('val_begin'):
        loop.val_begin = min(max(1, _whole(loop.val_begin, share)), length)
    if loop.get('dynamic_intervals'):
        loop.dynamic_intervals = [(_whole(begin, share), interval) for begin, interval in loop.dynamic_intervals]
    return config


def scaled_scheduler(scheduler: dict, share: Fraction) -> dict:
    """A scheduler's config for a run that is ``share`` times as long.

    One that goes by epochs goes by iterations where its ends fall within an epoch, or where
    it is squeezed: a warm-up of five steps would be none in a fifth of them.

    Raises:
        ValueError: for an argument that is not known to scale.
    """
    scheduler = copy.deepcopy(scheduler)
    kind = type_name(scheduler)
    by_epoch = scheduler.get('by_epoch', True)
    for key in scheduler:
        if key not in _KNOWN and re.search('epoch|iter|step|period|milestone', key):
            raise ValueError(f'param_scheduler: {kind}.{key} is not known to scale with the run; set param_scheduler')
    in_steps = [key for key in _STEPS if scheduler.get(key) is not None]
    for key in in_steps:
        value = scheduler[key]
        many = isinstance(value, (list, tuple))
        steps = [max(1, _whole(one, share)) for one in (value if many else [value])]
        if key == 'milestones' and len(set(steps)) < len(steps):
            raise ValueError(
                f'param_scheduler: {kind}.milestones={list(value)} fall together in a run {float(share):.3g} times as '
                'long; set param_scheduler'
            )
        scheduler[key] = steps if many else steps[0]
    spans = {key: scheduler[key] for key in _SPANS if scheduler.get(key) not in (None, float('inf'), _INF)}
    if kind.startswith('Exponential'):
        scheduler['gamma'] = scheduler['gamma'] ** float(1 / share)
    elif kind.startswith('CosineAnnealing') and _spans_itself(spans):
        spans.pop('T_max')
        scheduler.pop('T_max')  # it is the whole span by default, also where that is cut to whole iterations
    fractional = any((value * share).denominator > 1 for value in map(Fraction, spans.values()))
    exact = by_epoch and not in_steps and not kind.startswith(('Exponential', 'ReduceOnPlateau'))
    for key, value in spans.items():
        scaled = Fraction(value) * share
        whole = not exact or scaled.denominator == 1
        smallest = 0 if key == 'begin' or value == 0 else 1
        scheduler[key] = max(smallest, round(scaled)) if whole else float(scaled)
    if exact and spans and (fractional or share < 1):
        scheduler['convert_to_iter_based'] = True
    return scheduler


def scaled_hook(hook: dict, share: Fraction, length: int, place: str) -> dict:
    """A hook's config for a run that is ``share`` times as long and has ``length`` epochs.

    Raises:
        ValueError: for an argument with an epoch or iteration that is not known to scale, named by ``place``.
    """
    hook = copy.deepcopy(hook)
    kind = type_name(hook)
    if kind == 'CurriculumHook':
        stages = [
            stage
            if isinstance(stage.get('epoch'), float)
            else dict(stage, epoch=min(_whole(stage['epoch'], share), length - 1))
            for stage in hook['stages']
        ]
        hook['stages'] = [s for s, after in zip(stages, [*stages[1:], {}]) if s['epoch'] != after.get('epoch')]
    elif kind == 'FreezeNormHook':
        if isinstance(hook['epoch'], int):
            hook['epoch'] = min(_whole(hook['epoch'], share), length - 1)
    elif kind == 'SwitchRecipeHook':  # counts from 1
        hook['schedule'] = [
            dict(step, action_epoch=min(1 + _whole(step['action_epoch'] - 1, share), length))
            for step in hook['schedule']
        ]
    else:
        for key, value in hook.items():
            if isinstance(value, bool) or not isinstance(value, int) or not re.search('epoch|iter', key):
                continue
            if key not in _BEGINS:
                raise ValueError(f'{place}.{key}: {kind} is not known to scale with the run; set custom_hooks')
            hook[key] = _whole(value, share)
    return hook


def without_short_warmups(schedulers: list[dict], epoch_length: int) -> list[dict]:
    """``schedulers`` of a run of ``epoch_length`` steps an epoch, without those of fewer steps than they need.

    A linear warm-up of a single step would never leave its start factor, and mmengine refuses an empty span.
    """
    kept = []
    for scheduler in schedulers:
        kind = type_name(scheduler)
        by_step = scheduler.get('convert_to_iter_based') or not scheduler.get('by_epoch', True)
        unit = epoch_length if scheduler.get('convert_to_iter_based') else 1
        steps = int(scheduler.get('end', _INF) * unit) - int(scheduler.get('begin', 0) * unit)
        if not by_step or steps >= (2 if kind.startswith('Linear') else 1):
            kept.append(scheduler)
    return kept


def misfits(config: Config) -> list[str]:
    """Where the schedule does not fit the run, a phrase each: cut off before its end, or over long before the run's."""
    loop = config.get('train_cfg') or {}
    length = loop.get('max_epochs')
    schedulers = config.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, (list, tuple)) else [schedulers]
    ends: dict[str, int] = {}
    for scheduler in schedulers:
        if not length or not scheduler.get('by_epoch', True):
            continue
        end = scheduler.get('end') or _INF
        span = scheduler.get('T_max') or 0
        end = min(end, scheduler.get('begin', 0) + span) if span else end
        what = scheduler.get('param_name', 'momentum' if 'Momentum' in str(scheduler['type']) else 'lr')
        ends[what] = max(ends.get(what, 0), end)
    phrases = []
    for what, end in ends.items():
        if end != _INF and end > length:
            phrases.append(f'the schedule of {what} is for {end:g} epochs, the run has {length}: it is cut off')
        elif end < length:
            phrases.append(f'the schedule of {what} ends at epoch {end:g}, the run has {length}: {what} stays there')
    return phrases


def _whole(value: int, share: Fraction) -> int:
    return round(value * share)


def _spans_itself(spans: dict) -> bool:
    """Whether ``T_max`` is all of ``begin`` to ``end``."""
    return 'end' in spans and spans.get('T_max') == spans['end'] - spans.get('begin', 0)


@HOOKS.register_module()
class WeightDecayLogHook(Hook):
    """Log ``weight_decay/NAME`` for each group, named by :func:`named_groups`."""

    def before_train(self, runner) -> None:
        self.groups = named_groups(runner.model, runner.optim_wrapper.param_groups)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        for name, group in self.groups.items():
            runner.message_hub.update_scalar(f'train/weight_decay/{name}', group['weight_decay'])
