"""Processes: one writer a folder, children that end with their parent."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..provenance import RANKS
from ..text import fits_a_line

LOCK = '.lock'
_PR_SET_PDEATHSIG = 1
_SECONDS_TO_END = 10
_SECONDS_BETWEEN = 0.3


@contextlib.contextmanager
def one_writer(folder: str | Path, what: str) -> Iterator[None]:
    """Make ``folder`` and hold it against other processes; the system lets go when this one ends, however it does.

    Args:
        what: this process does, for the message to another one.

    Raises:
        ValueError: naming the process that holds the folder.
    """
    path = Path(folder, LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        # A worker that a killed run had only just forked lets go of it within milliseconds.
        lock.acquire(timeout=1, poll_interval=0.02)
    except Timeout:
        raise ValueError(
            f'{folder}: {_holder(path)} writes here; let it end, or name another folder (--work-dir)'
        ) from None
    except (OSError, NotImplementedError) as error:
        print(f'{folder}: cannot be locked ({error}); see to it that no other process writes there', file=sys.stderr)
        yield
        return
    try:
        with contextlib.suppress(OSError):
            path.write_text(f'{what}, process {os.getpid()} on {socket.gethostname()}\n', encoding='utf-8')
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        line = path.read_text(encoding='utf-8').strip()[:200]
        if line and fits_a_line(line):
            return line
    return 'another process'


def is_first(launcher: str) -> bool:
    """Whether this is the first of the processes that ``launcher`` started; known before they meet."""
    return os.environ.get(RANKS.get(launcher, ''), '0') == '0'


def end_with_parent(parent: int | None = None, sign: int = signal.SIGTERM) -> None:
    """Have the system send this process ``sign`` when its parent ends, also by SIGKILL. Linux; elsewhere nothing.

    Args:
        parent: its process id, if that is known: where it has ended already, so does this one.
    """
    if not sys.platform.startswith('linux'):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sign), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), sign)


def run_child(command: Sequence[Any], meanwhile: Callable[[], None] | None = None, **options) -> int:
    """Run ``command`` to its end; its exit code. It ends with this process, whatever ends that.

    Args:
        meanwhile: is called a few times a second.
        options: of ``subprocess.Popen``.
    """
    child = subprocess.Popen(list(map(str, command)), preexec_fn=partial(end_with_parent, os.getpid()), **options)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(None if meanwhile is None else _SECONDS_BETWEEN)
            meanwhile()
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Within, SIGTERM raises SystemExit, so that what has been begun is ended in order."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class TiedWorker:
    """A loader's ``worker_init_fn``: the worker ends with the process that made the loader.

    Args:
        inner: what else a worker begins with.
    """

    def __init__(self, inner: Callable[[int], None] | None):
        self.inner, self.parent = inner, os.getpid()

    def __call__(self, worker: int) -> None:
        end_with_parent(self.parent, signal.SIGKILL)
        if self.inner is not None:
            self.inner(worker)
