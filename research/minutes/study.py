"""What do minutes of training buy, and which part of the recipe buys it? The study behind ``python -m
research.minutes``, fixed before its first run.

Question: in the same minutes of a core, this project's configuration of S0 from scratch gets further on Imagenette than
mmpretrain's. How much of that is due to the branches' moments, to the memory format and the loader, to images that
grow, and does the network without extra branches get further still?

Arms (``ARMS``), each one change away from this project's (the first):

    this project                          all branches as one convolution, channels_last, images that grow
    images of full size                   no curriculum
    mmpretrain's network                  each branch by itself; format, loader and growing images are this project's
    mmpretrain as shipped                 that, and contiguous, mmpretrain's loader, images of full size
    plain network                         one convolution a block, no skip, no scale; all else is this project's

A run: S0, Imagenette at 64 px, every third training photo (3,157), batches of 64, the schedule of ``BASE`` over as many
epochs of 50 steps as take five minutes of one core. Averaged weights look back over the same share of every run
(``HORIZON``). Seeds 0, 1, 2, seed by seed over all arms: 15 runs, an hour and a half of one core.

Epochs: a step of these arms took 0.41, 0.44, 1.18, 1.21 and 0.23 s of processor time (AMD EPYC with AVX-512 and VNNI,
one thread, with other work on the machine; means of 14 steps, growing images among them where an arm has them).

Measure: processor minutes of the training process, which loads its photos itself (``num_workers=0``): validation and
test are left out. Top-1 of the averaged weights, fused, on all 3,925 validation photos. Each arm is compared with the
first: Welch's interval of 98.75 %, so that all four hold together at 95 %. A difference is called one where it leaves
out 0. With a deviation of 1.2 points within each arm such an interval is 4 to 5 points to each side.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, cycle, product
from pathlib import Path

from mmengine.config import Config
from scipy import stats

from mobileone_ext.ablation.ablate import Run, config_text, execute, read_report
from mobileone_ext.ablation.report import environment
from mobileone_ext.ablation.study import folder_name
from mobileone_ext.checkpoints.training import history
from mobileone_ext.config import check_config, override
from mobileone_ext.deploy.fuse import fuses
from mobileone_ext.engine.train import latest_checkpoint
from mobileone_ext.files import write_text
from mobileone_ext.pictures import BLUE, ORANGE, picture
from mobileone_ext.provenance import processor
from mobileone_ext.text import markdown_table
from research.training import append_row, mean_and_std, read_rows

from .clock import SCALAR

BASE = 'configs/mobileone_s0_imagenette_64px.py'
ROWS = 'runs.csv'
SEEDS = (0, 1, 2)
GUESSING = 10  # percent, among Imagenette's classes
STEPS_OF_AN_EPOCH = 50
HORIZON = 1 / 15  # of a run: what averaged weights look back over
CONFIDENCE = 1 - 0.05 / 4
GREEN = '#009e73'  # beside the two of pictures.py, of the same palette

_NETWORK = {'model.backbone': dict(type='mmpretrain.MobileOne', arch='s0', out_indices=(3,))}
_FULL_SIZE = {'custom_hooks.CurriculumHook': None}
_LOADER = {
    'train_dataloader.dataset.type': 'CustomDataset',
    'train_dataloader.dataset.pipeline': [
        dict(type='LoadImageFromFile'),
        dict(type='RandomResizedCrop', scale=64, backend='pillow'),
        dict(type='RandomFlip', prob=0.5, direction='horizontal'),
        dict(type='PackInputs'),
    ],
}
_PLAIN = {
    'model.backbone.num_conv_branches': 1,
    'model.backbone.use_skip': False,
    'model.backbone.use_scale': False,
}
# Name, epochs that take five minutes of a core, overrides.
ARMS: dict[str, tuple[int, dict]] = {
    'this project': (15, {}),
    'images of full size': (14, _FULL_SIZE),
    "mmpretrain's network": (5, _NETWORK),
    'mmpretrain as shipped': (5, {**_NETWORK, **_FULL_SIZE, **_LOADER, 'default_hooks.channels_last': None}),
    'plain network': (25, _PLAIN),
}


def plan(base: Config, out: Path) -> Iterator[Run]:
    """Every arm with every seed, in the order above; ``base`` knows where the data lie."""
    for seed, (name, (epochs, overrides)) in product(SEEDS, ARMS.items()):
        config = override(base, shared(base, epochs) | overrides | {'randomness': dict(seed=seed)})
        check_config(config)
        yield Run(name, seed, config_text(config), out / folder_name(name) / f'seed{seed}', fuses(config))


def shared(base: Config, epochs: int) -> dict:
    """The overrides of every arm, for a run of so many epochs, which validates five times."""
    own_process = dict(num_workers=0, persistent_workers=False)
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': max(1, epochs // 5),
        'custom_imports.imports': [*base.custom_imports['imports'], 'research.minutes.clock'],
        'custom_hooks.ProcessorTimeHook': dict(type='mobileone_ext.ProcessorTimeHook'),
        'custom_hooks.EMAHook.momentum': 1 / (HORIZON * epochs * STEPS_OF_AN_EPOCH),
        'default_hooks.checkpoint.max_keep_ckpts': 1,
        **{f'train_dataloader.{key}': value for key, value in own_process.items()},
    }


def run_all(runs: Iterable[Run], path: Path) -> None:
    """Do those of ``runs`` that the CSV file ``path`` doesn't have, and add a row for each.

    Raises:
        ValueError: if one fails.
    """
    done = {(row['arm'], row['seed']) for row in read_rows(path)}
    for run in runs:
        if (run.variant, str(run.seed)) in done:
            continue
        print(f'{run.variant}, seed {run.seed}: {run.folder}/run.log', flush=True)
        reason = execute(run, 'none', 1, validate=True)
        if reason:
            raise ValueError(f'{run.variant}, seed {run.seed}: {reason}')
        row = measured(run)
        append_row(path, row)
        print(f'    {row["minutes"]} minutes, top-1 {row["top1"]}', flush=True)


def measured(run: Run) -> dict:
    """A row: processor minutes of training, top-1 of the test, and the curve as ``minutes:top-1`` pairs."""
    metrics = read_report(run)
    curve, minutes = validations(latest_checkpoint(run.folder)[1], Config.fromfile(run.config_file))
    return dict(
        arm=run.variant,
        seed=run.seed,
        minutes=f'{minutes:.2f}',
        top1=f'{metrics["top1_after"]:.2f}',
        num_images=f'{metrics["num_images"]:g}',
        curve=' '.join(f'{minutes:.2f}:{top1:.2f}' for minutes, top1 in curve),
        processor=processor(),
    )


def validations(checkpoint: dict, config: Config) -> tuple[list[tuple[float, float]], float]:
    """(Processor minutes, top-1) of each validation of the run of ``config`` that left ``checkpoint``; minutes in all.

    A run that doesn't validate after its last epoch has no point there.
    """
    interval = config.train_cfg.val_interval * checkpoint['meta']['run']['steps_per_epoch']
    minutes = list(accumulate(seconds / 60 for seconds in history(checkpoint, SCALAR)))
    values = history(checkpoint, 'val/accuracy/top1')
    return [(minutes[min(index * interval, len(minutes)) - 1], v) for index, v in enumerate(values, 1)], minutes[-1]


def report(out: Path) -> str:
    """Draw minutes.png, write table.md; its text."""
    rows = read_rows(out / ROWS)
    text = table(rows)
    write_text(f'{text}\n\n{environment()}\n', out / 'table.md')
    plot(rows, out / 'minutes.png')
    return text


def table(rows: Sequence[dict]) -> str:
    """Markdown: a line an arm, its mean and deviation, and its difference from the first where all seeds are there."""
    lines, first = [], values(rows, next(iter(ARMS)))
    for name, (epochs, _) in ARMS.items():
        found = values(rows, name)
        if not found:
            continue
        minutes = statistics.mean(float(row['minutes']) for row in rows if row['arm'] == name)
        difference = ''
        if found != first and len(found) == len(first) == len(SEEDS):
            low, high = stats.ttest_ind(found, first, equal_var=False).confidence_interval(CONFIDENCE)
            difference = f'{statistics.mean(found) - statistics.mean(first):+.2f} ({low:.2f} to {high:.2f})'
        each = ', '.join(f'{value:.2f}' for value in found)
        steps = epochs * STEPS_OF_AN_EPOCH
        lines.append((name, steps, len(found), f'{minutes:.1f}', *mean_and_std(found), each, difference))
    head = ('arm', 'steps', 'n', 'minutes', 'top-1 mean', 'std', 'each seed', 'less the first (98.75 % interval)')
    return markdown_table(head, lines)


def values(rows: Sequence[dict], arm: str) -> list[float]:
    """Top-1 of each finished seed."""
    return [float(row['top1']) for row in rows if row['arm'] == arm]


def plot(rows: Sequence[dict], path: Path) -> None:
    """A line a run, a color and a mark an arm; what the test found at its end is a mark."""
    names = list(dict.fromkeys(row['arm'] for row in rows))
    dots: list = []
    with picture(path, (7, 4), names, dpi=120) as figure:
        axis = figure.subplots()
        looks = [(BLUE, '-', 'o'), (ORANGE, '--', 's'), ('black', ':', '^'), ('gray', '-.', 'v'), (GREEN, '-', 'D')]
        for (color, line, mark), name in zip(cycle(looks), names):
            for row in (row for row in rows if row['arm'] == name):
                points = [tuple(map(float, pair.split(':'))) for pair in row['curve'].split()]
                axis.plot(*zip(*points), line, color=color, alpha=0.6)
                dot = axis.plot([float(row['minutes'])], [float(row['top1'])], mark, color=color)
            dots += dot
        axis.axhline(GUESSING, color='gray', linewidth=1)
        axis.annotate('guessing', (0, GUESSING), (4, -12), textcoords='offset points', color='gray')
        axis.set(xlabel='processor minutes of training', ylabel='top-1 in %: validations, and the test as a mark')
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(dots, names)
