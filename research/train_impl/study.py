"""Does a network learn the same by moments as by its branches? ``python -m research.train_impl``, fixed before it ran.

Question: moments compute a block's branches as one convolution, exactly but for rounding, and rounding alone drives
two float32 runs apart. Does it move what is learned, with the compiled kernels as they are?

Arms (``ARMS``): every block by its branches; every block by moments, also where 'auto' would keep the branches. A pair
is both with one seed: the same initial weights, head, batches and crops. ``SEEDS``, 24, are none that ran before.

Two starts (``RECIPES``), 96 runs in all. SGD with momentum 0.9, batch 32, a tenth of warm-up and a cosine to 0,
float32, channels_last, one thread; tested once, fused.

    weights   S0 from Apple's weights, un-fused, with a new head: Imagenette, all 9,469 training photos, 64 px, 150
              steps; all 3,925 validation photos.
    scratch   the network of configs/mobileone_tiny_digits.py, of S0's widths and branches and a third of its blocks,
              from its initialization: 1,437 scans of digits, 32 px, 540 steps; 360 others. Imagenette is no choice: S0
              with all branches is at 9 to 16 % there after 150 steps (one run each, SGD at 0.0125, 0.05 and 0.2, AdamW
              at 0.001 and 0.004), where any two ways to train look alike.

Learning rates: at 0.0005 none of 27 earlier runs from weights (96 px) ended below 84 %, at 0.003 eight of 36
collapsed, and one at 64 px and 0.002 ended at 58 %; so 0.0003. From scratch 0.05, the config's, at which none of 12
earlier runs with four convolutions a block ended below 91 %.

Time: a run from weights takes 71 s of a core by branches and 43 by moments, one from scratch 40 and 33: 75 minutes for
all (AMD EPYC with AVX-512 and VNNI, one run each, seed 0). These four runs ended at 79.0 and 79.0 %, and at 93.6 and
98.1; nothing below was changed by them.

Measure: top-1 in percent; moments less branches of each pair. For each start two one-sided t tests (TOST) at 5 %
against the margin, which is the same as a 90 % interval that lies within it, and the two-sided t test against 0 at 5 %
/ 2, for there are two starts. All runs count. Nothing is compared before all 24 pairs of a start are there; a loss
that is no longer finite stops the study, and is then its result.

    equivalent                  the first test rejects, the second does not: the means are within the margin
    different, by less than it  both reject: moments learn otherwise, by less than the margin
    different                   the second alone rejects: the claim that both learn the same falls
    undecided                   neither: 24 pairs do not tell, and the page says so with the interval

"Learns the same" is said where both starts are equivalent, for these recipes and within these margins.

Margins: from weights 1.0 point, two thirds of the deviation between seeds of the branches (1.46, nine earlier runs);
from scratch 2.0, that deviation (2.0, twelve earlier runs of four variants). So a difference that passes for none is
not larger than what another seed makes. Power, if there is no difference: pairs from weights deviated by 1.40 in nine
earlier ones (1,000 photos, 96 px), which makes it 0.92; from scratch no pairs are known, independent runs would
deviate by 2.9, which makes it 0.90. Of a true difference the second test finds 0.95 and 1.95 points four times in
five.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from mmengine.model import initialize
from scipy import stats
from torch import nn
from torchvision.transforms import v2

from mobileone_ext.backbone import MobileOne
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.data.digits import write_digits
from mobileone_ext.moments import kernels
from mobileone_ext.provenance import processor
from mobileone_ext.text import markdown_table
from research.training import Images, append_row, fit, mean_and_std, new_head, read_rows, top1
from research.unfuse.study import starting_points

ARMS = ('branches', 'moments')
SEEDS = range(100, 124)
LEVEL = 0.05  # of a test
LAST = 20  # steps whose mean loss a row has


class Recipe(NamedTuple):
    """How the runs of a start train, and the margin of their test in points of top-1."""

    arch: Any
    image_size: int
    lr: float
    steps: int
    crops: bool  # random ones and flips; or images as they are
    margin: float


_DIGITS_NET = dict(num_blocks=[1, 2, 3, 1], width_factor=[0.75, 1.0, 1.0, 2.0], num_conv_branches=[4, 4, 4, 4])
RECIPES = {
    'weights': Recipe('s0', 64, 0.0003, 150, crops=True, margin=1.0),
    'scratch': Recipe(_DIGITS_NET, 32, 0.05, 540, crops=False, margin=2.0),
}


class Material(NamedTuple):
    """What all runs of a start share: the backbone to begin with (None: its own initialization) and images."""

    start: nn.Module | None
    train: Images
    val: Images


class Comparison(NamedTuple):
    """Moments less branches, in points: the mean, its 90 and 95 % intervals, and the p values of both tests."""

    difference: float
    interval90: tuple[float, float]
    interval95: tuple[float, float]
    p_equivalent: float  # of a difference that reaches the margin
    p_different: float  # of no difference


def rows_of(start: str, out: Path) -> Path:
    """The CSV of a start: processes that run different starts write no file together."""
    return out / f'{start}.csv'


def from_weights(data: Path, weights: str) -> Material:
    """Fused ``weights`` of S0, un-fused, and the photos in ``data``."""
    size = RECIPES['weights'].image_size
    train, val = (Images(data / split, round(size * 256 / 224)) for split in ('train', 'val'))
    return Material(starting_points(load_weights(weights), train, size)['branches'], train, val)


def from_scratch() -> Material:
    """scikit-learn's digits."""
    with TemporaryDirectory() as folder:
        data = Path(folder) / 'digits'
        write_digits(data)
        return Material(None, *(Images(data / split, RECIPES['scratch'].image_size) for split in ('train', 'val')))


