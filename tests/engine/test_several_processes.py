"""Several processes: gradients are the average of the ranks' own, whatever a hook has changed; so are statistics."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import ranks
import torch
from conftest import TINY, data_options
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmpretrain.structures import DataSample

from mobileone_ext import cli
from mobileone_ext.recipe.run import unwrap


@HOOKS.register_module()
class KeepStep(Hook):
    """Writes down what the step of an iteration begins with, and the gradients that the optimizer is given."""

    priority = 'LOWEST'

    def __init__(self, iteration=0):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter != self.iteration:
            return
        model, rank = unwrap(runner.model), torch.distributed.get_rank()
        labels = [sample.gt_label for sample in data_batch['data_samples']]
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        kept = dict(state=model.state_dict(), trained=trained, images=data_batch['inputs'], labels=labels)
        torch.save(kept, f'{runner.work_dir}/before{rank}.pth')
        step = runner.optim_wrapper.optimizer.step

        def keep_and_step(*args, **kwargs):
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            torch.save(gradients, f'{runner.work_dir}/gradients{rank}.pth')
            runner.optim_wrapper.optimizer.step = step
            step(*args, **kwargs)

        runner.optim_wrapper.optimizer.step = keep_and_step


@HOOKS.register_module()
class Change(Hook):
    """A hook of one's own that lays the network out anew, freezes a part of it, or trains it from epoch 1 on."""

    def __init__(self, before_train=None, before_run=None, before_train_epoch=None):
        self.before_train, self.before_run, self.before_train_epoch = (
            (lambda runner, change=change: change and getattr(self, change)(unwrap(runner.model), runner))
            for change in (before_train, before_run, before_train_epoch)
        )

    def lay_out(self, model, runner):
        model.to(memory_format=torch.channels_last)

    def freeze(self, model, runner):
        model.backbone.stage0.requires_grad_(False)

    def thaw(self, model, runner):
        model.backbone.stage0.requires_grad_(runner.epoch >= 1)


CASES = {
    'as it stands': ({}, []),
    'laid out': (dict(channels_last=None), [dict(type='Change', before_train='lay_out')]),
    'frozen': ({}, [dict(type='Change', before_run='freeze')]),
    'trained later': (
        {},
        [dict(type='Change', before_train='freeze', before_train_epoch='thaw'), dict(type='KeepStep', iteration=2)],
    ),
    'another network': ({}, []),
}
RESNET = dict(type='mmpretrain.ResNet_CIFAR', depth=18, base_channels=16, stem_channels=16, zero_init_residual=False)


def config_of(case, options):
    config = cli.load_config(TINY, options)
    default_hooks, custom_hooks = CASES[case]
    config.default_hooks.update(default_hooks)
    config.custom_hooks = custom_hooks if case == 'trained later' else [*custom_hooks, dict(type='KeepStep')]
    if case == 'another network':
        config.model.backbone, config.model.head.in_channels = RESNET, 128
    config.train_cfg.max_epochs, config.param_scheduler = 2, None
    config.train_dataloader.update(num_workers=0, persistent_workers=False, batch_size=16)
    config.train_dataloader.dataset.indices = 64  # two steps: what is never reduced shows in the second
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    return config


def train(case, options, work_dir):
    from mobileone_ext.engine import train as training

    config = config_of(case, options)
    config.work_dir, config.launcher, config.randomness.seed = work_dir, 'pytorch', 0
    training.train(config)


@pytest.mark.parametrize(
    'case', [pytest.param(case, marks=() if case == 'laid out' else [pytest.mark.slow]) for case in CASES]
)
def test_gradients_are_the_average(case, digits, tmp_path):
    options = dict(option.split('=') for option in data_options(digits)[:3])
    assert ranks.run(train, case, options, str(tmp_path)) == [0, 0]
    expected = {}
    for rank in (0, 1):
        before = torch.load(tmp_path / f'before{rank}.pth', weights_only=True)
        model = MODELS.build(config_of(case, options).model)
        model.load_state_dict(before['state'], assign=True)  # with their memory format: rounding moves ReLU's border
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in before['trained'])
        samples = [DataSample().set_gt_label(label) for label in before['labels']]
        data = model.train().data_preprocessor(dict(inputs=before['images'], data_samples=samples), True)
        model(**data, mode='loss')['loss'].backward()
        for name in before['trained']:
            expected[name] = expected.get(name, 0) + model.get_parameter(name).grad / 2
    assert ('backbone.stage0.branch_scale.norm.weight' in expected) == (case not in ('frozen', 'another network'))
    for rank in (0, 1):
        actual = torch.load(tmp_path / f'gradients{rank}.pth', weights_only=True)
        assert actual.keys() == expected.keys()
        off = {name: float((actual[name] - g).norm() / g.norm()) for name, g in expected.items()}
        off = {name: share for name, share in off.items() if not share < 1e-3}
        assert not off, f'rank {rank}: {len(off)} of {len(actual)} gradients are off: {off}'


def average(moment, work_dir):
    """What the hook leaves of statistics that are other ones on each process, within a loop by iterations."""
    from mmengine.hooks import EMAHook
    from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

    from mobileone_ext.recipe.sync_buffers import SyncStatisticsHook

    torch.distributed.init_process_group('gloo')
    rank, ema = torch.distributed.get_rank(), EMAHook()
    model, ema.ema_model = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    model.running_mean += rank
    ema.ema_model.running_mean += 3 * rank
    kind = EpochBasedTrainLoop if moment == 'after_train_epoch' else IterBasedTrainLoop
    runner = SimpleNamespace(model=model, hooks=[ema], _train_loop=kind.__new__(kind))
    getattr(SyncStatisticsHook(), moment)(runner)
    Path(work_dir, f'{rank}.txt').write_text(str([model.running_mean.tolist(), ema.ema_model.running_mean.tolist()]))


@pytest.mark.parametrize(
    'moment',
    ['after_train_epoch', *(pytest.param(at, marks=pytest.mark.slow) for at in ('before_val_epoch', 'within_epoch'))],
)
def test_statistics_are_the_average(moment, tmp_path):
    assert ranks.run(average, moment, str(tmp_path)) == [0, 0]
    for rank in (0, 1):
        assert Path(tmp_path, f'{rank}.txt').read_text() == '[[0.5, 0.5], [1.5, 1.5]]'
