"""Does S0 learn the same from moments as from its branches? The study behind ``python -m research.train_impl``.

The same weights, images and crops for each arm, float32, batch 32, SGD with a warm-up
and a cosine. Rounding alone drives two such runs apart, step by step; how far, the
last arm shows:

    branches      every branch by itself, in channels_last memory
    moments       one convolution a block, mobileone_ext/moments/, in the same memory
    contiguous    branches again, in NCHW memory, where the same sums round otherwise
"""

import statistics
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.model import initialize
from torch import nn

from mobileone_ext.backbone import MobileOne
from mobileone_ext.text import markdown_table
from research.training import Images, append_row, fit, mean_and_std, new_head, read_rows, top1

ARMS = ('branches', 'moments', 'contiguous')
WINDOW = 20  # steps of the running mean

Runs = dict[tuple[str, int], tuple[float, list[float]]]  # (arm, seed) -> top-1 and the loss of every step


class Training(NamedTuple):
    """What all runs share: the backbone to start from (None: from scratch), images, and the recipe."""

    start: nn.Module | None
    train: Images
    val: Images
    lr: float
    steps: int
    image_size: int


def run_all(training: Training, path: Path, seeds: Iterable[int]) -> None:
    """Run what is not yet in the CSV at ``path``, a row each; stop it whenever you like and call it again."""
    done = read_runs(path)
    for seed, arm in product(seeds, ARMS):
        if (arm, seed) not in done:
            accuracy, losses = learn(arm, seed, training)
            append_row(path, dict(arm=arm, seed=seed, top1=f'{accuracy:.2f}', losses=' '.join(map(repr, losses))))
            print(f'{arm}, seed {seed}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, top-1 {accuracy:.2f} %', flush=True)


def learn(arm: str, seed: int, training: Training) -> tuple[float, list[float]]:
    """Top-1 (percent) on the validation images after training, and the loss of every step."""
    start, train, val, lr, steps, image_size = training
    torch.manual_seed(seed)
    backbone = MobileOne('s0', train_impl='moments' if arm == 'moments' else 'branches')
    if start is None:
        initialize(backbone, backbone.init_cfg)
    else:
        backbone.load_state_dict(start.state_dict())
    head = new_head(backbone, train.num_classes)
    torch.manual_seed(seed)  # what initialization drew is no matter
    memory_format = torch.contiguous_format if arm == 'contiguous' else torch.channels_last
    losses = fit(backbone, head, train, lr, steps, image_size, memory_format)
    return top1(backbone, head, val, image_size), losses


def read_runs(path: Path) -> Runs:
    """The finished runs in ``path``."""
    return {
        (row['arm'], int(row['seed'])): (float(row['top1']), [float(loss) for loss in row['losses'].split()])
        for row in read_rows(path)
    }


def running_mean(losses: list[float]) -> list[float]:
    """Means of ``WINDOW`` steps in a row, one for each place where they fit."""
    window = min(WINDOW, len(losses))
    return [statistics.fmean(losses[i : i + window]) for i in range(len(losses) - window + 1)]


def percent_difference(losses: list[float], others: list[float]) -> list[float]:
    """Percent by which each of ``others`` differs from its counterpart."""
    return [100 * abs(other / loss - 1) for loss, other in zip(losses, others)]


def table(runs: Runs) -> str:
    """Markdown: how far each arm's losses are from those of ``branches``, and every arm's top-1."""
    seeds = sorted({seed for arm, seed in runs if all((other, seed) in runs for other in ARMS)})
    lines = [
        f'Losses against those of `branches`, percent apart; largest of the running means of {WINDOW} steps, '
        'and of single steps.',
        '',
    ]
    differences = []
    for arm, seed in product(ARMS, seeds):
        accuracy, losses = runs[arm, seed]
        cells = ['-'] * 4
        if arm != 'branches':
            reference = runs['branches', seed][1]
            single = percent_difference(reference, losses)
            smooth = percent_difference(running_mean(reference), running_mean(losses))
            cells = [
                f'{value:.2g} %' for value in (max(smooth), max(single[:10]), statistics.median(single), max(single))
            ]
        differences.append((arm, seed, *cells, f'{accuracy:.1f} %'))
    top1 = {arm: [runs[arm, seed][0] for seed in seeds] for arm in ARMS}
    lines += [
        markdown_table(
            ('arm', 'seed', 'running mean: largest', 'single steps: first 10', 'median', 'largest', 'top-1'),
            differences,
        ),
        '',
        markdown_table(
            ('arm', 'n', 'top-1 mean', 'std'),
            ((arm, len(values), *mean_and_std(values)) for arm, values in top1.items()),
        ),
    ]
    return '\n'.join(lines)


def draw(runs: Runs, path: Path) -> None:
    """The running means of every run, and how far from ``branches`` each arm's are."""
    from mobileone_ext.pictures import picture

    with picture(path, (8, 7), dpi=120) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        styles = {
            'branches': ('tab:blue', '-'),
            'moments': ('tab:red', '--'),
            'contiguous': ('tab:gray', ':'),
        }
        labeled = set()
        for (arm, seed), (_, losses) in sorted(runs.items(), key=lambda item: list(ARMS).index(item[0][0])):
            color, line = styles[arm]
            options = dict(color=color, linestyle=line, label=None if arm in labeled else arm)
            labeled.add(arm)
            smooth = running_mean(losses)
            steps = range(len(losses) - len(smooth) + 1, len(losses) + 1)
            top.plot(steps, smooth, **options)
            if arm != 'branches' and ('branches', seed) in runs:
                bottom.plot(steps, percent_difference(running_mean(runs['branches', seed][1]), smooth), **options)
        top.set(ylabel=f'loss, mean of {WINDOW} steps')
        bottom.set(ylabel='apart from branches, %', xlabel='step', yscale='log')
        bottom.yaxis.set_major_formatter('{x:g}')
        bottom.axhline(1, color='black', linewidth=0.8)
        for axes in (top, bottom):
            axes.grid(alpha=0.3)
            axes.legend()
