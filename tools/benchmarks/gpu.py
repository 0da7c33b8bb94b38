"""Training steps in mixed precision on a GPU, and the dry run of that on a CPU.

First, block by block: errors against float64, then time beside the memory traffic on paper (traffic.py). Then whole
steps of the networks, in turns, eager and under torch.compile. Where moments pay goes to a table that
``train_impl='auto'`` reads.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from mobileone_ext.files import check_writable, csv_text, write_text
from mobileone_ext.moments import autotune
from mobileone_ext.provenance import machine, processor, versions
from mobileone_ext.text import make_console

from . import report
from .blocks import Precision, measure_blocks, pays_rows
from .classifier import CLASSES
from .networks import NETWORKS
from .traffic import blocks, network_bytes
from .turns import Contestant, measure

DEFAULT = ('branches', 'moments', 'fused', 'mmpretrain', 'mmpretrain channels_last', 'timm')
WAYS = ('eager', 'compiled', 'graphs')
TYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16, None: torch.float32}


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables and write them with their picture to ``args.out``."""
    precision = Precision(args.device, TYPES[args.amp])
    check_device(precision)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / 'training.csv')
    name = processor() if args.device == 'cpu' else torch.cuda.get_device_name()
    head = (
        f'{name}; {machine("torch", "mmpretrain", "timm")}; batch {args.batch}, {args.size} px, {args.amp or "float32"}'
    )
    if args.dry_run:
        head = f'dry run, whose times mean nothing: {head}'
    print(head)

    wraps = {way: _wrap(way, args.dry_run) for way in args.ways}
    console = make_console(stderr=True)
    geometries = {arch: blocks(arch, args.size) for arch in args.archs}
    distinct = [*dict.fromkeys(geometry for found in geometries.values() for geometry in found)]
    block_rows = measure_blocks(distinct, args.batch, precision, wraps, args.steps, console.print)
    rows = []
    for arch in args.archs:
        console.print(arch)
        rows += measure_networks(arch, args, precision, wraps)
    traffic = {
        arch: {i: network_bytes(g, args.batch, i) / 1e9 for i in report.TRAFFIC} for arch, g in geometries.items()
    }

    text = '\n'.join([head, '', report.networks(rows), report.traffic(traffic, args.batch), report.blocks(block_rows)])
    print(text)
    write_text(csv_text(rows, [*rows[0]]), out / 'training.csv')
    write_text(csv_text(block_rows, [*block_rows[0]]), out / 'blocks.csv')
    write_text(text, out / 'training.md')
    report.draw(rows, block_rows, head, out / 'training.png')
    table = pays_rows(block_rows, args.batch, precision.dtype)
    autotune.write(table, name, versions('torch'), out / 'autotune.json')
    print(f'written: {out}/training.csv, blocks.csv, training.md, training.png, autotune.json')
    if not args.dry_run:
        autotune.write(autotune.merge(table, autotune.path(name), name), name, versions('torch'), autotune.path(name))
        print(f"{autotune.path(name)}: from now on train_impl='auto' follows it on {name}")


def _wrap(way: str, dry_run: bool) -> Callable:
    """What a module becomes; a dry run generates no code."""
    if way == 'eager':
        return lambda module: module
    if dry_run:
        return partial(torch.compile, backend='aot_eager', dynamic=False)
    return partial(torch.compile, mode='reduce-overhead' if way == 'graphs' else 'default', dynamic=False)


def check_device(precision: Precision) -> None:
    """Refuse what is not there.

    Raises:
        ValueError: without a GPU that can do this.
    """
    if precision.device == 'cpu':
        return
    if not torch.cuda.is_available():
        raise ValueError('--device cuda: torch finds no GPU here; --device cpu --dry-run tries everything but the GPU')
    if precision.dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        raise ValueError(f'--amp bf16: {torch.cuda.get_device_name()} has no bfloat16; --amp fp16 is what it can do')


def measure_networks(arch: str, args: argparse.Namespace, precision: Precision, wraps: dict) -> list[dict]:
    """A row for each network and way."""
    contestants = {
        (name, way): Contestant(
            partial(make_step, name, arch, args.batch, args.size, precision, wrap), precision.device
        )
        for way, wrap in wraps.items()
        for name in args.networks
    }
    torch.compiler.reset()
    measure([*contestants.values()], args.steps)
    return [dict(arch=arch, network=name, way=way, **c.summary()) for (name, way), c in contestants.items()]


def make_step(name: str, arch: str, batch: int, size: int, precision: Precision, wrap: Callable) -> Callable[[], None]:
    """A function that takes one whole optimizer step; ``wrap`` compiles the network, or not."""
    torch.manual_seed(0)
    net = wrap(NETWORKS[name](arch).train().to(precision.device))
    images = torch.randn(batch, 3, size, size).to(precision.device)
    labels = torch.randint(CLASSES, (batch,)).to(precision.device)
    # As good as no learning: a fused network of random weights has no batch norm to hold it.
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(precision.device, enabled=precision.dtype == torch.float16)

    def step() -> None:
        optimizer.zero_grad()
        with precision.autocast():
            loss = F.cross_entropy(net(images), labels, label_smoothing=0.1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
