"""Killed (SIGKILL) at any moment and resumed, a run ends with the weights and best files of an undisturbed one."""

import pytest
import torch
from killing import train
from test_training import assert_equal_values

MOMENTS = [
    'in the write',
    'between write and removal',
    'in the removal',
    'between save and validation',
    'validated, before it is written again',
    'in the moving average',
    "at a stage's change",
    'in the optimizer step',
    "at the loader's start",
    'at the end of training',
]
MORE = [
    'in the first write of all',
    'written, not yet in place',
    'after the removal',
    'in the validation',
    'validated and written again',
    'saved for the last time, not validated',
]
# With a best file three of the moments are its own.
BEST = ['while best is written', 'between best and the rest', 'before the old best is removed']
WITH_BEST = [*BEST, *(moment for moment in MOMENTS if moment not in ('in the removal', 'at the end of training'))][:10]
ALL = [
    *((moment, keep, None) for keep in (1, 3) for moment in MOMENTS),
    *((moment, keep, 'auto') for keep in (1, 3) for moment in WITH_BEST),
    *((moment, 1, 'auto') for moment in (*MORE, 'in the removal', 'at the end of training')),
    *((moment, 1, None) for moment in ('in the first write of all', 'after the removal')),
]


# What a killed rank leaves: one that writes, one that does not, in a step and while the others validate.
OF_TWO = [
    ('in the optimizer step', 1),
    ('in the optimizer step', 0),
    ('in the moving average', 1),
    ('in the validation', 1),
    ('in the write', 0),
    ('between save and validation', 0),
    ('validated, before it is written again', 0),
    ('while best is written', 0),
    ("at a stage's change", 1),
    ("at the loader's start", 1),
]


@pytest.fixture(scope='module')
def undisturbed(digits, tmp_path_factory):
    """The work dir of a whole run with these options, made once."""
    made = {}

    def run(keep, best, processes=1, hooks=(), by_epoch=True, accumulate=1):
        options = keep, best, processes, str(hooks), by_epoch, accumulate
        if options not in made:
            made[options] = tmp_path_factory.mktemp('undisturbed')
            saving = dict(max_keep_ckpts=keep, save_best=best)
            assert not any(train(made[options], digits, saving, None, processes, 0, hooks, by_epoch, accumulate))
        return made[options]

    return run


def assert_same_files(folder, whole):
    """The same checkpoints, with the same values bit for bit; their files."""
    expected, actual = ({path.name: path for path in folder.glob('*.pth')} for folder in (whole, folder))
    assert actual.keys() == expected.keys()
    for name, path in expected.items():
        one, other = (torch.load(file, weights_only=True) for file in (path, actual[name]))
        for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'hooks'):
            assert (part in one) == (part in other)
            if part in one:
                assert_equal_values(other[part], one[part], f'{name}: {part}')
        info, other_info = (file['message_hub']['runtime_info'] for file in (one, other))
        assert info.get('best_score') == other_info.get('best_score')
        assert one['meta'].get('stopped') == other['meta'].get('stopped')
    return actual


@pytest.mark.slow
@pytest.mark.parametrize('moment, keep, best', ALL)
def test_a_run_killed_and_resumed(digits, tmp_path, undisturbed, moment, keep, best):
    options = dict(max_keep_ckpts=keep, save_best=best)
    assert train(tmp_path, digits, options, moment) == [-9], 'the moment did not come'
    assert train(tmp_path, digits, options) == [0]
    actual = assert_same_files(tmp_path, undisturbed(keep, best))
    assert sum(name.startswith('best') for name in actual) == (best is not None)
    assert sum(name.startswith('epoch') for name in actual) == keep


@pytest.mark.slow
@pytest.mark.parametrize(
    'moment, killed, by_epoch',
    [
        *((*case, True) for case in OF_TWO),
        *((at, 1, False) for at in ('in the moving average', 'in the validation')),
    ],
)
def test_two_processes_killed_and_resumed(digits, tmp_path, undisturbed, moment, killed, by_epoch):
    options = dict(max_keep_ckpts=1, save_best='auto')
    codes = train(tmp_path, digits, options, moment, 2, killed, by_epoch=by_epoch)
    assert codes[killed] == -9, 'the moment did not come'
    assert train(tmp_path, digits, options, processes=2, by_epoch=by_epoch) == [0, 0]
    assert_same_files(tmp_path, undisturbed(1, 'auto', 2, by_epoch=by_epoch))


EARLY = dict(type='EarlyStoppingHook', monitor='accuracy/top1', min_delta=101.0, patience=2)  # after epoch 3 of 4
OF_HOOKS = [
    ('between save and validation', 1, [dict(type='Remembers', priority='LOWEST'), EARLY]),
    ('in the optimizer step', 2, [dict(type='Remembers'), EARLY]),
    ('validated, before it is written again', 1, [dict(type='Remembers', priority='LOWEST')]),
    ('in the validation', 1, [dict(type='Remembers', priority='LOWEST'), EARLY]),
    ('validated and written again', 1, [EARLY, dict(type='Remembers', priority='VERY_LOW')]),
    ("at the loader's start", 1, [dict(type='Remembers', priority='HIGHEST'), EARLY]),
    ('in the write', 2, [dict(type='Remembers', priority='LOWEST')]),
]


@pytest.mark.slow
@pytest.mark.parametrize('moment, processes, hooks', OF_HOOKS)
def test_hooks_go_on_where_they_were(digits, tmp_path, undisturbed, moment, processes, hooks):
    options = dict(max_keep_ckpts=1, save_best='auto')
    whole = undisturbed(1, 'auto', processes, hooks)
    assert train(tmp_path, digits, options, moment, processes, hooks=hooks)[0] == -9, 'the moment did not come'
    for _ in range(2):  # one that stopped early is over
        assert not any(train(tmp_path, digits, options, processes=processes, hooks=hooks))
        actual = assert_same_files(tmp_path, whole)
    (newest,) = (path for name, path in actual.items() if name.startswith('epoch'))
    newest = torch.load(newest, weights_only=True)
    assert newest['meta']['epoch'] == (3 if EARLY in hooks else 4)
    assert len(newest['hooks']) == (2 if processes == 2 else 1)  # each process saw other images


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_gradients_that_no_step_has_used_are_not_lost(digits, tmp_path, undisturbed, processes):
    """A step in three batches where an epoch has two."""
    options = dict(max_keep_ckpts=1, save_best='auto')
    whole = undisturbed(1, 'auto', processes, accumulate=3)
    newest = torch.load(whole / 'epoch_4.pth', weights_only=True)
    assert newest['meta']['iter'] == 8 and 'hooks' not in newest  # the last batch is stepped with
    killed = train(tmp_path, digits, options, 'in the moving average', processes, accumulate=3)
    assert killed[0] == -9, 'the moment did not come'
    (newest,) = tmp_path.glob('epoch_*.pth')
    assert 'gradients' in torch.load(newest, weights_only=True)['hooks'][0]
    assert not any(train(tmp_path, digits, options, processes=processes, accumulate=3))
    assert_same_files(tmp_path, whole)
