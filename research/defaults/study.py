"""Which form and learning rate should fine-tuning have? The study behind ``python -m research.defaults``.

Fixed before its first run.

Cells: what is trained, ``FORMS``, at AdamW's learning rates ``RATES`` (the head's is ten times that); everything else
as tools/finetune.py does it: 20 epochs, batch 32, warm-up, cosine, moving average, 128 px, Apple's S0 fused. Fused
weights get norms, or norms and branches, by un-fusing with photos of the training part.

Photos: those of TrashNet that docs/results/finetune.md does not measure on. Of each class 50 % are learned from, 15 %
choose the epoch, 35 % measure (about 700), by a split of the run's own seed. Seeds 0, 1, 2: 27 runs.

Choice: the two cells with the highest mean of top-1 after the last epoch over the seeds, and the default so far
(``DEFAULT``), are run on Imagenette too: 100 photos a class to learn from, 30 to choose the epoch, both drawn by the
seed, and its 3,925 validation photos, the same for all; again three seeds. The default becomes the better of the two
cells by the sum of their means on both sets, if this sum is above the present default's; if the two are within half a
point there, the one that takes less time. The chosen one is run once at 224 px.

Epoch: a run that takes its best epoch by the photos that choose is measured beside its last, by the same weights'
moving average. The last is taken unless the best is better in the mean over all runs on TrashNet with a 95 % interval
(of the mean of paired differences) above 0.

Size: three seeds on about 700 photos each; the standard error of such a mean of differences is about 0.7 points, so
cells within 1.5 points of each other are not told apart, and a choice among them is one of convenience.
"""

import os
import re
import shutil
import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from mobileone_ext import cli
from mobileone_ext.data.images import find_images
from mobileone_ext.engine import finetune
from mobileone_ext.engine import train as training
from mobileone_ext.engine.finetune import CONFIG, Options
from mobileone_ext.engine.finetuning.scores import score_photos
from mobileone_ext.engine.finetuning.split import stratified_split
from mobileone_ext.provenance import processor
from mobileone_ext.text import markdown_table
from research.training import append_row, mean_and_std, read_rows

ROWS = 'rows.csv'
FORMS = {'fused': 'none', 'norm alone': 'norm', 'branches': 'branches'}  # finetune's --unfuse
RATES, SEEDS = (5e-5, 1e-4, 3e-4), (0, 1, 2)
TEST, CHOOSE = 0.35, 0.15  # of TrashNet's photos
PER_CLASS, CHOOSING = 100, 30  # of Imagenette's
SIZE, LARGE = 128, 224


class Cell(NamedTuple):
    """What is trained, and its learning rate."""

    form: str
    lr: float


DEFAULT = Cell('fused', 1e-4)


class Run(NamedTuple):
    """One training: ``photos`` is ``'trashnet'`` or ``'imagenette'``."""

    photos: str
    size: int
    seed: int
    cell: Cell


def grid() -> list[Run]:
    """The runs on TrashNet, seed by seed."""
    return [Run('trashnet', SIZE, seed, Cell(*cell)) for seed, *cell in product(SEEDS, FORMS, RATES)]


def second(rows: Sequence[dict]) -> list[Run]:
    """The runs that the grid's ``rows`` ask for; none before the grid is done."""
    if not all(find(rows, run) for run in grid()):
        return []
    means = {Cell(*cell): mean(rows, Cell(*cell), 'trashnet') for cell in product(FORMS, RATES)}
    best = sorted(means, key=means.__getitem__, reverse=True)[:2]
    return [Run('imagenette', SIZE, seed, cell) for seed in SEEDS for cell in dict.fromkeys((*best, DEFAULT))]


def chosen(rows: Sequence[dict]) -> Cell | None:
    """The cell that becomes the default, by the rule above; None before the second runs are done."""
    runs = second(rows)
    if not runs or not all(find(rows, run) for run in runs):
        return None
    cells = list(dict.fromkeys(run.cell for run in runs))
    sums = {cell: mean(rows, cell, 'trashnet') + mean(rows, cell, 'imagenette') for cell in cells}
    one, other = sorted(cells[:2], key=sums.__getitem__, reverse=True)
    if sums[one] - sums[other] < 0.5 and minutes(rows, other) < minutes(rows, one):
        one = other
    return one if sums[one] > sums[DEFAULT] else DEFAULT


def last(rows: Sequence[dict]) -> list[Run]:
    """The chosen cell at 224 px."""
    cell = chosen(rows)
    return [Run('trashnet', LARGE, SEEDS[0], cell)] if cell else []


def find(rows: Sequence[dict], run: Run) -> dict | None:
    """The row of ``run``."""
    wanted = dict(photos=run.photos, size=str(run.size), seed=str(run.seed), form=run.cell.form, lr=f'{run.cell.lr:g}')
    return next((row for row in rows if wanted.items() <= row.items()), None)


def values(rows: Sequence[dict], cell: Cell, photos: str, column: str = 'last') -> list[float]:
    """A column of the rows of ``cell``, by seeds."""
    found = [find(rows, Run(photos, SIZE, seed, cell)) for seed in SEEDS]
    return [float(row[column]) for row in found if row]


def mean(rows: Sequence[dict], cell: Cell, photos: str) -> float:
    return statistics.mean(values(rows, cell, photos))


def minutes(rows: Sequence[dict], cell: Cell) -> float:
    return statistics.median(values(rows, cell, 'trashnet', 'cpu_minutes'))


