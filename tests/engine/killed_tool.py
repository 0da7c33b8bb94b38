"""tools/train.py with the arguments given, one of whose processes comes to a moment of ``killing.py``.

It is killed there, or where ``BATCH`` is the number of a process, sends that one the signal of a batch system.

    MOMENTS     names of moments, one for each attempt, and the number of the process that comes to it, as JSON
    COME        a file with a line for each moment that has come
"""

import json
import os
import runpy
import signal
import time
from pathlib import Path

import killing
from conftest import ROOT

COME = Path(os.environ['COME'])


def come() -> None:
    with COME.open('a') as file:
        file.write('come\n')
    if 'BATCH' in os.environ:
        os.kill(int(os.environ['BATCH']), signal.SIGUSR1)
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == '__main__':
    number = len(COME.read_text().splitlines()) if COME.exists() else 0
    for moment, rank in json.loads(os.environ['MOMENTS'])[number : number + 1]:
        if os.environ['RANK'] == str(rank):
            killing.kill = come
            killing.moments()[moment]()
    runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
