"""Files made to eat the machine are refused from what they say of themselves: at once, in little memory."""

import gc
import io
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch
from conftest import ROOT
from hostile import FILES, PICKLES

from mobileone_ext.checkpoints.load import read_checkpoint
from mobileone_ext.checkpoints.pickles import check_pickle

SECONDS = 5  # of processor time, on a machine of any speed; all take a fraction of one here


@pytest.mark.parametrize('name', FILES)
def test_a_hostile_file_is_refused(tmp_path, name):
    make, content = FILES[name]
    path = tmp_path / 'file.pth'
    path.write_bytes(make(content))
    start = time.process_time()
    with pytest.raises(ValueError, match='file.pth: (damaged|holds pickled code)') as caught:
        read_checkpoint(path)
    assert time.process_time() - start < SECONDS
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize('content', [PICKLES['millions of lists'], b'](K\x01e.'], ids=['refused', 'plain'])
def test_the_collector_rests_meanwhile(content):
    runs = []
    gc.collect()
    gc.callbacks.append(lambda phase, info: runs.append(phase))
    try:
        with nullcontext() if len(content) < 100 else pytest.raises(ValueError, match='instructions'):
            check_pickle(io.BytesIO(content), len(content))
        assert gc.isenabled() and len(runs) < 10
    finally:
        gc.callbacks.pop()


READ_ALL = """
import resource, sys
from pathlib import Path
from mobileone_ext.checkpoints.load import read_checkpoint
sys.path.insert(0, 'tests')
from hostile import FILES
path = Path(sys.argv[1], 'file.pth')
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, (make, content) in FILES.items():
    if len(content) < 1_000_000 and 'header of' not in name:
        path.write_bytes(make(content))
        try:
            read_checkpoint(path)
        except ValueError:
            continue
        print('read', name)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_hostile_files_take_little_memory(tmp_path):
    command = [sys.executable, '-c', READ_ALL, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300, done.stdout  # MB


def test_pickles_of_checkpoints_are_walked_over_to_their_end():
    for value in (
        dict(a=torch.zeros(3), b=[torch.ones(2), None, True, 2.5, -7, 1 << 40, 'text', b'bytes'], c={1: {'x', 'y'}}),
        torch.nn.Linear(2, 2).state_dict(),
        dict(p=torch.nn.Parameter(torch.zeros(2)), half=torch.zeros(2).half(), size=torch.Size([1, 2])),
    ):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=False)
        size = buffer.tell()
        buffer.seek(0)
        assert all(check_pickle(buffer, size) for _ in range(5))


def test_the_pickles_are_what_they_are_called():
    assert len(PICKLES['an array of 8 GiB']) < 100 and len(PICKLES['laughing tuples']) < 3000
