"""The benchmark of training in mixed precision: turns, failures, the autotune table, and a dry run."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import blocks, turns
from benchmarks.blocks import Precision
from benchmarks.traffic import Geometry
from conftest import only_line

from mobileone_ext.moments import autotune, compiled, fold
from mobileone_ext.provenance import processor

BF16 = Precision('cpu', torch.bfloat16)
KINDS = {
    'depthwise': Geometry(48, 48, 3, 1, 48, 4, True, True, 8),
    'strided': Geometry(48, 48, 3, 2, 48, 1, True, False, 9),
    'pointwise': Geometry(48, 64, 1, 1, 1, 4, False, False, 8),
    'stem': Geometry(3, 48, 3, 2, 1, 1, True, False, 32),
}
every_kind = pytest.mark.parametrize('geometry', KINDS.values(), ids=KINDS)


class Fails:
    """A step that works until it is called for the ``at``-th time."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, 0

    def __call__(self):
        self.calls += 1
        if self.calls >= self.at:
            raise self.error


@pytest.mark.parametrize(
    ('error', 'note'),
    [
        (torch.OutOfMemoryError('CUDA out of memory. Tried to allocate\n20 GiB'), 'out of memory'),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 'out of memory'),
        (MemoryError(), 'out of memory'),
        (RuntimeError('graph\nbreak'), 'RuntimeError: graph break'),
    ],
)
@pytest.mark.parametrize('at', [0, 1, 2, 4])
def test_a_row_fails_and_the_others_go_on(error, note, at):
    order = []

    def broken():
        if at == 0:
            raise error
        return Fails(at, error)

    contestants = [turns.Contestant(make, 'cpu') for make in (lambda: lambda: order.append(1), broken, lambda: int)]
    turns.measure(contestants, steps=3)
    first, failed, last = (contestant.summary() for contestant in contestants)
    assert len(order) == 2 + 3 and first['steps'] == last['steps'] == 3 and not first['note']
    assert failed['note'] == note and failed['median_ms'] is None and failed['steps'] == 0


def test_turns():
    order = []
    makes = [lambda name=name: lambda: order.append(name) for name in 'ab']
    turns.measure([turns.Contestant(make, 'cpu') for make in makes], steps=2, repeats=2)
    assert ''.join(order) == 'aabb' + 'aabb' * 2


@every_kind
def test_moments_err_no_more_than_branches(geometry):
    assert 0 < blocks.excess(geometry, 4, BF16) < blocks.MOST_EXCESS


@every_kind
def test_wrong_moments_are_noticed(geometry, monkeypatch):
    right = fold.statistics

    def wrong(*args):
        mean, var = right(*args)
        return mean, 1.1 * var

    monkeypatch.setattr(fold, 'statistics', wrong)
    monkeypatch.setattr(compiled, 'take', lambda x, linears: False)  # the stem's images stay float32 under autocast
    assert not blocks.excess(geometry, 4, BF16) <= blocks.MOST_EXCESS


def measured(**change):
    rows = blocks.measure_blocks([KINDS['depthwise']], 4, BF16, {'eager': lambda block: block}, 1, lambda line: None)
    return [dict(row, **(change if row['impl'] == 'moments' else {})) for row in rows]


def test_blocks_are_measured_and_go_to_the_table():
    rows = measured(median_ms=0.5)
    assert [row['impl'] for row in rows] == ['branches', 'moments', 'fused']
    assert rows[0]['traffic_gb'] > rows[1]['traffic_gb'] > rows[2]['traffic_gb'] > 0
    (row,) = blocks.pays_rows(rows, 4, torch.bfloat16)
    assert row.kind == autotune.Kind(48, 48, 3, 1, 48, 4, True, 'bfloat16', False)
    assert row.patches == 4 * 64 and row.moments_ms == 0.5 and row.branches_ms == rows[0]['median_ms']


