"""Why do branches learn slower at first? The study behind ``python -m research.mechanism``, fixed before its first run.

Question: MobileOne-S0 from scratch learns slower in its first steps with the paper's branches than without any. Is it
the skip and scale branches (and their norms' initial weight, 1), the number of convolutions, or the larger output of a
sum of branches? And does a larger learning rate do away with it?

Arms (``ARMS``): nine, at three learning rates (the base config's 0.1, and 2 and 4 times that), seeds 0 to 4: 135 runs.

A run: Imagenette, every third training photo (3,157), at up to 64 px, ``EPOCHS`` epochs of 50 steps of 64 photos, the
schedule of ``BASE`` shortened to that, no moving average (its horizon is a fifth of a run: the weights as trained are
tested), tested once on all 3,925 validation photos. One processor core, ``train_impl='auto'``.

Size: 300 steps took 1.4 (plain), 1.7 (k = 1) and 2.9 minutes (all) on one free core of an AMD EPYC (AVX2) before the
compiled kernels; 250 steps, the start of two processes and the test come to 2 minutes in the mean, 4.5 hours in all.

Order: seed by seed over all arms at the base rate, then at twice, then at four times it. Stopped anywhere, no arm is
more than a run ahead of another.

Measure: top-1 in percent. An arm counts at its best learning rate, that of the highest mean over its seeds, among the
rates that all arms have finished. ``COMPARISONS``, six, each by Welch's t test, two-sided, five seeds against five, the
six p values corrected by Holm. A difference is called one where the corrected p is below 0.05. Beside them stands the
same at the base rate alone; everything else in the table is description. With a standard deviation of 1.5 points
within an arm, four times in five a difference of 3.0 points has p below 0.05 and one of 4.3 points p below 0.05 / 6.
"""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from scipy import stats

from mobileone_ext.ablation.ablate import Run, config_text, execute, read_report
from mobileone_ext.ablation.study import folder_name
from mobileone_ext.config import check_config, override
from mobileone_ext.provenance import processor
from mobileone_ext.text import markdown_table
from research.training import append_row, mean_and_std, read_rows

BASE, EPOCHS = 'configs/mobileone_s0_imagenette_64px.py', 5
SEEDS, FACTORS = (0, 1, 2, 3, 4), (1, 2, 4)
ROWS = 'rows.csv'


def _start(**norms: float) -> dict:
    return dict(type='mobileone_ext.BranchNorms', **norms)


def _arm(k: int = 4, others: bool = True, start: dict | None = None) -> dict:
    """Overrides: ``k`` convolutions a block, with or without skip and scale, initialized by ``start`` at last."""
    arm = {
        'model.backbone.num_conv_branches': k,
        'model.backbone.use_skip': others,
        'model.backbone.use_scale': others,
    }
    usual = [dict(type='Kaiming', layer=['Conv2d']), dict(type='Constant', val=1, layer=['_BatchNorm'])]
    return {**arm, 'model.backbone.init_cfg': [*usual, start]} if start else arm


ARMS = {
    'plain': _arm(1, others=False),
    'k = 1': _arm(1),
    'k = 1, skip from 0': _arm(1, start=_start(skip=0.0)),
    'k = 1, scale from 0': _arm(1, start=_start(scale=0.0)),
    'k = 1, both from 0': _arm(1, start=_start(skip=0.0, scale=0.0)),
    'k = 4 without skip and scale': _arm(4, others=False),
    'all': _arm(),
    'all, both from 0': _arm(start=_start(skip=0.0, scale=0.0)),
    'all, norms at 1 / sqrt(branches)': _arm(start=dict(type='mobileone_ext.EqualNorms')),
}
COMPARISONS = (
    ('k = 1', 'plain'),
    ('k = 1, both from 0', 'k = 1'),
    ('k = 4 without skip and scale', 'plain'),
    ('all', 'k = 4 without skip and scale'),
    ('all, both from 0', 'all'),
    ('all, norms at 1 / sqrt(branches)', 'all'),
)


class Comparison(NamedTuple):
    """Mean of ``one`` less that of ``other`` in points, its 95 % interval, and p, corrected for all comparisons."""

    one: str
    other: str
    difference: float
    low: float
    high: float
    p: float


