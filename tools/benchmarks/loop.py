"""A config's training loop from its files: what the loader adds to a step, and what its workers take.

In turns a step on a batch that is there, and one with the next batch fetched from the loader; CPU seconds of this
process, which waits for nothing in them, and of the loader's workers. On a GPU the clock's seconds count.
"""

import argparse
import copy
import os
import time
from pathlib import Path
from statistics import median

import torch
from mmengine.optim import OptimWrapper
from torch import nn
from torch.utils.data import DataLoader

from mobileone_ext import cli
from mobileone_ext.config import load_config
from mobileone_ext.data.check import prepare_data
from mobileone_ext.deploy.fuse import build_model
from mobileone_ext.engine.runner import Runner
from mobileone_ext.provenance import machine
from mobileone_ext.text import markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add_config_arguments(parser)
    parser.add_argument('--steps', type=cli.positive, default=12, metavar='N', help='of each kind (12)')


def run(args: argparse.Namespace) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    config = load_config(args.config, args.cfg_options)
    prepare_data(config, 'train_dataloader')
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    if len(loader) < args.steps + 2:
        raise ValueError(
            f'--steps {args.steps}: an epoch of this config has {len(loader)} batches, two more are needed'
        )
    model = build_model(config, 'branched').train().to(memory_format=torch.channels_last)
    print(f'{machine("torch", "mmpretrain")}; one thread, {loader.num_workers} workers, {args.steps} steps in turns\n')
    print(as_markdown(measure(model, loader, args.steps)))


def measure(model: nn.Module, loader: DataLoader, steps: int) -> dict[str, float]:
    """CPU ms an image of the parts of a step (medians; of the workers the mean), and the seconds waited a step."""
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9))
    batches = iter(loader)
    batch = next(batches)
    times = {name: [] for name in ('alone', 'fetching', 'preprocessor', 'waited')}
    model.train_step(copy.deepcopy(batch), wrapper)
    before = workers_seconds()
    for _ in range(steps):
        start = time.process_time()
        model.train_step(batch, wrapper)
        times['alone'].append(time.process_time() - start)
        start, clock = time.process_time(), time.perf_counter()
        batch = next(batches)
        times['waited'].append(time.perf_counter() - clock)
        fetched = time.process_time()
        model.data_preprocessor(copy.copy(batch), True)
        prepared = time.process_time()
        times['preprocessor'].append(prepared - fetched)
        model.train_step(batch, wrapper)
        times['fetching'].append(time.process_time() - prepared + fetched - start)
    size = len(batch['inputs'])
    result = {name: median(values) / size * 1e3 for name, values in times.items() if name != 'waited'}
    workers = (workers_seconds() - before) / steps / size * 1e3
    return dict(result, workers=workers, waited=median(times['waited']), batch=size)


def workers_seconds() -> float:
    """CPU seconds that the living children of this process have taken; 0 where /proc does not say."""
    ticks, me = 0, os.getpid()
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rsplit(')', 1)[1].split()
        except OSError:  # gone since
            continue
        if int(fields[1]) == me:
            ticks += int(fields[11]) + int(fields[12])  # user's and system's
    return ticks / os.sysconf('SC_CLK_TCK')


def as_markdown(times: dict[str, float]) -> str:
    rows = {
        'step alone': 'alone',
        'step and fetching its batch': 'fetching',
        'of it, data preprocessor': 'preprocessor',
        'all workers': 'workers',
    }
    table = markdown_table(('CPU ms an image', ''), ((name, f'{times[key]:.2f}') for name, key in rows.items()))
    return f'{table}\n\nWaited {times["waited"]:.4f} s for a batch of {times["batch"]}, median.'
