"""What a training step asks of the host: processor time and calls of torch's operators, forward and backward.

Blocks 16 channels wide leave next to nothing but the host's work; at a network's own widths the algebra on channels is
added. Images are so small (2 of 64 px) that the maps count for nothing.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import torch
from mmengine.utils import get_git_hash
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mobileone_ext.arch import ARCHS, BASE_WIDTHS
from mobileone_ext.backbone import MobileOne
from mobileone_ext.files import check_writable, csv_text, write_text
from mobileone_ext.moments import compiled
from mobileone_ext.provenance import machine
from mobileone_ext.text import markdown_table

NETWORKS = {'branches': dict(train_impl='branches'), 'moments': dict(train_impl='moments'), 'fused': dict(deploy=True)}
# With a block's algebra by torch's operators, as on a GPU.
BY_TORCH = 'moments, algebra by torch'
COLUMNS = ('arch', 'widths', 'network', 'calls', 'min_ms', 'median_ms', 'steps', 'commit')


def narrow(arch: str) -> dict:
    """``arch`` with blocks of 16 channels."""
    return dict(ARCHS[arch], width_factor=[16 / width for width in BASE_WIDTHS])


def make_step(arch: str | dict, **options) -> Callable[[], None]:
    """A function that goes forward and backward through a backbone in channels_last, once tried."""
    torch.manual_seed(0)
    net: nn.Module = MobileOne(arch, **options).train().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)

    parameters = [*net.parameters()]

    def step() -> None:
        for parameter in parameters:  # as zero_grad, without its walk over modules
            parameter.grad = None
        net(images)[-1].square().mean().backward()

    step()
    return step


def count_calls(step: Callable[[], None]) -> int:
    """The operators that ``step`` calls, less those that they call themselves."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    events = [event for event in profiler.events() if event.name.startswith('aten::')]
    return sum(event.cpu_parent is None or not event.cpu_parent.name.startswith('aten::') for event in events)


def by_torch(step: Callable[[], None]) -> Callable[[], None]:
    """``step`` without the one call of kernels.cpp for a block's algebra; the sums over maps stay compiled."""

    def run() -> None:
        with mock.patch.object(compiled, 'take', lambda x, linears: False):
            step()

    return run


def run(archs: Sequence[str], steps: int, out: str) -> None:
    """Measure in turns on one thread; print the table and write it as host.csv to the folder ``out``."""
    path = Path(out) / 'host.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    torch.set_num_threads(1)
    rows = []
    for arch in archs:
        for widths, network in (('16 channels', narrow(arch)), ('its own', arch)):
            networks = {name: make_step(network, **options) for name, options in NETWORKS.items()}
            networks[BY_TORCH] = by_torch(networks['moments'])
            times: dict[str, list[float]] = {name: [] for name in networks}
            for _ in range(steps):
                for name, step in networks.items():
                    start = time.process_time()
                    step()
                    times[name].append(1e3 * (time.process_time() - start))
            rows += [_row(arch, widths, name, step, sorted(times[name])) for name, step in networks.items()]
    print(f'{machine("torch")}; batch 2, 64 px, one thread, processor time of forward and backward\n')
    print(markdown_table(COLUMNS, [row.values() for row in rows]))
    write_text(csv_text(rows, COLUMNS), path)
    print(f'written: {path}')


def _row(arch: str, widths: str, network: str, step: Callable[[], None], times: Sequence[float]) -> dict:
    middle = f'{times[0]:.1f}', f'{times[len(times) // 2]:.1f}'
    return dict(zip(COLUMNS, (arch, widths, network, count_calls(step), *middle, len(times), get_git_hash(digits=7))))
