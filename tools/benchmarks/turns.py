"""Steps that take turns on a device: their time, their memory, and what goes on when one of them fails."""

import gc
import time
from collections.abc import Callable
from statistics import median

import torch

from mobileone_ext.text import one_line

Step = Callable[[], None]


def synchronize(device: str) -> None:
    """Wait for what the device has to do."""
    if device == 'cuda':
        torch.cuda.synchronize()


class Contestant:
    """A step, made when first asked for, with what was measured of it.

    Attributes:
        seconds: of the counted steps.
        peak_gb: of the device's memory that making the step and two steps took at most; None on a CPU.
        note: why there is no more to measure; empty if nothing happened.
    """

    def __init__(self, make: Callable[[], Step], device: str):
        self._make, self._device = make, device
        self._step: Step | None = None
        self.seconds: list[float] = []
        self.peak_gb: float | None = None
        self.note = ''

    def prepare(self) -> None:
        """Make the step and take it twice, which compiles what is compiled."""
        on_gpu = self._device == 'cuda'
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        self._try(self._warm_up)
        if on_gpu and not self.note:
            self.peak_gb = (torch.cuda.max_memory_allocated() - before) / 1e9

    def take(self, repeats: int = 1) -> None:
        """Measure ``repeats`` steps as one, if nothing has failed before."""
        if not self.note:
            self._try(lambda: self._time(repeats))

    def _warm_up(self) -> None:
        self._step = self._make()
        for _ in range(2):
            self._step()
        synchronize(self._device)

    def _time(self, repeats: int) -> None:
        assert self._step is not None
        synchronize(self._device)
        start = time.perf_counter()
        for _ in range(repeats):
            self._step()
        synchronize(self._device)
        self.seconds.append((time.perf_counter() - start) / repeats)

    def _try(self, work: Step) -> None:
        try:
            work()
        except (RuntimeError, MemoryError) as error:
            self.note, self._step, self.peak_gb = failure(error), None, None
        if self.note:  # the traceback, which holds tensors, is gone by now
            gc.collect()
            if self._device == 'cuda':
                torch.cuda.empty_cache()

    def summary(self) -> dict:
        """What a table says of it: median, fastest and slowest step in ms, their number, memory, note."""
        times = [1000 * value for value in self.seconds] if not self.note else []
        values = dict(zip(('median_ms', 'min_ms', 'max_ms'), (median(times), min(times), max(times)) if times else ()))
        empty = dict(median_ms=None, min_ms=None, max_ms=None)
        return dict(empty, **values, steps=len(times), peak_gb=self.peak_gb, note=self.note)


def failure(error: Exception) -> str:
    """In a few words."""
    text = one_line(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return 'out of memory'
    return f'{type(error).__name__}: {text[:100]}'


def measure(contestants: list[Contestant], steps: int, repeats: int = 1) -> None:
    """Prepare each, then ``steps`` measurements of each, in turns."""
    for contestant in contestants:
        contestant.prepare()
    for _ in range(steps):
        for contestant in contestants:
            contestant.take(repeats)
