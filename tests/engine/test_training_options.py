"""Options of tools/train.py, seen in what the run does."""

import json

import pytest
import torch
from conftest import ROOT, TINY, data_options, only_line
from mmengine.hooks import EMAHook

from mobileone_ext import cli
from mobileone_ext.engine import train as training


@pytest.fixture
def train(run_tool, digits, tmp_path, monkeypatch):
    """Runs tools/train.py for one epoch of 64 images; returns its Runner."""
    runners, original = [], training.train
    monkeypatch.setattr(training, 'train', lambda config, **options: runners.append(original(config, **options)))

    def run(*options, config=()):
        work_dir = tmp_path / str(len(runners))
        short = ['train_cfg.max_epochs=1', 'train_dataloader.dataset.indices=64', 'param_scheduler=[]']
        options = ['--no-validate', '--seed', 0, '--work-dir', work_dir, *options]
        code, text = run_tool('train', TINY, *options, '--cfg-options', *data_options(digits), *short, *config)
        assert code == 0, text
        return runners[-1]

    return run


def test_accumulation_steps_once_in_n_batches(digits):
    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)))
    config.auto_scale_lr = dict(base_batch_size=256)
    training.use_accumulation(config, 4)
    assert config.optim_wrapper.accumulative_counts == 4
    assert config.custom_hooks[0].interval == 4
    assert config.auto_scale_lr.base_batch_size == 64


class OwnAverage(EMAHook):
    """A moving average of one's own."""


@pytest.mark.parametrize('kind', ['EMAHook', 'mmengine.EMAHook', 'mmpretrain.EMAHook', EMAHook, OwnAverage])
@pytest.mark.parametrize('place', ['custom_hooks', 'default_hooks'])
def test_every_moving_average_follows_accumulation(kind, place):
    config = cli.load_config(str(ROOT / TINY))
    config.custom_hooks = [dict(type='mobileone_ext.CompileHook')]
    hook = dict(type=kind, interval=3)
    config.merge_from_dict({place: [hook] if place == 'custom_hooks' else dict(average=hook)})
    training.use_accumulation(config, 4)
    (actual,) = (h for h in [*config.custom_hooks, *config.default_hooks.values()] if h['type'] == kind)
    assert actual['interval'] == 12


def test_two_batches_accumulated_are_one_step(train):
    runner = train('--accumulate', 2)
    assert runner.iter == 2
    assert runner.optim_wrapper._accumulative_counts == 2
    assert next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.interval == 2


@pytest.mark.parametrize('by_epoch', [True, False])
def test_progress_is_written(train, tmp_path, by_epoch):
    loop = ['train_cfg.by_epoch=False', 'train_cfg.max_iters=2', 'train_cfg.max_epochs=None']
    loader = 'train_dataloader.sampler.type=InfiniteSampler'
    train('--progress', tmp_path / 'p.json', config=[] if by_epoch else [*loop, loader])
    actual = json.loads((tmp_path / 'p.json').read_text())
    assert (actual['epoch'], actual['epochs']) == ((1, 1) if by_epoch else (None, None))
    assert (actual['iteration'], actual['iterations']) == (2, 2)
    assert 0 < actual['loss'] < 100 and 0 < actual['seconds_per_iteration'] < 60


@pytest.mark.parametrize('options, expected', [((), True), (('--no-channels-last',), False)])
def test_memory_format(train, options, expected):
    stem = train(*options).model.backbone.stage0.branch_conv_list[0].conv.weight
    assert stem.is_contiguous(memory_format=torch.channels_last) == expected


def test_deterministic(train):
    try:
        train('--deterministic')
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


@pytest.mark.slow
def test_compiled_training_learns_the_same(train):
    one_step = 'train_dataloader.dataset.indices=32'
    start = train(config=[one_step, 'optim_wrapper.optimizer.lr=0'])
    plain, compiled = train(config=[one_step]), train('--compile', config=[one_step])
    assert plain.iter == 1
    assert compiled.model.backbone._compiled_call_impl is not None
    start, plain, compiled = (
        torch.cat([parameter.detach().flatten() for parameter in runner.model.parameters()])
        for runner in (start, plain, compiled)
    )
    # Rounding alone moves 0.2 % of the step here, a term left out far more. Later steps would amplify it.
    assert (compiled - plain).norm() < 0.05 * (plain - start).norm()


@pytest.mark.parametrize(
    'lines, message',
    [
        (
            "optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=0.001))",
            'optim_wrapper.optimizer.weight_decay is missing: paramwise_cfg.',
        ),
        ('train_dataloader = None', 'has no train set: train_dataloader missing'),
        # This one asserts, before the first step, that the network is a DenseCL.
        ("custom_hooks = [dict(type='DenseCLHook')]", 'DenseCLHook: does not start: AssertionError: '),
    ],
)
def test_what_mmengine_would_assert_is_a_line(lines, message, run_tool, digits, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{ROOT / TINY}'\n{lines}\n")
    options = [
        option for option in data_options(digits) if 'train_dataloader = None' not in lines or 'train' not in option
    ]
    code, text = run_tool('train', config, '--work-dir', tmp_path / 'run', '--cfg-options', *options)
    assert code == 1 and message in only_line(text), text
