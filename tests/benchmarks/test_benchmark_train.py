"""The training benchmark: turns, whole steps, tables and a small real run."""

import argparse
import csv

import pytest
import torch
from benchmarks import train
from matplotlib.axes import Axes

SETTING = train.Setting('s0', batch=2, size=32, threads=1)


def run(*arguments):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    train.run(parser.parse_args(arguments))


def test_networks_take_turns_and_the_first_round_is_not_counted(monkeypatch):
    order = []
    monkeypatch.setattr(train, 'make_step', lambda name, setting: lambda: order.append(name))
    times = train.measure(('auto', 'timm'), SETTING, steps=3)
    assert order == ['auto', 'timm'] * 4
    assert {name: len(values) for name, values in times.items()} == {'auto': 3, 'timm': 3}


@pytest.mark.parametrize('name', train.NETWORKS)
def test_a_step_is_whole(name, monkeypatch):
    """It reaches every parameter: each has a gradient and SGD's momentum of it."""
    optimizers = []

    class Spy(torch.optim.SGD):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            optimizers.append(self)

    monkeypatch.setattr(torch.optim, 'SGD', Spy)
    train.make_step(name, SETTING)()
    (optimizer,) = optimizers
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    assert all('momentum_buffer' in optimizer.state[parameter] for parameter in parameters)
    fused = 2_078_504
    assert sum(parameter.numel() for parameter in parameters) == (fused if name == 'fused' else 5_293_272)


def test_tables():
    row = dict(arch='s0', min_s=1.0, max_s=3.0, steps=7)
    rows = [
        dict(row, network='auto', median_s=1.2, peak_gb=1.5),
        dict(row, network='mmpretrain', median_s=4.0, peak_gb=5.0),
        dict(row, network='mmpretrain channels_last', median_s=3.0, peak_gb=5.0),
    ]
    assert '| s0 | auto | 1.20 (1.00 to 3.00) | 1.50 | 0.30 | 0.40 | 0.30 |' in train.as_markdown(rows)
    first, *_ = csv.DictReader(train.as_csv(rows).splitlines())
    assert (first['network'], first['median_s'], first['steps']) == ('auto', '1.200', '7')


def test_a_network_that_was_not_measured_has_no_bar(tmp_path, monkeypatch):
    bars, bar = [], Axes.bar

    def spy(axes, at, heights, *args, **kwargs):
        bars.append(dict(zip(at, heights)))
        return bar(axes, at, heights, *args, **kwargs)

    monkeypatch.setattr(Axes, 'bar', spy)
    rows = [
        dict(arch='s0', network='auto', median_s=1.0, peak_gb=2.0),
        dict(arch='s0', network='timm', median_s=3.0, peak_gb=4.0),
        dict(arch='s1', network='auto', median_s=5.0, peak_gb=6.0),
    ]
    train.draw(rows, 'title', tmp_path / 'bars.png')
    assert bars == [{0: 1, 1: 5}, {0.425: 3}, {0: 2, 1: 6}, {0.425: 4}]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--archs', 's9'], "argument --archs: invalid choice: 's9'"),
        (['--networks', 'resnet'], "argument --networks: invalid choice: 'resnet' (choose from 'branches'"),
        (['--steps', '0'], 'at least 1'),
    ],
)
def test_refusals(arguments, message, tmp_path, capsys):
    with pytest.raises((ValueError, SystemExit)) as caught:
        run(*arguments, '--out', str(tmp_path / 'out'))
    assert message in f'{caught.value}{capsys.readouterr().err}'
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_real_run_writes_table_and_picture(tmp_path, capsys):
    options = '--archs s0 --networks auto --batch 2 --size 32 --threads 1 --steps 1'
    run(*options.split(), '--out', str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {'training.csv', 'training.md', 'training.png'}
    (row,) = csv.DictReader((tmp_path / 'training.csv').read_text().splitlines())
    assert 0 < float(row['median_s']) < 100 and 0.1 < float(row['peak_gb']) < 10
    assert 'batch 2, 32 px, 1 thread\n' in capsys.readouterr().out