def plan(base: Config, out: Path) -> Iterator[tuple[str, int, Run]]:
    """(arm, learning rate factor, run) in the order above; ``base`` knows where the data lie."""
    hooks = [hook for hook in base.get('custom_hooks', []) if hook['type'] != 'EMAHook']
    imports = [*base.custom_imports['imports'], 'research.mechanism.norms']
    shared = {
        'train_cfg.max_epochs': EPOCHS,
        'custom_hooks': hooks,
        'custom_imports.imports': imports,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
    }
    for factor, seed, (arm, overrides) in product(FACTORS, SEEDS, ARMS.items()):
        rate = {'optim_wrapper.optimizer.lr': factor * base.optim_wrapper.optimizer.lr, 'randomness': dict(seed=seed)}
        config = override(base, {**shared, **overrides, **rate})
        check_config(config)
        folder = out / f'lr{factor}' / folder_name(arm) / f'seed{seed}'
        # Tested with branches: what fusing changes is rounding, and one test takes less time than two.
        yield arm, factor, Run(arm, seed, config_text(config), folder, fuses=False)


def run_all(runs: Iterable[tuple[str, int, Run]], path: Path) -> None:
    """Do those of ``runs`` that the CSV file ``path`` doesn't have, and add a row for each.

    Raises:
        ValueError: if one fails.
    """
    done = {(row['arm'], row['factor'], row['seed']) for row in read_rows(path)}
    for arm, factor, run in runs:
        if (arm, str(factor), str(run.seed)) in done:
            continue
        print(f'{arm}, lr x {factor}, seed {run.seed}: {run.folder}/run.log', flush=True)
        reason = execute(run, 'none', 1)
        if reason:
            raise ValueError(f'{arm}, lr x {factor}, seed {run.seed}: {reason}')
        measured = read_report(run)
        row = dict(
            arm=arm,
            factor=factor,
            seed=run.seed,
            top1=f'{measured["top1_after"]:.2f}',
            num_images=f'{measured["num_images"]:g}',
            minutes=f'{measured["training_minutes"]:.2f}',
            processor=processor(),
        )
        append_row(path, row)
        print(f'    {row["minutes"]} minutes, top-1 {row["top1"]}', flush=True)


def values(rows: Sequence[dict], arm: str, factor: int) -> list[float]:
    """Top-1 of each finished seed."""
    return [float(row['top1']) for row in rows if row['arm'] == arm and row['factor'] == str(factor)]


def compare(rows: Sequence[dict], factors: Sequence[int] = FACTORS) -> list[Comparison]:
    """The comparisons, each arm at its best of those ``factors`` that all arms have finished; none without such."""
    complete = [f for f in factors if all(len(values(rows, arm, f)) == len(SEEDS) for arm in ARMS)]
    if not complete:
        return []
    best = {arm: max((values(rows, arm, f) for f in complete), key=statistics.mean) for arm in ARMS}
    tests = [stats.ttest_ind(best[one], best[other], equal_var=False) for one, other in COMPARISONS]
    ps = holm([float(test.pvalue) for test in tests])
    means = {arm: statistics.mean(found) for arm, found in best.items()}
    return [
        Comparison(one, other, means[one] - means[other], *map(float, test.confidence_interval()), p)
        for (one, other), test, p in zip(COMPARISONS, tests, ps)
    ]


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number, step-down (Holm 1979)."""
    corrected, least = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = least
    return corrected


def table(rows: Sequence[dict]) -> str:
    """Markdown: mean and deviation of each arm at each rate, then the comparisons as far as they can be made."""
    lines = []
    for arm in ARMS:
        cells = [values(rows, arm, factor) for factor in FACTORS]
        lines.append((arm, *('{} ± {} (n = {})'.format(*mean_and_std(v), len(v)) if v else '' for v in cells)))
    parts = [markdown_table(('arm', *(f'lr x {factor}' for factor in FACTORS)), lines)]
    for title, factors in (('Each arm at its best rate', FACTORS), ('At the base rate', FACTORS[:1])):
        found = compare(rows, factors)
        lines = [(c.one, c.other, f'{c.difference:+.2f}', f'{c.low:.2f} to {c.high:.2f}', f'{c.p:.3f}') for c in found]
        head = ('arm', 'against', 'points', '95 % interval', "p (Holm's)")
        parts.append(f'{title}:\n\n{markdown_table(head, lines)}' if found else f'{title}: not all runs are done.')
    return '\n\n'.join(parts)
