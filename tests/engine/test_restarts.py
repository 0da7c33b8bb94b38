"""Killed processes that torchrun starts anew, and a job that Slurm requeues, end with an undisturbed run's bits."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from killing import config_of, train
from test_kills import assert_same_files

OPTIONS = dict(max_keep_ckpts=1, save_best='auto')
TOOL = 'tests/engine/killed_tool.py'
TRAIN = [TOOL, '--resume', '--launcher', 'pytorch']
LAUNCH = [sys.executable, '-m', 'mobileone_ext.engine.launch', '--nproc_per_node=2']
C10D = ['--rdzv-backend=c10d', '--rdzv-endpoint=127.0.0.1:0']
STEP = ('in the optimizer step', 1)
# Of each run in turn; a moment is counted from where the run goes on.
MOMENTS = {
    'setup': [('before they meet', 1), ('when they have met', 0), ('before the first step', 1), STEP],
    'first write': [('in the first write of all', 0), ('in the moving average', 0)],
    'best': [('while best is written', 0), ('in the validation', 1)],
    'later': [("at the loader's start", 0)],
    'write': [('between write and removal', 0)],
}


@pytest.fixture(scope='module')
def undisturbed(digits, tmp_path_factory):
    whole = tmp_path_factory.mktemp('undisturbed')
    assert train(whole, digits, OPTIONS, processes=2) == [0, 0]
    return whole


@pytest.fixture
def start(digits, tmp_path):
    """``start(moments, *command)``: what the command printed, with the config after it, which came to these moments."""

    def run(moments, *command):
        config = config_of(str(tmp_path / 'run'), str(digits), OPTIONS)
        config.train_dataloader.batch_size = 22
        config.dump(str(tmp_path / 'config.py'))
        paths = os.pathsep.join(map(str, (ROOT, ROOT / 'tests', ROOT / 'tests/engine')))
        come = tmp_path / 'come'
        variables = dict(PYTHONPATH=paths, PYTHONWARNINGS='ignore', MOMENTS=json.dumps(moments), COME=str(come))
        environment = {**os.environ, **variables}
        done = subprocess.run([*command, str(tmp_path / 'config.py')], env=environment, capture_output=True, text=True)
        assert come.read_text().count('come') == len(moments), f'not all moments came: {done.stderr}'
        return done

    return run


@pytest.mark.slow
@pytest.mark.parametrize('when', MOMENTS)
def test_torchrun_starts_anew_what_was_killed(start, undisturbed, tmp_path, when):
    moments = MOMENTS[when]
    done = start(moments, *LAUNCH, *C10D, f'--max-restarts={len(moments)}', *TRAIN)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
    assert_same_files(tmp_path / 'run', undisturbed)


@pytest.mark.slow
def test_without_restarts_the_killed_process_is_one_line(start, tmp_path):
    done = start([STEP], *LAUNCH, *C10D, *TRAIN)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if 'error' in line.lower()]
    assert len(errors) == 1 and errors[0].startswith('error: process 1 was killed by signal 9; '), done.stderr


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The batch file's command, in a checkout whose tool comes to a moment, and a Slurm of one node that writes down
    what it is asked."""
    for name, body in {
        'tools/train.py': (ROOT / TOOL).read_text(),
        'bin/srun': '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
        'bin/scontrol': f'#!/bin/bash\necho "$*" >> {tmp_path}/asked\n[[ $1 != show ]] || echo 127.0.0.1\n',
    }.items():
        path = tmp_path / 'checkout' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path / 'checkout')
    monkeypatch.setenv('PATH', f'{tmp_path}/checkout/bin:{os.environ["PATH"]}')
    for name, value in dict(
        PYTHON=sys.executable, GPUS_PER_NODE=2, MASTER_PORT=0, SLURM_JOB_ID=7, SLURM_NNODES=1, SLURM_PROCID=0,
        SLURM_JOB_NODELIST='n[1]', SLURM_CPUS_PER_TASK=1,
    ).items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return ['bash', '-c', 'export BATCH=$$; exec bash "$0" "$@"', str(ROOT / 'tools/train.sbatch')]


@pytest.mark.parametrize(
    'body, code, asked',
    [
        ('echo "$*"', 0, ''),
        ('exit 3', 3, ''),
        (
            'trap "echo ended >> $ASKED; exit 143" TERM; kill -USR1 $BATCH; sleep 9 >&- 2>&- & wait',
            0,
            'ended\nrequeue 7\n',
        ),
    ],
)
def test_a_job_ends_its_processes_before_it_is_requeued(job, tmp_path, monkeypatch, body, code, asked):
    (tmp_path / 'python').write_text(f'#!/bin/bash\n{body}\n')
    (tmp_path / 'python').chmod(0o755)
    monkeypatch.setenv('PYTHON', str(tmp_path / 'python'))
    monkeypatch.setenv('ASKED', str(tmp_path / 'asked'))
    done = subprocess.run([*job, 'CONFIG', '--seed', '0'], capture_output=True, text=True)
    assert done.returncode == code and not done.stderr, done.stderr
    assert (tmp_path / 'asked').read_text() == 'show hostnames n[1]\n' + asked
    if body.startswith('echo'):
        assert done.stdout == (
            '-u -m mobileone_ext.engine.launch --nnodes=1 --nproc_per_node=2 --rdzv-id=7 --rdzv-backend=c10d '
            '--rdzv-endpoint=127.0.0.1:0 --max-restarts=3 '
            'tools/train.py CONFIG --seed 0 --launcher pytorch --resume\n'
        )


@pytest.mark.slow
def test_a_job_is_requeued_and_goes_on(start, undisturbed, job, tmp_path):
    first = start([STEP], *job)
    assert first.returncode == 0 and 'Traceback' not in first.stderr, first.stderr
    assert (tmp_path / 'asked').read_text().endswith('requeue 7\n')
    assert [path.name for path in (tmp_path / 'run').glob('epoch_*.pth')] == ['epoch_2.pth']
    second = start([STEP], *job)
    assert second.returncode == 0, second.stderr
    assert 'resumed epoch: 2' in second.stdout and (tmp_path / 'asked').read_text().count('requeue') == 1
    assert_same_files(tmp_path / 'run', undisturbed)
