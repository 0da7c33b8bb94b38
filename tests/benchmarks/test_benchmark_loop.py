"""The benchmark of the training loop: what is timed, in turns, and a small real run."""

import subprocess
import sys

import pytest
from benchmarks import loop
from conftest import TINY, data_options, only_line
from torch import nn


class Model(nn.Module):
    """Writes down what is asked of it."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(nn.Linear(1, 1).weight.data), []

    def train_step(self, batch, wrapper):
        self.calls.append(f'step {batch["inputs"][0]}')

    def data_preprocessor(self, batch, training):
        self.calls.append(f'prepare {batch["inputs"][0]}')


def test_steps_alone_and_with_fetching_take_turns():
    model = Model()
    times = loop.measure(model, [dict(inputs=[number] * 2) for number in range(4)], 2)
    assert model.calls == ['step 0', 'step 0', 'prepare 1', 'step 1', 'step 1', 'prepare 2', 'step 2']
    assert times['batch'] == 2 and times.keys() == {
        'alone', 'fetching', 'preprocessor', 'workers', 'waited', 'batch',
    }  # fmt: skip


def test_time_of_children_is_counted():
    program = 'import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()'
    before = loop.workers_seconds()
    with subprocess.Popen([sys.executable, '-c', program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert loop.workers_seconds() - before >= 0.15
        child.communicate(b'\n')


def test_a_run_prints_its_table(run_tool, digits):
    code, printed = run_tool('benchmark', 'loop', TINY, '--steps', 2, '--cfg-options', *data_options(digits))
    assert code == 0 and '| step alone | ' in printed and '0 workers, 2 steps' in printed


@pytest.mark.parametrize('steps, message', [(0, "'0': a whole number from 1 on"), (10**6, 'two more are needed')])
def test_more_steps_than_batches_are_refused(run_tool, digits, steps, message):
    code, printed = run_tool('benchmark', 'loop', TINY, '--steps', steps, '--cfg-options', *data_options(digits))
    assert code == 1 and message in only_line(printed)
