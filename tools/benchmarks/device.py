"""All that a GPU is asked, in one command of ten minutes: are the kernels right, how are they tiled best, what takes
the time of a step, and whole steps at 32 and 256 images, which write the table of ``train_impl='auto'``.

Each part is a process of its own with a share of the time: one that fails or takes too long costs the others nothing.
``--dry-run`` does everything on a CPU with small maps, where times mean nothing.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from mobileone_ext.files import write_text
from mobileone_ext.provenance import machine
from mobileone_ext.text import markdown_table

from .blocks import Precision
from .gpu import TYPES, check_device

PARTS = ('tests', 'tiles', 'profile', 'steps of 32', 'steps of 256')
INTERPRETED = PARTS[:2]  # in a dry run; the others would take an hour, and go by torch's operators


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--amp', choices=('bf16', 'fp16'), default='bf16', help='mixed precision of this type (bf16)')
    parser.add_argument('--minutes', type=float, default=10, metavar='N', help='for all parts together (10)')
    parser.add_argument(
        '--only', nargs='+', choices=PARTS, default=PARTS, metavar='PART', help=f'of {", ".join(PARTS)}'
    )
    parser.add_argument('--dry-run', action='store_true', help='everything but the GPU: on a CPU, with small maps')
    parser.add_argument(
        '--out', default='work_dirs/device', metavar='DIR', help='a folder for each part, and summary.md'
    )


def run(args: argparse.Namespace) -> None:
    """Run the parts one after the other; print and write what became of them.

    Raises:
        ValueError: without a GPU, or if a part failed, after all others.
    """
    if not args.dry_run:
        check_device(Precision('cuda', TYPES[args.amp]))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    rows = []
    for number, part in enumerate(args.only):
        start = time.monotonic()
        share = (end - start) / (len(args.only) - number)
        if number == 0 and len(args.only) > 1:
            share *= 2  # tests compile most of the kernels
        print(f'{part}: at most {share:.0f} s', flush=True)
        outcome = _run(
            command(part, args), out / f'{part.replace(" ", "_")}.log', share, args.dry_run and part in INTERPRETED
        )
        rows.append((part, outcome, f'{time.monotonic() - start:.0f}'))
    name = 'dry run on a CPU' if args.dry_run else torch.cuda.get_device_name()
    text = f'{name}; {machine("torch")}\n\n{markdown_table(("part", "outcome", "s"), rows)}\n'
    print(text)
    write_text(text, out / 'summary.md')
    print(f'written: {out}/, a log for each part')
    failed = [part for part, outcome, _ in rows if outcome != 'done']
    if failed:
        raise ValueError(f'{", ".join(failed)}: see the logs in {out}')


def command(part: str, args: argparse.Namespace) -> list[str]:
    """The command line of a part."""
    own = [sys.executable, '-m', 'benchmarks.device_kernels', part, '--amp', args.amp, '--out', args.out]
    if part == 'tests':
        few = ['-k', 'plane or stem'] if args.dry_run else []
        return [sys.executable, '-m', 'pytest', '-q', '-p', 'no:randomly', 'tests/moments/test_triton.py', *few]
    if part in ('tiles', 'profile'):
        return own + ['--dry-run'] * args.dry_run
    batch = part.split()[-1]
    size = ['--image-size', '32', '--steps', '1', '--dry-run'] if args.dry_run else ['--device', 'cuda']
    ways = (
        ['--ways', 'eager', '--networks', 'moments', 'fused']
        if args.dry_run
        else ['--ways', 'eager', 'compiled', 'graphs']
    )
    batch, out = '2' if args.dry_run else batch, f'{args.out}/{part.replace(" ", "_")}'
    tool = [sys.executable, 'tools/benchmark.py', 'train', '--amp', args.amp, '--batch-size', batch, '--out', out]
    return tool + size + ways


def _run(line: list[str], log: Path, seconds: float, interpreted: bool) -> str:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / 'tools'), str(root), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=paths, **(dict(TRITON_INTERPRET='1') if interpreted else {}))
    with open(log, 'w', encoding='utf-8') as file:
        try:
            code = subprocess.run(line, stdout=file, stderr=file, env=env, cwd=root, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return f'ended after {seconds:.0f} s'
    return 'done' if code == 0 else f'failed ({code})'
