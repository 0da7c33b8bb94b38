"""Top-1 over minutes of training: the study behind ``python -m research.minutes``."""

import statistics
from collections.abc import Iterable, Sequence
from itertools import accumulate, cycle
from pathlib import Path

from mmengine.config import Config

from mobileone_ext.ablation.ablate import Run, config_text, execute, read_report
from mobileone_ext.ablation.report import environment
from mobileone_ext.checkpoints.training import history
from mobileone_ext.config import check_config, override
from mobileone_ext.deploy.fuse import fuses
from mobileone_ext.engine.train import latest_checkpoint, use_data
from mobileone_ext.files import write_text
from mobileone_ext.pictures import BLUE, ORANGE, in_picture, picture
from mobileone_ext.text import markdown_table
from research.training import append_row, mean_and_std, read_rows

ROWS = 'runs.csv'
GUESSING = 10  # percent, among Imagenette's classes


def plan(configs: dict[str, Config], seeds: Sequence[int], data: str, out: Path) -> list[Run]:
    """Every config, by name, with every seed, one seed after the other."""
    for config in configs.values():
        use_data(config, data)
        check_config(config)
    runs = []
    for seed in seeds:
        for name, config in configs.items():
            seeded = override(config, {'randomness': dict(seed=seed), 'default_hooks.checkpoint.max_keep_ckpts': 1})
            text = config_text(seeded)
            runs.append(Run(name, seed, text, out / name / f'seed{seed}', fuses(seeded)))
    return runs


def run_all(runs: Iterable[Run], path: Path) -> None:
    """Do those of ``runs`` that the CSV file ``path`` doesn't have, and add a row for each.

    Raises:
        ValueError: if one fails.
    """
    done = {(row['config'], row['seed']) for row in read_rows(path)}
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
    """A row of the table: minutes of training, top-1 of the test, and the curve as ``minutes:top-1`` pairs."""
    metrics = read_report(run)
    curve = validations(latest_checkpoint(run.folder)[1], Config.fromfile(run.config_file))
    return dict(
        config=run.variant,
        seed=run.seed,
        minutes=f'{metrics["training_minutes"]:.2f}',
        top1=f'{metrics["top1_after"]:.2f}',
        num_images=f'{metrics["num_images"]:g}',
        curve=' '.join(f'{minutes:.2f}:{top1:.2f}' for minutes, top1 in curve),
    )


def validations(checkpoint: dict, config: Config, metric: str = 'accuracy/top1') -> list[tuple[float, float]]:
    """(minutes of training, ``metric``) of each validation of the run of ``config`` that left ``checkpoint``."""
    interval = config.train_cfg.get('val_interval', 1) * checkpoint['meta']['run'].get('steps_per_epoch', 1)
    minutes = list(accumulate(seconds / 60 for seconds in history(checkpoint, 'train/time')))
    values = history(checkpoint, f'val/{metric}')
    return [(minutes[min(index * interval, len(minutes)) - 1], value) for index, value in enumerate(values, 1)]


def report(out: Path) -> str:
    """Draw minutes.png, write table.md; its text."""
    rows = read_rows(out / ROWS)
    text = table(rows)
    write_text(f'{text}\n\n{environment()}\n', out / 'table.md')
    plot(rows, out / 'minutes.png')
    return text


def table(rows: list[dict]) -> str:
    """Markdown: a line a config, mean and standard deviation over its seeds."""
    lines = []
    for name in dict.fromkeys(row['config'] for row in rows):
        own = [row for row in rows if row['config'] == name]
        minutes = statistics.mean(float(row['minutes']) for row in own)
        mean, std = mean_and_std([float(row['top1']) for row in own])
        each = ', '.join(row['top1'] for row in own)
        lines.append((name, len(own), f'{minutes:.1f}', mean, std, each))
    return markdown_table(('config', 'n', 'minutes', 'top-1 mean', 'std', 'each seed'), lines)


def plot(rows: list[dict], path: Path) -> None:
    """A line a run, a color a config; what the test found at its end is a mark."""
    names = list(dict.fromkeys(row['config'] for row in rows))
    shown, dots = [in_picture(name) for name in names], []
    with picture(path, (7, 4), shown, dpi=120) as figure:
        axis = figure.subplots()
        looks = [(BLUE, '-', 'o'), (ORANGE, '--', 's'), ('black', ':', '^'), ('gray', '-.', 'v')]
        for (color, line, mark), name in zip(cycle(looks), names):
            for row in (row for row in rows if row['config'] == name):
                points = [tuple(map(float, pair.split(':'))) for pair in row['curve'].split()]
                axis.plot(*zip(*points), line, color=color, alpha=0.6)
                dot = axis.plot([float(row['minutes'])], [float(row['top1'])], mark, color=color)
            dots += dot
        axis.axhline(GUESSING, color='gray', linewidth=1)
        axis.annotate('guessing', (0, GUESSING), (4, -12), textcoords='offset points', color='gray')
        axis.set(xlabel='minutes of training', ylabel='top-1 in %: validations, and the test as a mark')
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(dots, shown)
