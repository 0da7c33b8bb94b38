"""What a training step asks of the host: processor time and calls of torch's operators, forward and backward.

S0's blocks 16 channels wide leave next to nothing but the host's work; at S0's own widths the algebra on channels is
added. Images are so small (2 of 64 px) that the maps count for nothing.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mobileone_ext.arch import ARCHS, BASE_WIDTHS
from mobileone_ext.backbone import MobileOne
from mobileone_ext.files import check_writable, csv_text, write_text
from mobileone_ext.provenance import machine
from mobileone_ext.text import markdown_table

NARROW = dict(ARCHS['s0'], width_factor=[16 / width for width in BASE_WIDTHS])
WIDTHS = {'16 channels': NARROW, "S0's own": 's0'}
NETWORKS = {'branches': dict(train_impl='branches'), 'moments': dict(train_impl='moments'), 'fused': dict(deploy=True)}
COLUMNS = ('widths', 'network', 'calls', 'min_ms', 'median_ms', 'steps')


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


def run(steps: int, out: str) -> None:
    """Measure in turns on one thread; print the table and write it as host.csv to the folder ``out``."""
    path = Path(out) / 'host.csv'
    path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    torch.set_num_threads(1)
    rows = []
    for widths, arch in WIDTHS.items():
        networks = {name: make_step(arch, **options) for name, options in NETWORKS.items()}
        times: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(steps):
            for name, step in networks.items():
                start = time.process_time()
                step()
                times[name].append(1e3 * (time.process_time() - start))
        rows += [_row(widths, name, networks[name], sorted(times[name])) for name in networks]
    print(f'{machine("torch")}; batch 2, 64 px, one thread, processor time of forward and backward\n')
    print(markdown_table(COLUMNS, [row.values() for row in rows]))
    write_text(csv_text(rows, COLUMNS), path)
    print(f'written: {path}')


def _row(widths: str, network: str, step: Callable[[], None], times: Sequence[float]) -> dict:
    values = widths, network, count_calls(step), f'{times[0]:.1f}', f'{times[len(times) // 2]:.1f}', len(times)
    return dict(zip(COLUMNS, values))
