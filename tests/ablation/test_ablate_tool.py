"""tools/ablate.py on a tiny base: tried out, killed half-way and run again, one variant broken."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY, only_line
from mmengine.config import Config

from mobileone_ext import cli
from mobileone_ext.config import override
from mobileone_ext.engine.dry_run import dry_run

STUDY = """
title = 'Two that run and one that does not'
variants = {
    'skip': {},
    'diverges': {'optim_wrapper.optimizer.lr': 1e30},
    'no skip': {'model.backbone.use_skip': False},
}
"""


@pytest.fixture
def arguments(digits, tmp_path):
    (tmp_path / 'study.py').write_text(STUDY)
    lines = [f"_base_ = '{ROOT / TINY}'"]
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        lines.append(f"{loader} = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='{digits}'))")
    (tmp_path / 'base.py').write_text('\n'.join(lines))
    return [tmp_path / 'study.py', '--base', tmp_path / 'base.py', '--seeds', 0, '--work-dir', tmp_path / 'work']


def test_dry_run_lists_and_writes_nothing(run_tool, arguments, tmp_path):
    code, text = run_tool('ablate', *arguments, '--dry-run')
    assert code == 0
    assert [line.split(':')[0] for line in text.splitlines()] == ['skip, seed 0', 'diverges, seed 0', 'no skip, seed 0']
    assert not (tmp_path / 'work').exists()


SLIPS = {  # overrides of the last of two variants, and what the one line says of it
    'a head of other channels': ({'model.head.in_channels': 31}, 'mat1 and mat2 shapes cannot be multiplied'),
    'another number of classes': ({'model.head.num_classes': 7}, 'has 10 class folders, the head has 7'),
    'no such photos': ({'train_dataloader.dataset.data_root': '/nowhere'}, '/nowhere: no such data'),
    'a hook': ({'custom_hooks.DenseCLHook': dict(type='DenseCLHook')}, 'DenseCLHook: does not start'),
    'a transform': (
        {'train_dataloader.dataset.pipeline.RandomResizedCrop.backend': 'none'},
        'backend: none is not supported for resize',
    ),
    'an optimizer': ({'optim_wrapper.optimizer.weight_decay': -1.0}, 'Invalid weight_decay value: -1.0'),
    'a scheduler': ({'param_scheduler': [dict(type='StepLR', step_size=0)]}, 'ZeroDivisionError'),
    'a metric': ({'test_evaluator': [dict(type='ConfusionMatrix', num_classes=7)]}, 'num_classes=7, the head has 10'),
}


QUICK = ('a head of other channels', 'another number of classes', 'no such photos', 'a transform')


@pytest.mark.parametrize(
    'overrides, message',
    [pytest.param(*SLIPS[name], marks=() if name in QUICK else [pytest.mark.slow], id=name) for name in SLIPS],
)
def test_a_slip_in_the_last_variant_is_a_line_before_the_first_begins(
    run_tool, arguments, overrides, message, tmp_path, monkeypatch
):
    monkeypatch.setattr('mobileone_ext.ablation.ablate.run_study', lambda *_: pytest.fail('it began'))
    variants = {'a': {}, 'b': overrides}
    (tmp_path / 'study.py').write_text(f"title = 't'\nvariants = {variants}\n")
    code, text = run_tool('ablate', *arguments)
    assert code == 1 and not (tmp_path / 'work').exists(), text
    assert only_line(text).startswith("error: study study, variant 'b': ") and message in text, text


def test_a_dry_run_reads_no_photo(arguments, digits, monkeypatch):
    config = cli.load_config(str(arguments[2]))
    monkeypatch.setattr('mobileone_ext.data.transforms.LoadImageFromFile.transform', pytest.fail)
    dry_run(config, 'x', data=True)


def test_a_dry_run_needs_no_images_that_a_subset_counts(arguments):
    config = cli.load_config(str(arguments[2]))
    config.train_dataloader.dataset.indices = [0, 9000]
    dry_run(config, 'x')


@pytest.mark.parametrize('kind', ['mobileone_ext.DistilledClassifier', 'ImageClassifier'])
def test_a_step_on_a_made_up_photo_trains(arguments, monkeypatch, kind):
    config = override(cli.load_config(str(arguments[2])), {'model.type': kind})
    if kind != 'ImageClassifier':
        config.model.update(teacher=dict(type='ImageClassifier'), teacher_checkpoint='none.pth')
    runner = dry_run(config, 'x', step=True)
    assert torch.count_nonzero(runner.optim_wrapper.optimizer.state[runner.model.head.fc.weight]['momentum_buffer']) > 0


def test_epochs_take_the_schedule_along(arguments, run_tool, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        'mobileone_ext.ablation.ablate.run_study', lambda study, base, runs, *rest: seen.extend(runs) or 0
    )
    code, text = run_tool('ablate', *arguments, '--epochs', 2)
    assert code == 0, text
    for run in seen:
        config = Config.fromstring(run.config_text, '.py')
        assert config.train_cfg.max_epochs == 2 and config.param_scheduler[0]['end'] == 2
    assert [run.variant for run in seen] == ['skip', 'diverges', 'no skip']


def test_an_unknown_key_is_one_line_and_exit_code_1(run_tool, arguments, tmp_path):
    (tmp_path / 'study.py').write_text("title = 't'\nvariants = {'a': {'model.backbone.use_skp': 1}}")
    code, text = run_tool('ablate', *arguments)
    assert code == 1
    assert only_line(text).startswith("error: study study, variant 'a': does not build: ") and "'use_skp'" in text
    assert not (tmp_path / 'work').exists()


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(arguments, tmp_path):
    command = [sys.executable, str(ROOT / 'tools/ablate.py'), *map(str, arguments)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    work = tmp_path / 'work'

    def start():
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    killed = start()
    while not (work / 'skip/seed0/epoch_1.pth').exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (work / 'skip/seed0/report.json').exists()

    out, error = start().communicate()
    assert error.strip().splitlines()[-1] == 'error: 1 of 3 runs failed; results.md says why'
    assert (
        'Resumed' in (work / 'skip/seed0/run.log').read_text() or 'resumed' in (work / 'skip/seed0/run.log').read_text()
    )
    with open(work / 'results.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['variant'], row['status']) for row in rows] == [
        ('skip', 'done'),
        ('diverges', 'failed'),
        ('no skip', 'done'),
    ]
    assert all(float(row['top1_after']) == float(row['top1_before']) for row in rows if row['status'] == 'done')
    assert 'training has diverged' in rows[1]['reason']
    assert '    epoch 4 of 4, loss ' in out
    page = (work / 'results.html').read_text()
    runs = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])['runs']
    assert [run['variant'] for run in runs] == ['skip', 'no skip'] and 'training has diverged' in page
    assert runs[0]['curves']['loss'][0][-1] == 4 and runs[0]['top1'] == float(rows[0]['top1_after'])

    before = (work / 'skip/seed0/report.json').stat().st_mtime_ns
    again, _ = start().communicate()
    assert '[1/3] skip, seed 0: finished before' in again
    assert (work / 'skip/seed0/report.json').stat().st_mtime_ns == before
