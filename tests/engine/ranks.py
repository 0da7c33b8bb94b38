"""Runs of several processes (gloo) that are forked from one that has imported everything."""

import multiprocessing
import os
import socket
from collections.abc import Callable

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['mobileone_ext.engine.train', 'mmpretrain.models'])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def _run(rank: int, environment: dict[str, str], target: Callable, arguments: tuple) -> None:
    import warnings

    import torch
    from conftest import ROOT, SCRAMBLED

    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    warnings.filterwarnings('error', message=SCRAMBLED)
    os.chdir(ROOT)
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    target(*arguments)


def run(target: Callable, *arguments, processes: int = 2) -> list[int]:
    """Call ``target(*arguments)`` in so many processes that find each other; their exit codes.

    As a launcher does, end the others when one fails.
    """
    environment = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), WORLD_SIZE=str(processes))
    ranks = [CONTEXT.Process(target=_run, args=(r, environment, target, arguments)) for r in range(processes)]
    for rank in ranks:
        rank.start()
    while any(rank.is_alive() for rank in ranks):
        multiprocessing.connection.wait([rank.sentinel for rank in ranks if rank.is_alive()])
        if any(rank.exitcode for rank in ranks):
            for rank in ranks:
                rank.kill()
    return [rank.exitcode for rank in ranks]
