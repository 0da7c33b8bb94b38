"""What a run would save now, which a checkpoint that it goes on from is held against."""

import copy

import torch
from mmengine.optim import BaseOptimWrapper, OptimWrapper

from .checkpointing import to_plain, without_functions
from .run import averages, unwrap


def expected_checkpoint(runner) -> dict:
    """The parts of a checkpoint that ``runner`` would write at its start, its optimizer after a step."""
    expected = dict(state_dict=unwrap(runner.model).state_dict(), optimizer=after_a_step(runner.optim_wrapper))
    if averages(runner):
        expected['ema_state_dict'] = averages(runner)[-1].state_dict()
    schedulers = runner.param_schedulers
    if isinstance(schedulers, dict):
        schedulers = {key: [s.state_dict() for s in value] for key, value in schedulers.items()}
    elif schedulers is not None:
        schedulers = [s.state_dict() for s in schedulers]
    if schedulers is not None:
        expected['param_schedulers'] = to_plain(without_functions(schedulers))
    return expected


def after_a_step(optim_wrapper: BaseOptimWrapper) -> dict:
    """What ``optim_wrapper`` would save after a step with gradients of zeros; as it is where a copy cannot step."""
    state = optim_wrapper.state_dict()
    if not isinstance(optim_wrapper, OptimWrapper):
        return state
    try:
        optimizer = copy.deepcopy(optim_wrapper.optimizer)
        for parameter in (parameter for group in optimizer.param_groups for parameter in group['params']):
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    except Exception:  # it wants a closure, processes, or no zeros
        return state
    return {**state, **to_plain(optimizer.state_dict())}


def changed_step(before: dict | None, now: dict, epoch: int) -> str | None:
    """What another number of images a step changes in a run that goes on at ``epoch``; None if it is the same."""
    if not before or before == now or not {'batch_size', 'world_size', 'steps_per_epoch'} <= set(before) & set(now):
        return None
    images = [f'{run["world_size"]} x {run["batch_size"]}' for run in (before, now)]
    steps = [run['steps_per_epoch'] for run in (before, now)]
    return (
        f'resumed with {images[1]} images a step instead of {images[0]} (processes x batch size): an epoch has '
        f'{steps[1]} steps instead of {steps[0]}. The learning rate stays as it was saved; its schedule and the '
        f'moving average go on counting steps, so what was left of the schedule takes {steps[0] / steps[1]:.3g} '
        'times as many epochs, and the result is not the one of an undisturbed run'
    )