def run_all(starts: dict[str, Callable[[], Material]], out: Path) -> None:
    """Do what is missing of each start, seed by seed, and add a row for each run; call it again where it stopped.

    Raises:
        ValueError: without the compiled kernels, of which the study is.
    """
    if kernels.library() is None:
        raise ValueError('this study is of the compiled kernels, which cannot be built here')
    done = {(start, row['seed'], row['arm']) for start in starts for row in read_rows(rows_of(start, out))}
    runs = [run for run in product(SEEDS, starts, ARMS) if (run[1], str(run[0]), run[2]) not in done]
    material = {start: starts[start]() for start in {start for _, start, _ in runs}}
    for seed, start, arm in runs:
        begin = time.process_time()
        accuracy, losses = learn(RECIPES[start], material[start], arm, seed)
        row = dict(
            start=start,
            seed=seed,
            arm=arm,
            top1=f'{accuracy:.2f}',
            loss=f'{statistics.fmean(losses[-LAST:]):.4f}',
            num_images=len(material[start].val.labels),
            seconds=f'{time.process_time() - begin:.1f}',
            processor=processor(),
        )
        append_row(rows_of(start, out), row)
        print(f'{start}, seed {seed}, {arm}: top-1 {row["top1"]} in {row["seconds"]} s of a core', flush=True)


def learn(recipe: Recipe, material: Material, arm: str, seed: int) -> tuple[float, list[float]]:
    """Top-1 (percent) of the fused network on the validation images after training, and the loss of every step."""
    start, train, val = material
    torch.manual_seed(seed)
    backbone = MobileOne(recipe.arch, train_impl=arm)
    if start is None:
        initialize(backbone, backbone.init_cfg)
    else:
        backbone.load_state_dict(start.state_dict())
    head = new_head(backbone, train.num_classes)
    transform = None if recipe.crops else v2.Identity()
    losses = fit(backbone, head, train, recipe.lr, recipe.steps, recipe.image_size, transform=transform)
    return top1(backbone, head, val, recipe.image_size), losses


def pairs(rows: Sequence[dict]) -> list[tuple[float, float]]:
    """Top-1 by branches and by moments of each seed that has both."""
    found = {(int(row['seed']), row['arm']): float(row['top1']) for row in rows}
    branches, moments = ARMS
    return [
        (found[seed, branches], found[seed, moments]) for seed in SEEDS if all((seed, arm) in found for arm in ARMS)
    ]


def compare(differences: Sequence[float], margin: float) -> Comparison:
    """Two one-sided t tests of paired differences, against -margin and margin, and the two-sided one against 0."""
    test = stats.ttest_1samp(differences, 0)
    above = stats.ttest_1samp(differences, -margin, alternative='greater').pvalue
    below = stats.ttest_1samp(differences, margin, alternative='less').pvalue
    within, interval = (tuple(map(float, test.confidence_interval(level))) for level in (1 - 2 * LEVEL, 1 - LEVEL))
    return Comparison(statistics.fmean(differences), within, interval, float(max(above, below)), float(test.pvalue))


def verdict(found: Comparison, margin: float) -> str:
    """What the tests say, in the words of this file's head."""
    equivalent, different = found.p_equivalent < LEVEL, found.p_different < LEVEL / len(RECIPES)
    if equivalent:
        return f'different, by less than {margin:g} points' if different else f'equivalent within {margin:g} points'
    return 'different' if different else 'undecided'


def table(out: Path) -> str:
    """Markdown: means, and, where all pairs are there, the comparison of each start."""
    lines = []
    for start, recipe in RECIPES.items():
        found = pairs(read_rows(rows_of(start, out)))
        means = ['{} ± {}'.format(*mean_and_std(values)) for values in zip(*found)] or ['', '']
        cells = ['', '', '', '', 'not all pairs are there']
        if len(found) == len(SEEDS):
            test = compare([moments - branches for branches, moments in found], recipe.margin)
            intervals = [f'{low:.2f} to {high:.2f}' for low, high in (test.interval90, test.interval95)]
            ps = f'{test.p_equivalent:.4f}', f'{test.p_different:.3f}'
            cells = [f'{test.difference:+.2f}', *intervals, ' and '.join(ps), verdict(test, recipe.margin)]
        lines.append((start, len(found), *means, *cells))
    head = ('from', 'pairs', *ARMS, 'moments less branches', '90 % interval', '95 % interval', 'p of both', 'verdict')
    return markdown_table(head, lines)
