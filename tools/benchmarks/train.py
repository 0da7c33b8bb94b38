"""Time and memory of training steps: branches, moments and the fused network, beside mmpretrain's and timm's MobileOne.

A step is whole: forward, cross entropy, backward, SGD. All networks take turns in one process, so that a slow minute
of the machine slows all of them; the peak memory of each is that of a process of its own.

With ``--device cuda`` or ``--amp`` it measures in mixed precision, block by block too, also under torch.compile, and
writes the table that ``train_impl='auto'`` follows on that device: gpu.py.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.utils import get_git_hash

from mobileone_ext.cli import silence_imports
from mobileone_ext.files import check_writable, csv_text, write_text
from mobileone_ext.provenance import machine
from mobileone_ext.text import markdown_table, with_progress

from . import CLOCKS, gpu, host
from .classifier import CLASSES
from .networks import NETWORKS

PUBLISHED_ARCHS = ('s0', 's1', 's2', 's3', 's4')


class Setting(NamedTuple):
    """What a step works on."""

    arch: str
    batch: int
    size: int
    threads: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--archs',
        nargs='+',
        choices=PUBLISHED_ARCHS,
        metavar='ARCH',
        help='(s0 s1 s2 s3 s4; with --device cuda or --amp s0)',
    )
    parser.add_argument(
        '--networks',
        nargs='+',
        choices=tuple(NETWORKS),
        metavar='NAME',
        help=f'some of {", ".join(NETWORKS)} (all but moments, with --device cuda or --amp all but auto)',
    )
    parser.add_argument(
        '--batch-size', '--batch', dest='batch', type=int, default=32, metavar='N', help='images a step (32)'
    )
    parser.add_argument('--image-size', '--size', dest='size', type=int, default=224, metavar='PX', help='(224)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='(cpu)')
    parser.add_argument('--amp', choices=('bf16', 'fp16'), help='mixed precision of this type')
    parser.add_argument(
        '--ways',
        nargs='+',
        choices=gpu.WAYS,
        default=gpu.WAYS[:2],
        help='with --device cuda or --amp: eager, compiled, graphs (CUDA graphs of the compiled); the first two',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='all of --device cuda on a CPU, where its times mean nothing; its kernels if TRITON_INTERPRET=1 is set',
    )
    parser.add_argument(
        '--host', action='store_true', help="the host's time and calls of operators alone, of small maps (host.csv)"
    )
    parser.add_argument('--threads', type=int, default=2, metavar='N', help='(2)')
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help='cpu: processor time of all threads; best with --threads 1 (wall)',
    )
    parser.add_argument('--steps', type=int, default=7, metavar='N', help='measured steps of each network (7)')
    parser.add_argument(
        '--out', default='work_dirs/benchmark_train', metavar='DIR', help='for training.csv, .md and .png'
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write it with its picture to ``args.out``."""
    if min(args.batch, args.size, args.threads, args.steps) < 1:
        raise ValueError('--batch, --size, --threads and --steps: at least 1')
    if args.dry_run and args.device == 'cuda':
        raise ValueError('--dry-run is for a CPU: leave out --device cuda')
    if args.host:
        host.run(args.archs or ('s0',), args.steps, args.out)
        return
    if args.device == 'cuda' or args.amp or args.dry_run:
        args.networks, args.archs = args.networks or gpu.DEFAULT, args.archs or ('s0',)
        torch.set_num_threads(args.threads)
        gpu.run(args)
        return
    args.networks, args.archs = args.networks or DEFAULT, args.archs or PUBLISHED_ARCHS
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / 'training.csv')

    threads = f'{args.threads} thread{"s" * (args.threads > 1)}{", processor time" * (args.clock == "cpu")}'
    head = f'{machine("torch", "mmpretrain", "timm")}; batch {args.batch}, {args.size} px, {threads}'
    print(head)
    settings = [Setting(arch, args.batch, args.size, args.threads) for arch in args.archs]
    # Memory first: a child's peak counts what this process held when it was started.
    peaks = {
        (setting, name): peak_memory(name, setting)
        for setting in with_progress(settings, 'memory')
        for name in args.networks
    }
    rows = []
    for setting in with_progress(settings, 'time'):
        for name, times in measure(args.networks, setting, args.steps, args.clock).items():
            rows.append(
                dict(
                    arch=setting.arch,
                    network=name,
                    median_s=median(times),
                    min_s=min(times),
                    max_s=max(times),
                    commit=get_git_hash(digits=7),
                    steps=len(times),
                    peak_gb=peaks[setting, name],
                )
            )
    report = f'{head}\n\n{as_markdown(rows)}'
    print(report)
    write_text(as_csv(rows), out / 'training.csv')
    write_text(report, out / 'training.md')
    draw(rows, head, out / 'training.png')
    print(f'written: {out}/training.csv, .md, .png')


