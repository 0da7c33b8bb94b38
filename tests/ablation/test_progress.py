"""What the console shows of a run, and what a checkpoint remembers of its time."""

import json
import sys

import pytest
import torch

from mobileone_ext.ablation import progress
from mobileone_ext.ablation.progress import Display, describe

RUN = dict(epoch=2, epochs=8, iteration=20, iterations=100, loss=1.23456, seconds_per_iteration=3.0)
# 80 iterations of 3 s are left, and three runs of (100 + 200 + 300) / 3 s.
LINE = 'epoch 2 of 8, loss 1.235; time left: run 0:04:00, study 0:14:00'


@pytest.mark.parametrize(
    'changed, finished, waiting, line',
    [
        ({}, [100.0, 200.0], 3, LINE),
        ({}, [], 0, 'epoch 2 of 8, loss 1.235; time left: run 0:04:00, study 0:04:00'),
        ({}, [], 2, 'epoch 2 of 8, loss 1.235; time left: run 0:04:00, study 0:14:00'),
        (dict(loss=None), [], 0, 'epoch 2 of 8, loss not finite; time left: run 0:04:00, study 0:04:00'),
        (
            dict(epoch=None, epochs=None),
            [],
            0,
            'iteration 20 of 100, loss 1.235; time left: run 0:04:00, study 0:04:00',
        ),
        (
            dict(epoch=8, iteration=100),
            [],
            1,
            'epoch 8 of 8, loss 1.235; time left: run 0:00:00 and measuring, study 0:05:00',
        ),
    ],
)
def test_time_left(changed, finished, waiting, line):
    assert describe({**RUN, **changed}, finished, waiting) == line


def test_a_log_gets_a_line_for_each_tenth_of_a_run(tmp_path, capsys):
    file = tmp_path / 'progress.json'
    file.write_text(json.dumps(dict(RUN, iteration=100)))  # a killed run's
    with Display(file, [100.0, 200.0], 3) as display:
        display()
        for iteration in (9, 20, 21, 25, 29, 30, 31):
            file.write_text(json.dumps(dict(RUN, iteration=iteration)))
            display()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'    {LINE}' and len(lines) == 2


def test_a_long_tenth_gets_more_lines(tmp_path, capsys, monkeypatch):
    file, now = tmp_path / 'progress.json', [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    with Display(file) as display:
        file.write_text(json.dumps(dict(RUN, iteration=1)))
        for now[0] in (0.0, 599.0, 601.0, 900.0, 1202.0):
            display()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_terminal_has_one_line_that_changes_and_goes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')  # a terminal to rich
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '100')
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    file = tmp_path / 'progress.json'
    with Display(file, [100.0, 200.0], 3) as display:
        file.write_text(json.dumps(RUN))
        display()
    logged, shown = capsys.readouterr()
    assert not logged
    assert LINE in shown and shown.count('\n') == 1 and shown.endswith('\x1b[1A\x1b[2K')


def history(*values):
    return dict(history_buffer=torch.tensor(values, dtype=torch.float64), counts=torch.ones(len(values)), max_length=10)


@pytest.fixture
def remembering(monkeypatch):
    def read(**scalars):
        saved = dict(message_hub=dict(log_scalars=scalars))
        monkeypatch.setattr(progress, 'read_training_checkpoint', lambda path: saved)

    return read


def test_minutes_are_those_of_all_steps(remembering):
    remembering(**{'train/time': history(30.0, 60.0, 90.0)})
    assert progress.training_minutes('epoch_1.pth') == 3.0
    remembering()
    assert progress.training_minutes('epoch_1.pth') is None
