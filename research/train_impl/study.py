"""Does S0 learn the same from moments as from its branches? The study behind ``python -m research.train_impl``.

The same weights, images and crops for each arm, float32, batch 32, SGD with a warm-up
and a cosine. Rounding alone drives two such runs apart, step by step; how far, the
last arm shows:

    branches      every branch by itself, in channels_last memory
    moments       one convolution a block, mobileone_ext/moments.py, in the same memory
    contiguous    branches again, in NCHW memory, where the same sums round otherwise
"""

import csv
import statistics
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import initialize
from torch import nn
from torchvision.transforms import v2

from mobileone_ext.backbone import MobileOne
from mobileone_ext.files import write_atomically
from research.unfuse.study import BATCH_SIZE, WEIGHT_DECAY, Images, classify, lr_factor, predictions

ARMS = ('branches', 'moments', 'contiguous')
WINDOW = 20  # steps of the running mean
COLUMNS = ('arm', 'seed', 'top1', 'losses')

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
    if not path.exists():
        path.write_text(','.join(COLUMNS) + '\n')
    done = read_runs(path)
    for seed, arm in product(seeds, ARMS):
        if (arm, seed) not in done:
            top1, losses = learn(arm, seed, training)
            with open(path, 'a', newline='') as file:
                csv.writer(file, lineterminator='\n').writerow((arm, seed, f'{top1:.2f}', ' '.join(map(repr, losses))))
            print(f'{arm}, seed {seed}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, top-1 {top1:.2f} %', flush=True)


def learn(arm: str, seed: int, training: Training) -> tuple[float, list[float]]:
    """Top-1 (percent) on the validation images after training, and the loss of every step."""
    start, train, val, lr, steps, image_size = training
    torch.manual_seed(seed)
    backbone = MobileOne('s0', train_impl='moments' if arm == 'moments' else 'branches')
    if start is None:
        initialize(backbone, backbone.init_cfg)
    else:
        backbone.load_state_dict(start.state_dict())
    layer = nn.Linear(backbone.stage4[-1].out_channels, train.num_classes)
    memory_format = torch.contiguous_format if arm == 'contiguous' else torch.channels_last
    backbone.train().to(memory_format=memory_format)
    head = (layer.weight, layer.bias)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head], lr, momentum=0.9, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, steps))
    transform = v2.Compose([v2.RandomResizedCrop(image_size, (0.25, 1)), v2.RandomHorizontalFlip()])
    losses = []
    torch.manual_seed(seed)  # what initialization drew is no matter
    while len(losses) < steps:
        for part in torch.randperm(len(train.images)).split(BATCH_SIZE)[: steps - len(losses)]:
            images = train.batch(part, transform).contiguous(memory_format=memory_format)
            loss = F.cross_entropy(classify(backbone, head, images), train.labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
    return 100 * float((predictions(backbone, head, val, image_size) == val.labels).double().mean()), losses


def read_runs(path: Path) -> Runs:
    """The finished runs in ``path``."""
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    return {(r['arm'], int(r['seed'])): (float(r['top1']), [float(x) for x in r['losses'].split()]) for r in rows}


def running_mean(losses: list[float]) -> list[float]:
    """Means of ``WINDOW`` steps in a row, one for each place where they fit."""
    window = min(WINDOW, len(losses))
    return [statistics.fmean(losses[i : i + window]) for i in range(len(losses) - window + 1)]


def apart(losses: list[float], others: list[float]) -> list[float]:
    """Percent by which each of ``others`` differs from its counterpart."""
    return [100 * abs(other / loss - 1) for loss, other in zip(losses, others)]


def table(runs: Runs) -> str:
    """Markdown: how far each arm's losses are from those of ``branches``, and every arm's top-1."""
    seeds = sorted({seed for arm, seed in runs if all((other, seed) in runs for other in ARMS)})
    lines = [
        f'Losses against those of `branches`, percent apart; largest of the running means of {WINDOW} steps, '
        'and of single steps.',
        '',
        '| arm | seed | running mean: largest | single steps: first 10 | median | largest | top-1 |',
        '|---|---|---|---|---|---|---|',
    ]
    for arm, seed in product(ARMS, seeds):
        top1, losses = runs[arm, seed]
        cells = ['-'] * 4
        if arm != 'branches':
            reference = runs['branches', seed][1]
            smooth, single = apart(running_mean(reference), running_mean(losses)), apart(reference, losses)
            cells = [
                f'{value:.2g} %' for value in (max(smooth), max(single[:10]), statistics.median(single), max(single))
            ]
        lines.append(f'| {arm} | {seed} | {" | ".join(cells)} | {top1:.1f} % |')
    lines += ['', '| arm | n | top-1 mean | std |', '|---|---|---|---|']
    for arm in ARMS:
        values = [runs[arm, seed][0] for seed in seeds]
        std = f'{statistics.stdev(values):.2f}' if len(values) > 1 else '-'
        lines.append(f'| {arm} | {len(values)} | {statistics.fmean(values):.2f} | {std} |')
    return '\n'.join(lines)


def draw(runs: Runs, path: Path) -> None:
    """The running means of every run, and how far from ``branches`` each arm's are."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout='constrained')
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
            bottom.plot(steps, apart(running_mean(runs['branches', seed][1]), smooth), **options)
    top.set(ylabel=f'loss, mean of {WINDOW} steps')
    bottom.set(ylabel='apart from branches, %', xlabel='step', yscale='log')
    bottom.axhline(1, color='black', linewidth=0.8)
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.legend()
    with write_atomically(path) as part:
        figure.savefig(part, dpi=120, format='png')
    plt.close(figure)
