"""Where moments are faster than branches: a rule for CPUs, and a measured table for each device, in the user's cache.

``tools/benchmark.py train --device cuda --amp bf16`` writes it. A row is a kind of block, a number of patches (output
pixels of the batch) and the time of its training step both ways. For another number of patches the nearest row counts,
if it is not further away than a factor of ``REACH``. What nobody has measured takes the branches.
"""

import json
import logging
import math
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..files import write_json
from ..provenance import processor
from ..text import one_line
from . import kernels
from .kernels import constant_when_compiled
from .patches import count_patches

REACH = 4


@dataclass(frozen=True)
class BlockShape:
    """A block's convolution and how many of it there are."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    groups: int
    branches: int


@dataclass(frozen=True)
class Kind(BlockShape):
    """A block as the table knows it."""

    skip: bool
    dtype: str
    compiled: bool


class Row(NamedTuple):
    """A measurement: milliseconds of forward and backward pass."""

    kind: Kind
    patches: int
    branches_ms: float
    moments_ms: float


def is_faster(
    x: Tensor, kernel_size: int, stride: int, groups: int, out_channels: int, branches: int, skip: bool
) -> bool:
    """Whether moments of x (N, I, H, W) are expected to be faster than ``branches`` convolutions and their norms.

    On CPU in float32 a rule of thumb from the blocks of s0 .. s4, see docs/results/fused_training.md; elsewhere what a
    table of this device says, and no where there is none. ``skip``: whether there is a branch of batch norm alone.
    """
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    if device != 'cpu' or x.dtype != torch.float32 or autocast:
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        kind = x.shape[1], out_channels, kernel_size, stride, groups, branches, skip, str(dtype).removeprefix('torch.')
        return is_measured_faster(device, x.device.index, kind, count_patches(x, stride))
    patches = count_patches(x, stride)
    if groups > 1:
        if kernels.usable(x):
            return branches * x.numel() >= (7e5 if stride == 1 else 2.5e6)
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        if stride == 1:
            return (branches + 2) * x.numel() >= 3e6 and (branches > 1 or channels_last)
        return branches * x.numel() >= 9e6 and channels_last
    if kernel_size > 1:  # the stem, whose maps are large and its patches small
        return patches * out_channels >= 5e5
    # In multiplications a patch. Products with a matrix of pixels are 3 for a convolution, forward and backward; the
    # covariance adds 2 of I x I, and 2 for each branch without the pixels. A batch norm costs as much as so many
    # multiplications a value, more where its map is too large for the cache.
    in_channels = x.shape[1]
    norm = 170 if patches * max(in_channels, out_channels) >= 8e6 else 80
    saved = 3 * (branches - 1) * in_channels * out_channels + norm * (branches * out_channels + skip * in_channels)
    spent = 2 * in_channels**2 * (1 + branches * out_channels / patches)
    return spent < saved and x.numel() >= (1e5 if branches > 1 else 2e6)


def is_measured_faster(device: str, index: int | None, kind: tuple, patches: int) -> bool:
    """Whether moments are, for a ``Kind`` but for its last field, on this device."""
    return any(low <= patches <= high for low, high in _ranges_of(device, index, kind))


@constant_when_compiled
def _ranges_of(device: str, index: int | None, kind: tuple) -> tuple[tuple[float, float], ...]:
    return _ranges(device, index, Kind(*(*kind, torch.compiler.is_compiling())))


@cache
def _ranges(device: str, index: int | None, kind: Kind) -> tuple[tuple[float, float], ...]:
    return ranges(_rows(_name(device, index)), kind)


def ranges(rows: tuple[Row, ...], kind: Kind) -> tuple[tuple[float, float], ...]:
    """From how many to how many patches moments are faster: around each row that says so, half way to the next."""
    known = sorted((row for row in rows if row.kind == kind), key=lambda row: row.patches)
    faster: list[tuple[float, float]] = []
    for before, row, after in zip([None, *known], known, [*known[1:], None]):
        low, high = row.patches / REACH, float(row.patches * REACH)
        low = max(low, math.sqrt(before.patches * row.patches)) if before else low
        high = min(high, math.sqrt(row.patches * after.patches)) if after else high
        if row.moments_ms < row.branches_ms:
            faster.append((low, high))
    return tuple(faster)


def forget() -> None:
    """Read the tables anew when next asked."""
    _ranges.cache_clear()
    _rows.cache_clear()


def path(device_name: str) -> Path:
    """Where the table of a device lies."""
    return kernels.cache_folder() / f'autotune-{re.sub("[^A-Za-z0-9]+", "-", device_name)}.json'


def write(rows: list[Row], device_name: str, versions: dict[str, str], file: Path) -> None:
    """The table as a file: whole or not at all."""
    dicts = [dict(asdict(kind), **dict(zip(Row._fields[1:], measured))) for kind, *measured in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(dict(device=device_name, versions=versions, rows=dicts), file)


def merge(rows: list[Row], file: Path, device_name: str) -> list[Row]:
    """``rows``, and what else ``file`` holds if it is a table of this device."""
    try:
        old = read(file, device_name)
    except UNREADABLE:
        old = ()
    new = {row[:2] for row in rows}
    return [*(row for row in old if row[:2] not in new), *rows]


def read(file: Path, device_name: str) -> tuple[Row, ...]:
    """The rows of a table.

    Raises:
        Exception: of ``UNREADABLE``, if it cannot be read, is no such table, or another device's.
    """
    table = json.loads(file.read_text(encoding='utf-8'))
    if table['device'] != device_name:
        raise ValueError(f'it is of {table["device"]!r}')
    rows = []
    for number, values in enumerate(table['rows'], 1):
        measured = [values.pop(name) for name in Row._fields[1:]]
        if not all(value > 0 for value in measured):  # written so that NaN fails
            raise ValueError(f'row {number}: {measured}')
        rows.append(Row(Kind(**values), *measured))
    return tuple(rows)


UNREADABLE = OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError  # of json, and of other contents


@cache
def _name(device: str, index: int | None) -> str:
    return torch.cuda.get_device_name(index) if device == 'cuda' else processor()


@cache
def _rows(device_name: str) -> tuple[Row, ...]:
    """Of the device's table, read once a process; what is wrong with it is reported."""
    file = path(device_name)
    try:
        return read(file, device_name)
    except FileNotFoundError:
        reason, level = 'nobody has measured it; tools/benchmark.py train does', logging.INFO
    except UNREADABLE as error:
        reason, level = f'{file}: {type(error).__name__}: {one_line(error)[:200]}', logging.WARNING
    kernels.report(f"train_impl='auto' on {device_name} takes the branches where no rule is known: {reason}", level)
    return ()
