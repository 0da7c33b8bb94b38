"""Several processes and a mistake: one line, once, from whoever has something to say."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, TINY

from mobileone_ext import provenance

CHILD = """
import os, signal, sys, time
from mobileone_ext import cli, provenance

def main():
    how, rank = sys.argv[1], provenance.rank()
    if how == 'killed' and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == 'one' and rank == 1:
        cli._SECONDS_FOR_THE_FIRST = 0
        raise ValueError('my disk is gone')
    if how == 'all':
        raise ValueError('no such photos')
    os.write(1, b'at work\\n')  # stdout is the first process's alone
    time.sleep(60)

cli.run(main)
"""
ENDS = {  # what the two processes do, and what the launcher's console shows
    'all': 'error: no such photos\n',
    'one': 'error: process 1: my disk is gone\n',
    'killed': 'error: process 1 was killed by signal 9; what was saved is whole, and a run of',
}


def launch(tmp_path, how, *launching, **options):
    (tmp_path / 'child.py').write_text(CHILD)
    command = [sys.executable, '-m', 'mobileone_ext.engine.launch', '--standalone', '--nproc_per_node=2', *launching]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        [*command, str(tmp_path / 'child.py'), how],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize('how', ['all', *(pytest.param(how, marks=pytest.mark.slow) for how in ('one', 'killed'))])
def test_what_ended_the_processes_is_one_line(tmp_path, how):
    process = launch(tmp_path, how, f'--max-restarts={0 if how == "killed" else 2}')  # a mistake is made once
    _, console = process.communicate(timeout=60)
    assert process.returncode == 1 and console.count('\n') == 1
    assert console.startswith(ENDS[how])


@pytest.mark.slow
def test_ctrl_c_is_one_line(tmp_path):
    process = launch(
        tmp_path, 'work', start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    assert [process.stdout.readline() for _ in range(2)] == ['at work\n'] * 2
    os.killpg(process.pid, signal.SIGINT)
    _, console = process.communicate(timeout=60)
    assert process.returncode == 130
    assert console.startswith('interrupted; ') and console.count('\n') == 1


def test_a_slip_in_dist_train_is_one_line():
    with socket.socket() as taken:  # a free port, until the launcher takes it
        taken.bind(('127.0.0.1', 0))
        port = taken.getsockname()[1]
    environment = dict(os.environ, PYTHON=sys.executable, PYTHONPATH=str(ROOT), MASTER_PORT=str(port))
    command = ['bash', 'tools/dist_train.sh', TINY, '2', '--epohcs', '3']
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout + done.stderr == "error: unrecognized arguments: --epohcs 3; did you mean '--epochs'?\n"


def test_a_port_that_is_taken_is_a_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        options = ['--master_addr=127.0.0.1', f'--master_port={taken.getsockname()[1]}', '--nproc_per_node=1']
        command = [sys.executable, '-m', 'mobileone_ext.engine.launch', *options, 'none.py']
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith('error: the processes cannot meet: ')
    assert done.stderr.count('\n') == 1 and 'MASTER_PORT=N' in done.stderr


@pytest.mark.parametrize('launcher', provenance.RANKS)
def test_the_number_of_a_process(monkeypatch, launcher):
    for name in provenance.RANKS.values():
        monkeypatch.delenv(name, raising=False)
    assert provenance.rank() == 0
    monkeypatch.setenv(provenance.RANKS[launcher], '3')
    assert provenance.rank() == 3
