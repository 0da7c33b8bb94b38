"""The study of why branches learn slower: its plan, what its arms start from, its statistics."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from mobileone_ext.backbone import MobileOne
from mobileone_ext.config import load_config
from research.mechanism import norms  # noqa: F401 -- registers EqualNorms
from research.mechanism.study import ARMS, COMPARISONS, compare, holm, plan, table


def test_a_part_of_the_plan_is_balanced():
    base = load_config(str(ROOT / 'configs/mobileone_tiny_digits.py'))
    runs = list(islice(plan(base, Path('out')), 46))
    assert Counter((arm, factor) for arm, factor, _ in runs[:45]) == {(arm, 1): 5 for arm in ARMS}
    assert [run.seed for _, _, run in runs[:45]] == [seed for seed in range(5) for _ in ARMS]
    arm, factor, run = runs[45]
    assert (arm, factor, run.seed) == ('plain', 2, 0)
    assert f"'lr': {2 * base.optim_wrapper.optimizer.lr}" in run.config_text and 'EMAHook' not in run.config_text
    assert len({run.folder for _, _, run in runs}) == 46


@pytest.mark.parametrize(
    'arm, weights',
    [
        # Of a depthwise block with six branches, the convolutions', the skip's and the scale's norm.
        ('all', (1, 1, 1)),
        ('all, both from 0', (1, 0, 0)),
        ('all, norms at 1 / sqrt(branches)', (6**-0.5, 6**-0.5, 6**-0.5)),
        ('k = 1, skip from 0', (1, 0, 1)),
        ('k = 1, scale from 0', (1, 1, 0)),
    ],
)
def test_what_an_arm_starts_from(arm, weights):
    backbone = MobileOne('s0', **{key.split('.')[-1]: value for key, value in ARMS[arm].items()})
    backbone.init_weights()
    block = backbone.stage1[2]  # depthwise, stride 1
    found = block.branch_conv_list[0].norm, block.branch_norm, block.branch_scale.norm
    torch.testing.assert_close([norm.weight[0].item() for norm in found], list(map(float, weights)))


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own example


def rows(top1, factor=1):
    noise = [-2, -1, 0, 1, 2]
    return [
        dict(arm=arm, factor=str(factor), seed=str(seed), top1=str(top1.get(arm, 20) + noise[seed]))
        for arm in ARMS
        for seed in range(5)
    ]


def test_comparisons_by_hand():
    """Five against five, variances of 2.5: a standard error of 1, eight degrees of freedom, t(0.975) = 2.306."""
    found = {(c.one, c.other): c for c in compare(rows({'k = 1': 12}))}
    assert tuple(found) == COMPARISONS
    worse = found['k = 1', 'plain']
    assert (worse.difference, worse.low, worse.high) == pytest.approx((-8, -10.306, -5.694), abs=1e-3)
    assert worse.p < 0.001 and found['all, both from 0', 'all'].p == 1


def test_an_arm_counts_at_its_best_rate_that_all_have_finished():
    slow, fast, unfinished = rows({'plain': 24}), rows({'plain': 22, 'k = 1': 30}, 2), rows({'k = 1': 90}, 4)[:-1]
    found = compare([*slow, *fast, *unfinished])[0]
    assert (found.one, found.difference) == ('k = 1', pytest.approx(6))
    assert not compare(unfinished)
    text = table([*slow, *unfinished])
    assert '| plain | 24.00 ± 1.58 (n = 5) |' in text and '| k = 1 | plain | -4.00 |' in text