def lay_out(photos: Path, run: Run, folder: Path, left_out: frozenset[str]) -> None:
    """Links to ``photos`` as ``folder``/train, val (which chooses the epoch) and test, each with a folder a class.

    Args:
        photos: class folders (TrashNet), or train and val with these (Imagenette).
        left_out: paths from ``photos`` that are in no part.
    """
    source = photos / 'train' if run.photos == 'imagenette' else photos
    files = [path for path in find_images(source) if str(path.relative_to(photos)) not in left_out]
    classes = [path.parent.name for path in files]
    if run.photos == 'imagenette':
        parts = dict(zip(('train', 'val'), _drawn(files, run.seed)), test=find_images(photos / 'val'))
    else:
        rest, test = stratified_split(classes, range(len(files)), TEST, run.seed)
        names = [classes[index] for index in rest]
        train, val = stratified_split(names, rest, CHOOSE / (1 - TEST), run.seed)
        parts = dict(train=[files[rest[i]] for i in train], val=[files[rest[i]] for i in val])
        parts['test'] = [files[index] for index in test]
    for name, part in parts.items():
        for path in part:
            place = folder / name / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            os.symlink(path.absolute(), place / path.name)


def _drawn(files: list[Path], seed: int) -> tuple[list[Path], list[Path]]:
    """``PER_CLASS`` files of each class, and ``CHOOSING`` others."""
    train, val = [], []
    for name in sorted({path.parent.name for path in files}):
        own = [path for path in files if path.parent.name == name]
        order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(own))
        train += [own[index] for index in order[:PER_CLASS]]
        val += [own[index] for index in order[PER_CLASS:][:CHOOSING]]
    return train, val


def prepare(run: Run, photos: Path, weights: str, folder: Path, left_out: frozenset[str]) -> Path:
    """Write the config of ``run`` into ``folder``, where it is not yet; the config's path."""
    path = folder / 'run' / CONFIG
    if path.exists():
        return path
    if not (folder / 'photos').exists():
        lay_out(photos, run, folder / 'photos', left_out)
    options = Options(
        str(folder / 'photos'),
        weights=weights,
        lr=run.cell.lr,
        size=run.size,
        seed=run.seed,
        unfuse=FORMS[run.cell.form],
        work_dir=str(folder / 'run'),
    )
    finetune.write_plan(replace(finetune.make_plan(options), workers=0))
    return path


def execute(run: Run, photos: Path, weights: str, folder: Path, left_out: frozenset[str] = frozenset()) -> dict:
    """Train and measure; the row."""
    path = str(prepare(run, photos, weights, folder, left_out))
    clock = time.process_time()
    runner = training.train(cli.load_config(path), resume=True)
    spent = (time.process_time() - clock) / 60
    checkpoints = dict(
        last=training.latest_checkpoint(runner.work_dir)[0], best=next(Path(runner.work_dir).glob('best_*.pth'))
    )
    row: dict = dict(photos=run.photos, size=run.size, seed=run.seed, form=run.cell.form, lr=f'{run.cell.lr:g}')
    for name, checkpoint in checkpoints.items():
        scores = score_photos(cli.load_config(path), str(checkpoint))
        row[name] = f'{100 * (scores.truth == scores.predicted).all(1).mean():.2f}'
    row['best_epoch'] = re.findall(r'\d+', checkpoints['best'].stem)[-1]
    return row | dict(num_images=len(scores.paths), cpu_minutes=f'{spent:.2f}', processor=processor())


def run_all(
    photos: dict[str, Path], weights: str, out: Path, left_out: frozenset[str], share: tuple[int, int] = (0, 1)
) -> None:
    """Do what is missing in ``out``/rows.csv.

    Args:
        photos: where they lie, by ``Run.photos``.
        share: (i, n): only every n-th run of a stage from the i-th on, for n processes beside each other.
    """
    path = out / ROWS
    for stage in (lambda rows: grid(), second, last):
        for run in stage(read_rows(path))[share[0] :: share[1]]:
            if find(read_rows(path), run):
                continue
            name = f'{run.photos}_{run.size}_{run.cell.form.replace(" ", "_")}_{run.cell.lr:g}_{run.seed}'
            row = execute(run, photos[run.photos], weights, out / name, left_out)
            append_row(path, row)
            shutil.rmtree(out / name)
            print(*row.values(), flush=True)


def best_or_last(rows: Sequence[dict]) -> tuple[float, float, float]:
    """Best less last epoch in points over the grid's rows: the mean and its 95 % interval."""
    found = [row for row in (find(rows, run) for run in grid()) if row]
    differences = [float(row['best']) - float(row['last']) for row in found]
    center, error = statistics.mean(differences), stats.sem(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, center, error) if error else (center, center)
    return center, low, high


def table(rows: Sequence[dict]) -> str:
    """Markdown: a line a cell, then what was chosen and which epoch is better."""
    lines = []
    for cell in (Cell(*cell) for cell in product(FORMS, RATES)):
        found = values(rows, cell, 'trashnet')
        if not found:
            continue
        line = [cell.form, f'{cell.lr:g}', len(found), *mean_and_std(found), ', '.join(f'{v:.1f}' for v in found)]
        line.append(f'{minutes(rows, cell):.1f}')
        other = values(rows, cell, 'imagenette')
        line += [*mean_and_std(other), ', '.join(f'{v:.1f}' for v in other)] if other else ['', '', '']
        lines.append(line)
    head = ('trained', 'lr', 'n', 'TrashNet', 'std', 'each seed', 'CPU minutes', 'Imagenette', 'std', 'each seed')
    parts = [markdown_table(head, lines)]
    if len(rows) > 1:
        parts.append('Best less last epoch: {:+.2f} points ({:+.2f} to {:+.2f}).'.format(*best_or_last(rows)))
    cell = chosen(rows)
    if cell:
        large = find(rows, last(rows)[0])
        parts.append(f'Chosen: {cell.form}, {cell.lr:g}' + (f'; at {LARGE} px {large["last"]} %' if large else ''))
    return '\n\n'.join(parts)
