"""A run that turns to NaN stops, with its last finite checkpoint; a step that mixed precision skips does not."""

import math
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, data_options, only_line
from torch import nn

from mobileone_ext.checkpoints.training import read_training_checkpoint
from mobileone_ext.recipe.finite import StopOnNanHook, all_finite, first_bad
from mobileone_ext.recipe.seeding import SeedEpochHook

pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of:UserWarning')


@pytest.fixture
def train(run_tool, digits, tmp_path):
    def run(*config, validate=False):
        options = ['--work-dir', tmp_path / 'run', '--seed', 0, *([] if validate else ['--no-validate'])]
        return run_tool('train', TINY, *options, '--cfg-options', *data_options(digits), *config)

    return run


def test_a_lr_that_is_too_high(train, tmp_path):
    code, text = train('optim_wrapper.optimizer.lr=1e6')
    message = only_line(text)
    assert code == 1
    assert 'training has diverged: loss is nan at epoch 1, iteration ' in message or 'loss is inf' in message, message
    assert re.search(r'\(lr \d[.\d]*e\+0[56]\)', message), message
    assert not list((tmp_path / 'run').glob('*.pth'))


def poison(monkeypatch, epoch, what):
    """Make something NaN in ``epoch`` (from 0): a weight at its start, or a statistic after its last step."""
    seed = SeedEpochHook.before_train_epoch

    def before_train_epoch(self, runner):
        seed(self, runner)
        if runner.epoch == epoch and what == 'weights':
            next(runner.model.parameters()).data.fill_(math.nan)

    def after_train_epoch(self, runner):
        if runner.epoch == epoch and what == 'statistics':
            next(m for m in runner.model.modules() if isinstance(m, nn.BatchNorm2d)).running_var.fill_(math.inf)

    monkeypatch.setattr(SeedEpochHook, 'before_train_epoch', before_train_epoch)
    monkeypatch.setattr(SeedEpochHook, 'after_train_epoch', after_train_epoch)


@pytest.mark.parametrize('what', ['weights', 'statistics'])
def test_the_last_finite_checkpoint_stays(train, tmp_path, monkeypatch, what):
    poison(monkeypatch, 2, what)
    code, text = train('default_hooks.checkpoint.max_keep_ckpts=1', validate=True)
    message = only_line(text)
    assert code == 1 and 'at epoch 3, iteration ' in message and 'epoch_2.pth is the last finite' in message, text
    assert [path.name for path in (tmp_path / 'run').glob('epoch*.pth')] == ['epoch_2.pth']
    for path in (tmp_path / 'run').glob('*.pth'):
        assert all_finite(torch.load(path, weights_only=True)['state_dict'].values())
    read_training_checkpoint(tmp_path / 'run' / 'epoch_2.pth')


def runner(scaler=None):
    model = nn.Linear(2, 2)
    wrapper = SimpleNamespace(get_lr=lambda: dict(lr=[0.1]), loss_scaler=scaler)
    hub = SimpleNamespace(runtime_info=dict(epoch=4))
    return SimpleNamespace(model=model, hooks=[], optim_wrapper=wrapper, message_hub=hub, iter=0)


def steps(run, losses, interval=4):
    hook = StopOnNanHook(interval)
    hook.before_train(run)
    for run.iter, loss in enumerate(losses):
        hook.after_train_iter(run, 0, outputs=dict(loss=torch.tensor(loss)))
    run.iter = len(losses)
    hook.after_train_epoch(run)


SCALER = SimpleNamespace(is_enabled=lambda: True)
NAN = math.nan


@pytest.mark.parametrize(
    'losses, place', [([1.0, 2.0], None), ([1, NAN, 3, NAN], 2), ([1.0, 1, 1, 1, math.inf], 5), ([NAN] * 4, 1)]
)
def test_the_first_bad_step_is_named(losses, place):
    if place is None:
        return steps(runner(), losses)
    with pytest.raises(ValueError, match=rf'at epoch 5, iteration {place} \(lr 0.1\); nothing was saved yet'):
        steps(runner(), losses)


def test_a_step_that_the_loss_scaler_skipped_is_no_reason():
    steps(runner(SCALER), [1.0, NAN, 1, 1, math.inf, 1, 1, 1])
    with pytest.raises(ValueError, match='iteration 5'):  # none of four steps was sound
        steps(runner(SCALER), [1.0, 1, 1, 1, NAN, NAN, NAN, NAN])
    broken = runner(SCALER)
    broken.model.weight.data[0, 0] = NAN
    with pytest.raises(ValueError, match='iteration 2'):
        steps(broken, [1.0, NAN, 1, 1])


def test_the_loss_is_not_read_between_two_looks():
    class Loss(torch.Tensor):
        def __bool__(self):
            raise AssertionError('read')

        item = __float__ = __bool__

    hook, run = StopOnNanHook(10), runner()
    hook.before_train(run)
    for run.iter in range(9):
        hook.after_train_iter(run, 0, outputs=dict(loss=torch.ones(()).as_subclass(Loss)))


def test_pure_parts():
    assert first_bad(torch.tensor([1.0, 2])) is None and first_bad(torch.tensor([1, NAN, math.inf])) == 1
    assert all_finite([torch.ones(2), torch.ones(2, dtype=torch.int64)])
    assert not all_finite([torch.ones(2), torch.tensor([1, NAN])])
    with pytest.raises(ValueError, match='interval=0'):
        StopOnNanHook(0)