DEFAULT = tuple(name for name in NETWORKS if name != 'moments')


def make_step(name: str, setting: Setting) -> Callable[[], None]:
    """A function that takes one whole optimizer step."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    net = NETWORKS[name](setting.arch).train()
    images = torch.randn(setting.batch, 3, setting.size, setting.size)  # NCHW, as from a loader
    labels = torch.randint(CLASSES, (setting.batch,))
    # As good as no learning: a fused network of random weights has no batch norm to hold it.
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels, label_smoothing=0.1).backward()
        optimizer.step()

    return step


def measure(names: Sequence[str], setting: Setting, steps: int, clock: str = 'wall') -> dict[str, list[float]]:
    """Seconds of each network's steps, taken in turns after one step each that is not counted."""
    now = getattr(time, CLOCKS[clock])
    calls = {name: make_step(name, setting) for name in names}
    times = {name: [] for name in names}
    for number in range(steps + 1):
        for name, step in calls.items():
            start = now()
            step()
            if number:
                times[name].append(now() - start)
    return times


def peak_memory(name: str, setting: Setting) -> float:
    """GB that a process of its own holds at most in three steps."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_peak_of_this_process, (name, setting))


def _peak_of_this_process(name: str, setting: Setting) -> float:
    silence_imports()
    step = make_step(name, setting)
    for _ in range(3):
        step()
    unit = 1 if sys.platform == 'darwin' else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


COLUMNS = ('arch', 'network', 'median_s', 'min_s', 'max_s', 'steps', 'peak_gb', 'commit')


def as_csv(rows: list[dict]) -> str:
    """One line a network, with ``COLUMNS``."""
    rounded = {'median_s', 'min_s', 'max_s', 'peak_gb'}
    lines = ({key: f'{value:.3f}' if key in rounded else value for key, value in row.items()} for row in rows)
    return csv_text(lines, COLUMNS)


def as_markdown(rows: list[dict]) -> str:
    """A line a network: median (fastest to slowest) seconds a step, peak memory, and both relative to mmpretrain's."""
    lines = [
        'Seconds a training step: median (fastest to slowest); peak memory of the process.',
        '',
    ]
    table = []
    found = {(row['arch'], row['network']): row for row in rows}

    def ratio(row: dict, other: str, key: str) -> str:
        reference = found.get((row['arch'], other))
        return f'{row[key] / reference[key]:.2f}' if reference else ''

    for row in rows:
        seconds = f'{row["median_s"]:.2f} ({row["min_s"]:.2f} to {row["max_s"]:.2f})'
        times = (ratio(row, other, 'median_s') for other in ('mmpretrain', 'mmpretrain channels_last'))
        memory = ratio(row, 'mmpretrain', 'peak_gb')
        table.append((row['arch'], row['network'], seconds, f'{row["peak_gb"]:.2f}', *times, memory))
    ratios = 'time / mmpretrain', 'time / mmpretrain channels_last', 'memory / mmpretrain'
    return '\n'.join([*lines, markdown_table(('', 'network', 's', 'GB', *ratios), table), ''])


def draw(rows: list[dict], title: str, path: Path) -> None:
    """Bars of time and of memory, a group for each variant."""
    from mobileone_ext.pictures import picture

    archs = list(dict.fromkeys(row['arch'] for row in rows))
    names = list(dict.fromkeys(row['network'] for row in rows))
    with picture(path, (12, 4.5), dpi=120) as figure:
        both = figure.subplots(1, 2)
        for axes, key, label in zip(both, ('median_s', 'peak_gb'), ('seconds a training step', 'peak memory, GB')):
            width = 0.85 / len(names)
            for index, name in enumerate(names):
                bars = {archs.index(row['arch']) + index * width: row[key] for row in rows if row['network'] == name}
                axes.bar(list(bars), list(bars.values()), width, align='edge', label=name)
            axes.set_xticks([at + 0.425 for at in range(len(archs))], archs)
            axes.set_ylabel(label)
            axes.grid(alpha=0.3, axis='y')
        both[0].legend(fontsize=8)
        figure.suptitle(title, fontsize=8)