@pytest.mark.parametrize('change', [dict(excess=3.0), dict(excess=float('nan')), dict(note='out of memory')], ids=str)
def test_what_disagrees_or_fails_never_pays(change):
    assert blocks.pays_rows(measured(**change), 4, torch.bfloat16) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_one_line(run_tool, tmp_path):
    options = ['--device', 'cuda', '--amp', 'bf16', '--batch-size', '256']
    code, printed = run_tool('benchmark', 'train', *options, '--out', tmp_path / 'out')
    assert code and 'torch finds no GPU here' in only_line(printed) and not [*tmp_path.iterdir()]


def test_a_gpu_without_bfloat16(run_tool, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda *args: 'Turing')
    code, printed = run_tool('benchmark', 'train', '--device', 'cuda', '--amp', 'bf16', '--out', tmp_path / 'out')
    assert code and only_line(printed).endswith('Turing has no bfloat16; --amp fp16 is what it can do')


def test_a_dry_run_is_for_a_cpu(run_tool, tmp_path):
    code, printed = run_tool('benchmark', 'train', '--device', 'cuda', '--dry-run', '--out', tmp_path / 'out')
    assert code and 'leave out --device cuda' in only_line(printed)


# Every part of the run, with two small networks and one that finds no memory.
CHILD = """
import runpy, sys, torch
sys.path.insert(0, 'tools')
from benchmarks import gpu, networks, traffic
from benchmarks.classifier import CLASSES
from mobileone_ext.block import MobileOneBlock

def small(impl):
    block = MobileOneBlock(8, 8, 3, groups=8, num_conv_branches=2, train_impl=impl)
    stem = MobileOneBlock(3, 8, 3, 2, train_impl=impl)
    layers = stem, block, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, CLASSES)
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)

def none(arch):
    raise torch.OutOfMemoryError('CUDA out of memory')

networks.NETWORKS.update(moments=lambda arch: small('moments'), mmpretrain=lambda arch: small('branches'), timm=none)
gpu.blocks = lambda arch, size: [traffic.Geometry(8, 8, 3, 1, 8, 2, True, True, 4)]
sys.argv = ['benchmark.py', 'train', *sys.argv[1:]]
runpy.run_path('tools/benchmark.py', run_name='__main__')
"""


@pytest.mark.slow
def test_a_dry_run_takes_every_step(tmp_path):
    pytest.importorskip('triton')
    options = '--dry-run --amp bf16 --archs s0 --networks moments mmpretrain timm --batch-size 2 --size 8 --steps 1'
    environment = dict(os.environ, TRITON_INTERPRET='1', XDG_CACHE_HOME=str(tmp_path / 'cache'))
    command = [sys.executable, '-c', CHILD, *options.split(), '--threads', '1', '--out', str(tmp_path / 'out')]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert 'training statistics of bfloat16: by Triton kernels' in result.stdout + result.stderr
    out = tmp_path / 'out'
    names = ['blocks.csv', 'autotune.json', 'training.csv', 'training.md', 'training.png']
    assert sorted(path.name for path in out.iterdir()) == names
    rows = [*csv.DictReader((out / 'training.csv').read_text().splitlines())]
    assert [(row['network'], row['way']) for row in rows] == [
        (name, way) for way in ('eager', 'compiled') for name in ('moments', 'mmpretrain', 'timm')
    ]
    for row in rows:
        assert (row['note'] == 'out of memory') == (row['network'] == 'timm') == (not row['median_ms']), row
    text = (out / 'training.md').read_text()
    assert text.startswith('dry run') and '| s0 | timm | compiled | out of memory |' in text
    table = json.loads((out / 'autotune.json').read_text())
    assert {row['compiled'] for row in table['rows']} == {False, True}
    assert len(autotune.read(Path(out, 'autotune.json'), processor())) == 2
    assert not [*(tmp_path / 'cache').rglob('autotune*')]  # it decides nothing
