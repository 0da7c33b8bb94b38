"""The schedule follows the length of the run: literal learning rates per step, by hand from the formulas."""

from fractions import Fraction

import pytest
import torch
from conftest import ROOT
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mobileone_ext.config import load_config, override
from mobileone_ext.recipe.curriculum import read_stages
from mobileone_ext.recipe.schedule import for_length, misfits, scaled_scheduler, without_short_warmups

PAPER = str(ROOT / 'configs/mobileone_s0_8xb32.py')


def values(schedulers, epochs, epoch_length, name='lr', lr=0.1, weight_decay=1e-4):
    """``name`` at every step of a run that mmengine's own schedulers govern."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, weight_decay=weight_decay)
    wrapper, built = OptimWrapper(optimizer), []
    for config in without_short_warmups(schedulers, epoch_length):
        config = dict(config)
        cls = PARAM_SCHEDULERS.get(config.pop('type'))
        convert = config.pop('convert_to_iter_based', False)
        make = cls.build_iter_from_epoch if convert else cls
        built.append(make(optimizer, **config, **(dict(epoch_length=epoch_length) if convert else {})))
    wrapper.step()
    actual = []
    for _ in range(epochs):
        for _ in range(epoch_length):
            actual.append(optimizer.param_groups[0][name])
            for scheduler in built:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in built:
            if scheduler.by_epoch:
                scheduler.step()
    return actual


# The paper's schedule in 5 epochs of 45 steps: warm-up to step int(225 * 5 / 300) = 3, then
# 1e-6 + (0.1 - 1e-6) (1 + cos(pi (t - 3) / 222)) / 2; weight decay 1e-5 + 9e-5 (1 + cos(pi t / 225)) / 2.
LR = {0: 1e-4, 1: 0.05005, 2: 0.1, 3: 0.1, 58: 0.0856048, 114: 0.0500005, 169: 0.0148966, 224: 6.0064e-6}
DECAY = {0: 1e-4, 75: 7.75e-5, 150: 3.25e-5, 224: 1.00044e-5}


def test_the_papers_schedule_in_five_epochs():
    config = load_config(PAPER, {'train_cfg.max_epochs': 5})
    lr = values(config.param_scheduler[:2], 5, 45)
    decay = values(config.param_scheduler[2:], 5, 45, 'weight_decay')
    assert [lr[t] for t in LR] == pytest.approx(list(LR.values()), rel=2e-5)
    assert [decay[t] for t in DECAY] == pytest.approx(list(DECAY.values()), rel=1e-5)
    assert config.train_cfg == dict(by_epoch=True, max_epochs=5, val_interval=1)
    assert [stage.epoch for stage in read_stages(config.custom_hooks[1]['stages'], 5)] == [0, 1, 2]


def test_a_run_too_short_for_a_warmup_has_none():
    """4 steps an epoch: 20 * 5 / 300 is no step; mmengine would refuse it, or stay at a thousandth of the lr."""
    lr = values(load_config(PAPER, {'train_cfg.max_epochs': 5}).param_scheduler[:2], 5, 4)
    assert lr[:2] == [0.1, pytest.approx(0.0993845, rel=1e-5)] and lr[-1] == pytest.approx(6.1657e-4, rel=1e-3)
    assert len(without_short_warmups([dict(type='LinearLR', by_epoch=False, end=1)], 9)) == 0
    assert len(without_short_warmups([dict(type='LinearLR', by_epoch=False, end=2)], 9)) == 1


def test_twice_as_long_goes_by_epochs_as_before():
    config = load_config(PAPER, {'train_cfg.max_epochs': 600})
    warmup, cosine, decay = config.param_scheduler
    assert (warmup['begin'], warmup['end'], cosine['begin'], cosine['end'], decay['end']) == (0, 10, 10, 600, 600)
    assert 'convert_to_iter_based' not in cosine
    lr = values([cosine], 600, 1)
    assert lr[305] == pytest.approx(0.0500005, rel=1e-5) and lr[599] == pytest.approx(1.7088e-6, rel=1e-3)


SCALED = [  # a scheduler, the share, what it becomes
    (dict(type='MultiStepLR', milestones=[30, 60, 90]), (1, 10), dict(milestones=[3, 6, 9])),
    (dict(type='MultiStepLR', by_epoch=False, milestones=[300, 600]), (1, 7), dict(milestones=[43, 86])),
    (dict(type='StepLR', step_size=30, gamma=0.1), (1, 100), dict(step_size=1)),
    (dict(type='ExponentialLR', gamma=0.5), (1, 2), dict(gamma=0.25)),
    (dict(type='LinearLR', by_epoch=False, begin=0, end=2500), (1, 60), dict(begin=0, end=42)),
    (dict(type='PolyLR', begin=0, end=100, power=2), (1, 200), dict(begin=0, end=0.5, convert_to_iter_based=True)),
    (dict(type='CosineAnnealingLR', T_max=200), (1, 40), dict(T_max=5, convert_to_iter_based=True)),
    (dict(type='CosineAnnealingLR', T_max=7, begin=1, end=8), (3, 1), dict(begin=3, end=24)),
    (dict(type='CosineRestartLR', periods=[10, 20], restart_weights=[1, 1]), (1, 2), dict(periods=[5, 10])),
    (dict(type='OneCycleLR', total_steps=100, by_epoch=True, eta_max=1), (1, 3), dict(total_steps=33)),
]


@pytest.mark.parametrize('scheduler, share, expected', SCALED, ids=[str(i) for i in range(len(SCALED))])
def test_a_scheduler_scales(scheduler, share, expected):
    actual = scaled_scheduler(scheduler, Fraction(*share))
    assert actual == {**{k: v for k, v in scheduler.items() if k != 'T_max' or 'T_max' in expected}, **expected}


def test_iterations_scale_like_epochs():
    config = load_config(str(ROOT / 'configs/mobileone_tiny_digits.py'))
    config.train_cfg = dict(by_epoch=False, max_iters=1000, val_interval=500, dynamic_intervals=[(800, 100)])
    config.param_scheduler = [dict(type='LinearLR', by_epoch=False, begin=0, end=100)]
    config.custom_hooks = [dict(type='EMAHook', begin_iter=200)]
    short = override(config, {'train_cfg.max_iters': 100})
    assert short.train_cfg == dict(by_epoch=False, max_iters=100, val_interval=100, dynamic_intervals=[(80, 100)])
    assert short.param_scheduler[0]['end'] == 10 and short.custom_hooks[0]['begin_iter'] == 20


def test_hooks_begin_at_their_share_of_the_run():
    config = load_config(PAPER)
    config.custom_hooks = [
        dict(type='EMAHook', begin_epoch=100),
        dict(type='mobileone_ext.FreezeNormHook', epoch=290),
        dict(type='mobileone_ext.CurriculumHook', stages=[dict(epoch=e, size=e + 1) for e in (0, 37, 50)]),
        dict(type='SwitchRecipeHook', schedule=[dict(action_epoch=38), dict(action_epoch=113)]),
    ]
    ema, freeze, curriculum, switch = for_length(config, 6).custom_hooks
    assert ema['begin_epoch'] == 2 and freeze['epoch'] == 5
    assert [(stage['epoch'], stage['size']) for stage in curriculum['stages']] == [(0, 1), (1, 51)]
    assert [step['action_epoch'] for step in switch['schedule']] == [2, 3]


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('custom_hooks', [dict(type='SomeHook', close_epoch=15)], r'custom_hooks\.0\.close_epoch: SomeHook'),
        ('custom_hooks', [dict(type='SwitchRecipeHook')], 'schedule'),
        ('param_scheduler', [dict(type='MultiStepLR', milestones=[30, 60])], r'MultiStepLR\.milestones=\[30, 60\]'),
        ('param_scheduler', dict(type='Odd', warm_epochs=3), r'param_scheduler: Odd\.warm_epochs'),
    ],
)
def test_what_is_not_known_to_scale_is_named(key, value, message):
    config = load_config(PAPER)
    config[key] = value
    with pytest.raises((ValueError, KeyError), match=message):
        for_length(config, 3)
    assert for_length(config, 3, keep=[key]).train_cfg.max_epochs == 3


def test_a_schedule_that_is_set_as_well_stays_as_it_is_set():
    config = load_config(PAPER, {'train_cfg.max_epochs': 5, 'param_scheduler.1.end': 7})
    assert [s.get('end') for s in config.param_scheduler] == [5, 7, 300]


def test_a_schedule_that_does_not_fit_is_said():
    config = load_config(PAPER)
    assert misfits(config) == []
    config.train_cfg.max_epochs = 5
    assert misfits(config) == [
        'the schedule of lr is for 300 epochs, the run has 5: it is cut off',
        'the schedule of weight_decay is for 300 epochs, the run has 5: it is cut off',
    ]
    config.train_cfg.max_epochs = 330
    assert misfits(config)[0] == 'the schedule of lr ends at epoch 300, the run has 330: lr stays there'


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_every_config_of_ours_fits_at_any_length(path):
    config = load_config(str(path))
    assert misfits(config) == []
    for length in (1, 2, 3, 10, 50, 1000):
        assert misfits(for_length(config, length)) == []
