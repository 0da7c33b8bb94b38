"""tools/ablate.py on a tiny base: killed half-way and run again, one variant broken."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY

STUDY = """
title = 'Two that run and one that does not'
variants = {
    'skip': {},
    'broken': {'model.head.in_channels': 31},
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
    assert [line.split(':')[0] for line in text.splitlines()] == ['skip, seed 0', 'broken, seed 0', 'no skip, seed 0']
    assert not (tmp_path / 'work').exists()


def test_an_unknown_key_is_one_line_and_exit_code_1(run_tool, arguments, tmp_path):
    (tmp_path / 'study.py').write_text("title = 't'\nvariants = {'a': {'model.backbone.use_skp': 1}}")
    code, text = run_tool('ablate', *arguments)
    assert code == 1
    assert text.startswith("error: study study, variant 'a': override 'model.backbone.use_skp': nothing reads")
    assert len(text.splitlines()) == 1


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
        ('broken', 'failed'),
        ('no skip', 'done'),
    ]
    assert all(float(row['top1_after']) == float(row['top1_before']) for row in rows if row['status'] == 'done')
    assert rows[1]['reason']

    before = (work / 'skip/seed0/report.json').stat().st_mtime_ns
    again, _ = start().communicate()
    assert '[1/3] skip, seed 0: finished before' in again
    assert (work / 'skip/seed0/report.json').stat().st_mtime_ns == before
