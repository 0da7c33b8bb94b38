"""One writer a folder, whatever became of the one before; children that end with their parent."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from mobileone_ext.engine.processes import LOCK, is_first, one_writer, run_child

HOLD = """
import os, sys, time
from mobileone_ext.engine.processes import one_writer
with one_writer(sys.argv[1], 'hol\u200cder'):
    child = os.fork() if sys.argv[2] == 'fork' else 1
    if child:
        print(child, flush=True)
    time.sleep(60)
"""
PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs behind a shell's & begins without
from mobileone_ext.engine.processes import exiting_on_sigterm, run_child
with exiting_on_sigterm():
    run_child([sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'])
"""
WORKERS = """
import os, time, torch
from mobileone_ext.engine.processes import TiedWorker
class Pids(torch.utils.data.Dataset):
    __len__ = lambda self: 8
    __getitem__ = lambda self, index: (time.sleep(60) if index > 1 else None, os.getpid())[1]
loader = torch.utils.data.DataLoader(Pids(), None, num_workers=2, prefetch_factor=1)
loader.worker_init_fn = TiedWorker(loader.worker_init_fn)
for pid in loader:
    print(int(pid), flush=True)
"""


@pytest.fixture
def start():
    """Starts a script; ends it in the end."""
    started = []

    def run(script, *arguments):
        environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
        command = [sys.executable, '-c', script, *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1], int(started[-1].stdout.readline())

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def is_running(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def ends(pid, seconds=20):
    until = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


def test_a_second_writer_is_refused_and_told_of_the_first(start, tmp_path):
    holder, _ = start(HOLD, tmp_path, 'alone')
    told = f'hol\u200cder, process {holder.pid} on .* writes here'
    with pytest.raises(ValueError, match=told), one_writer(tmp_path, 'x'):
        pass
    with one_writer(tmp_path / 'other', 'x'):
        pass


@pytest.mark.parametrize('how', ['alone', pytest.param('fork', marks=pytest.mark.slow)])
def test_a_killed_writer_is_no_obstacle(start, tmp_path, how):
    holder, child = start(HOLD, tmp_path, how)
    holder.kill()
    holder.wait()
    try:
        with one_writer(tmp_path, 'next'):  # at once, while a worker of the first may still live
            assert 'next' in (tmp_path / LOCK).read_text()
    finally:
        if how == 'fork':
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize('text', ['tools/train.py, process 1 on a host that is gone', '', '\x1b[31m', '9' * 5000])
def test_a_lock_that_was_left_is_no_obstacle(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    for _ in range(2):
        with one_writer(tmp_path, 'x'):
            pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    from filelock import FileLock

    def acquire(self, **_):
        raise OSError('no locks here')

    monkeypatch.setattr(FileLock, 'acquire', acquire)
    with one_writer(tmp_path, 'x'):
        pass
    assert 'cannot be locked (no locks here)' in capsys.readouterr().err


@pytest.mark.parametrize(
    'launcher, name', [('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID'), ('mpi', 'OMPI_COMM_WORLD_RANK')]
)
def test_the_first_process_takes_the_lock(monkeypatch, launcher, name):
    assert is_first('none')
    monkeypatch.setenv(name, '0')
    assert is_first(launcher)
    monkeypatch.setenv(name, '3')
    assert not is_first(launcher) and is_first('none')


@pytest.mark.parametrize('sign', [signal.SIGTERM, signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_child_ends_with_its_parent(start, sign):
    parent, child = start(PARENT)
    assert is_running(child)
    parent.send_signal(sign)
    assert ends(child) and parent.wait() != 0


def test_loader_workers_end_with_their_parent(start):
    parent, worker = start(WORKERS)
    parent.kill()
    assert ends(worker, 4)  # torch's own workers look every five seconds


def test_the_code_of_a_child():
    assert run_child([sys.executable, '-c', 'raise SystemExit(3)']) == 3
