"""What hooks remember goes through a checkpoint, whatever kind of plain data it is."""

from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.hooks import Hook, IterTimerHook
from torch import nn

from mobileone_ext.recipe.memory import Memory, pack, same, unpack
from mobileone_ext.recipe.progress import ProgressHook

VALUES = [
    None, True, 3, -1.5, float('inf'), 'text', [1, [2]], (1, 'a'), {'a': 1, 2: [3]}, {(0, 1): 'tuple'},
    torch.arange(3), torch.tensor(2.5), torch.tensor([float('nan')]), np.arange(6).reshape(2, 3), np.zeros(0),
    {1, 2}, deque([1, 2], maxlen=2), Counter('aab'), OrderedDict(b=1, a=2), defaultdict(list, a=[1]),
    {'array': {'set': 1}}, [deque([torch.ones(2)], maxlen=3)],
]  # fmt: skip


def saved(value, tmp_path):
    torch.save(pack(value), tmp_path / 'value.pth')
    return unpack(torch.load(tmp_path / 'value.pth', weights_only=True))


@pytest.mark.parametrize('value', VALUES, ids=repr)
def test_plain_data_comes_back(value, tmp_path):
    actual = saved(value, tmp_path)
    assert type(actual) is type(value) and same(pack(actual), pack(value))
    assert getattr(actual, 'maxlen', None) == getattr(value, 'maxlen', None)
    assert getattr(actual, 'default_factory', None) == getattr(value, 'default_factory', None)


def test_numbers_of_numpy_come_back_as_numbers(tmp_path):
    assert saved([np.float64(0.5), np.int64(3), np.bool_(True)], tmp_path) == [0.5, 3, True]


@pytest.mark.parametrize(
    'value',
    [object(), nn.Linear(1, 1), nn.Parameter(torch.ones(1)), lambda: 0, [print]],
    ids=['object', 'module', 'parameter', 'lambda', 'function'],
)
def test_what_is_no_plain_data_is_not_packed(value):
    with pytest.raises(TypeError, match='no plain data'):
        pack(value)


def test_values_that_differ():
    for one in VALUES:
        assert sum(same(pack(one), pack(other)) for other in VALUES) == 1, one
    assert not same(pack(torch.ones(1)), pack(torch.ones(1, dtype=torch.float64)))
    assert not same(torch.zeros(2), torch.zeros(1, 2)) and not same(0.0, 0)


class Counting(Hook):
    def __init__(self, patience=3):
        self.patience, self.count, self.seen = patience, 0, []

    def go_on(self, steps=1):
        for _ in range(steps):
            self.count += 1
            self.seen.append(torch.tensor(self.count))
            self.late = {'since': self.count}


class Own(Hook):
    """Says itself what is kept: all but what it has of the process."""

    def __init__(self):
        self.kept, self.opened = 0, 0

    def state_dict(self):
        return dict(kept=self.kept)

    def load_state_dict(self, state):
        self.kept = state['kept']


def begun():
    hooks = [Counting(), Counting(5), Own()]
    return Memory(hooks, nn.Linear(2, 2)), hooks


def test_hooks_go_on_with_what_training_has_changed(tmp_path):
    memory, hooks = begun()
    checkpoint = {}
    memory.put_into(checkpoint)
    assert checkpoint == {}
    hooks[0].go_on(2), hooks[1].go_on(3)
    hooks[2].kept = hooks[2].opened = 7
    memory.model.weight.requires_grad_(False)
    memory.model.bias.grad = torch.tensor([1.0, 2.0])
    memory.put_into(checkpoint)
    torch.save(checkpoint, tmp_path / 'a.pth')
    states = torch.load(tmp_path / 'a.pth', weights_only=True)['hooks']
    assert [set(state) for state in states] == [{'Counting', 'Counting 2', 'Own', 'trained parameters', 'gradients'}]
    assert set(states[0]['Counting']) == {'count', 'seen', 'late'}

    memory, hooks = begun()
    hooks[0].patience = 9  # of another config
    said = memory.give_back(states, edited=True)
    assert said[0] == 'Counting (count, seen, late)'
    assert [hook.count for hook in hooks[:2]] == [2, 3] and hooks[0].late == {'since': 2}
    assert hooks[0].seen == [1, 2] and hooks[0].patience == 9 and hooks[1].patience == 5
    assert hooks[2].kept == 7 and hooks[2].opened == 0
    assert not memory.model.weight.requires_grad and memory.model.bias.requires_grad
    assert memory.model.bias.grad.tolist() == [1, 2] and memory.model.weight.grad is None
    hooks[0].go_on()
    assert memory.changed()['Counting']['count'] == 3


def test_hooks_that_a_run_does_not_have_are_passed_over():
    memory, _ = begun()
    assert memory.give_back([{'Another': {'count': 3}}], edited=True) == []


@pytest.mark.parametrize(
    'values, message',
    [
        (dict(count='many'), "hooks.Counting.count is 'many', and begins as 0"),
        (dict(go_on=3), 'hooks.Counting.go_on is 3'),
        (dict(seen={'code': 1}), 'code'),
    ],
)
def test_what_no_hook_has_left(values, message):
    memory, _ = begun()
    with pytest.raises((ValueError, KeyError), match=message):
        memory.give_back([{'Counting': values}], edited=True)


def test_what_becomes_of_every_hook_is_told():
    import mmpretrain.engine  # noqa: F401
    from mmengine.registry import HOOKS
    from mmpretrain.registry import HOOKS as THEIRS

    from mobileone_ext.registry import HOOKS as OURS

    OURS.import_from_location()
    page = (ROOT / 'docs' / 'resuming.md').read_text(encoding='utf-8')
    registered = {
        name
        for hooks in (HOOKS, THEIRS, OURS)
        for name, kind in hooks.module_dict.items()
        if kind.__module__.split('.')[0] in ('mmengine', 'mmpretrain', 'mobileone_ext')
    }
    assert len(registered) > 30
    assert not [name for name in registered if f'`{name}`' not in page]


def test_what_is_of_the_process_is_not_remembered(tmp_path):
    hooks = [ProgressHook(tmp_path / 'progress.json'), IterTimerHook()]
    memory = Memory(hooks, nn.Linear(1, 1))
    hooks[0]._written, hooks[1].time_sec_tot = 1e9, 1e9
    assert memory.changed() == {}
