"""Two parts of device.py, a process each.

``tiles`` times the Triton kernels with other tiles; ``profile`` lists what the time of a whole step goes to.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from mobileone_ext.files import csv_text, write_text
from mobileone_ext.moments import gpu
from mobileone_ext.text import markdown_table

from .blocks import Precision, make_map
from .gpu import TYPES, make_step
from .traffic import blocks
from .turns import Contestant, measure

TILES = tuple(product((128, 256, 512, 1024), (32, 64, 128)))  # TILE and BLOCK of gpu.py
COLUMNS = ('kernel', 'channels', 'size', 'tile', 'block', 'median_ms', 'min_ms', 'max_ms', 'note')
STEPS = 'moments', 'branches', 'fused'


def sweep(precision: Precision, batch: int, size: int, steps: int, tiles: Sequence[tuple[int, int]]) -> list[dict]:
    """A row for each kernel, distinct depthwise map of S0 and tile: values of a program, and those along memory."""
    rows = []
    for block in dict.fromkeys(block for block in blocks('s0', size) if block.groups > 1):
        x = make_map(block, batch, precision).detach()
        for name, call in _kernels(x, block.stride).items():
            contestants = [Contestant(partial(_tiled, call, *tile), precision.device) for tile in tiles]
            measure(contestants, steps)
            for (tile, along), contestant in zip(tiles, contestants):
                what = dict(kernel=name, channels=block.in_channels, size=block.size, tile=tile, block=along)
                rows.append({key: value for key, value in (what | contestant.summary()).items() if key in COLUMNS})
    return rows


def _kernels(x: torch.Tensor, stride: int) -> dict[str, Callable]:
    channels, shift, dx = x.shape[1], torch.zeros(x.shape[1], device=x.device), torch.zeros_like(x)
    if stride == 1:
        weights = torch.randn(50, channels, device=x.device)
        return dict(plane_sums=lambda: gpu.plane_sums(x, shift), plane_grad=lambda: gpu.plane_grad(dx, x, weights))
    slope, offset = torch.randn(9, 9, channels, device=x.device), torch.randn(9, channels, device=x.device)
    return dict(
        strided_sums=lambda: gpu.strided_sums(x, shift), strided_grad=lambda: gpu.strided_grad(dx, x, slope, offset)
    )


def _tiled(call: Callable, tile: int, along: int) -> Callable[[], None]:
    def step() -> None:
        with mock.patch.multiple(gpu, TILE=tile, BLOCK=along):
            call()

    return step


def best(rows: list[dict]) -> str:
    """Markdown: for each tile how much slower than the best of its map it is, the mean over kernels and maps."""
    groups: dict[tuple, dict[tuple, float]] = {}
    for row in rows:
        if row['median_ms']:
            kind = row['kernel'], row['channels'], row['size']
            groups.setdefault(kind, {})[row['tile'], row['block']] = row['median_ms']
    lines = []
    for tile in sorted({tile for times in groups.values() for tile in times}):
        ratios = [times[tile] / min(times.values()) for times in groups.values() if tile in times]
        if ratios:
            lines.append((sum(ratios) / len(ratios), max(ratios), len(ratios), *tile))
    shown = [(tile, along, f'{mean:.2f}', f'{worst:.2f}', count) for mean, worst, count, tile, along in sorted(lines)]
    return markdown_table(('TILE', 'BLOCK', 'time / best, mean', 'at most', 'maps'), shown)


def profiles(precision: Precision, batch: int, size: int, names: Sequence[str]) -> str:
    """Text: for each network the operators and kernels that take most of a step's time."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (precision.device == 'cuda')
    order = 'self_cpu_time_total' if precision.device == 'cpu' else 'self_device_time_total'
    parts = []
    for name in names:
        step = make_step(name, 's0', batch, size, precision, lambda module: module)
        step()
        with profile(activities=activities) as profiler:
            step()
        parts.append(f'## {name}\n\n{profiler.key_averages().table(sort_by=order, row_limit=20)}')
    return '\n\n'.join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('part', choices=('tiles', 'profile'))
    parser.add_argument('--amp', choices=('bf16', 'fp16'), default='bf16')
    parser.add_argument('--dry-run', action='store_true')
    parser.add_argument('--out', default='work_dirs/device')
    args = parser.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    precision = Precision('cpu' if args.dry_run else 'cuda', TYPES[args.amp])
    batch, size, steps = (2, 32, 1) if args.dry_run else (32, 224, 5)
    if args.part == 'profile':
        text = profiles(precision, batch, size, STEPS[:1] if args.dry_run else STEPS)
        write_text(text, out / 'profile.md')
    else:
        rows = sweep(precision, batch, size, steps, [(gpu.TILE, gpu.BLOCK)] if args.dry_run else TILES)
        write_text(csv_text(rows, COLUMNS), out / 'tiles.csv')
        text = best(rows)
        write_text(text, out / 'tiles.md')
    print(text)


if __name__ == '__main__':
    main()
