"""The study of the two ways to train: its tests against published ones, its plan, and resuming on stand-in data."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from networks import random_state
from PIL import Image

from research.train_impl import study
from research.train_impl.study import ARMS, RECIPES, SEEDS, Comparison, compare, table, verdict
from research.training import Images, append_row, read_rows

# Two groups of 15 patients, side by side, as R's package equivalence compares them in the tests of statsmodels.
CLINIC = (
    (2.84, 2.51, 2.41, 2.95, 3.14, 3.79, 4.14, 3.85, 3.02, 3.45, 5.37, 3.81, 4.19, 3.16, 3.84),
    (2.60, 2.82, 2.18, 3.46, 4.01, 3.04, 3.47, 4.06, 2.91, 3.59, 4.51, 3.16, 3.86, 3.31, 3.02),
)
# Hours of sleep that ten people gained by one drug more than by another (Student 1908).
SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)


@pytest.mark.parametrize('sign', [1, -1])
def test_equivalence_as_published(sign):
    found = compare([sign * (one - other) for one, other in zip(*CLINIC)], 0.6)
    assert found.difference == pytest.approx(sign * 0.1646666667)
    assert sorted(sign * end for end in found.interval90) == pytest.approx([-0.0744336621, 0.4037669954])
    assert found.p_equivalent == pytest.approx(0.003166881489)


def test_difference_as_published():
    found = compare(SLEEP, 0.5)
    assert (found.difference, *found.interval95) == pytest.approx((1.58, 0.7001142, 2.4598858))
    assert found.p_different == pytest.approx(0.002832890)
    assert found.p_equivalent > 0.5 and verdict(found, 0.5) == 'different'


@pytest.mark.parametrize(
    'p_equivalent, p_different, words',
    [
        (0.049, 0.026, 'equivalent within 1.5 points'),
        (0.049, 0.024, 'different, by less than 1.5 points'),
        (0.051, 0.024, 'different'),
        (0.051, 0.026, 'undecided'),
    ],
)
def test_verdict(p_equivalent, p_different, words):
    assert verdict(Comparison(0.1, (0, 1), (0, 1), p_equivalent, p_different), 1.5) == words


def write_rows(out, start, top1, seeds):
    for seed in seeds:
        for arm in ARMS:
            append_row(out / f'{start}.csv', dict(seed=seed, arm=arm, top1=f'{top1[arm] + seed % 2:.2f}'))


def test_pairs_are_of_fresh_seeds_and_are_compared_once_all_are_there(tmp_path):
    assert len(SEEDS) == 24 and min(SEEDS) > 11  # earlier runs had 0 to 11
    write_rows(tmp_path, 'weights', dict(branches=80, moments=80.1), SEEDS[:-1])
    assert '| weights | 23 | 80.48 ± 0.51 | 80.58 ± 0.51 | | | |' in table(tmp_path)
    write_rows(tmp_path, 'weights', dict(branches=80, moments=80.3), SEEDS[-1:])
    text = table(tmp_path)
    assert '| weights | 24 | 80.50 ± 0.51 | 80.61 ± 0.52 | +0.11 | 0.09 to 0.12 | 0.09 to 0.13 |' in text
    assert f'different, by less than {RECIPES["weights"].margin:g} points' in text and '| scratch | 0 |' in text


def test_seed_by_seed_and_finished_runs_are_kept(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(study, 'SEEDS', range(100, 102))
    monkeypatch.setattr(study, 'learn', lambda recipe, *run: ran.append(run[1:]) or (50, [1.0] * 30))
    photos = SimpleNamespace(labels=[0] * 8)
    material = study.Material(None, photos, photos)
    study.run_all({'weights': lambda: material}, tmp_path)
    first, second = [(arm, 100) for arm in ARMS], [(arm, 101) for arm in ARMS]
    assert ran == first + second
    weights = tmp_path / 'weights.csv'
    lines = weights.read_text().splitlines(keepends=True)
    weights.write_text(''.join(lines[:3]))  # interrupted after the first pair
    ran.clear()
    study.run_all({'weights': lambda: material, 'scratch': lambda: material}, tmp_path)
    assert ran == first + second + second
    assert weights.read_text().splitlines(keepends=True)[:3] == lines[:3]
    assert len(read_rows(weights)) == len(read_rows(tmp_path / 'scratch.csv')) == 4
    study.run_all(dict.fromkeys(RECIPES), tmp_path)  # nothing is left, so nothing is loaded


def small(recipe):
    return recipe._replace(arch=RECIPES['scratch'].arch, image_size=32, steps=2)


def test_both_arms_compute_one_function_of_the_same_images():
    images = Images.__new__(Images)
    images.images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images.labels, images.num_classes = torch.arange(40) % 2, 2
    material = study.Material(None, images, images)
    for recipe in map(small, RECIPES.values()):
        (_, branches), (_, moments) = (study.learn(recipe, material, arm, 100) for arm in ARMS)
        assert moments[0] == pytest.approx(branches[0], rel=1e-4) and moments != branches


@pytest.mark.slow
def test_tool(tmp_path, run_tool, monkeypatch):
    """One seed of both starts, two steps each; the photos are noise."""
    generator = torch.Generator().manual_seed(0)
    for split, name in product(('train', 'val'), 'ab'):
        folder = tmp_path / 'data' / split / name
        folder.mkdir(parents=True)
        for number in range(32):
            pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / f'{number}.png')
    state = random_state('s0', 'fused')
    weights = {key: 0.2 * value if value.dim() == 4 else value for key, value in state.items()}
    torch.save(weights, tmp_path / 'fused.pth')
    monkeypatch.setattr(study, 'SEEDS', range(100, 101))
    monkeypatch.setattr(study, 'RECIPES', {start: recipe._replace(steps=2) for start, recipe in RECIPES.items()})
    arguments = (tmp_path / 'data', tmp_path / 'out', '--weights', tmp_path / 'fused.pth')
    code, printed = run_tool('research.train_impl', *arguments)
    assert code == 0, printed
    assert all(f'{start}, seed 100, {arm}: top-1' in printed for start in RECIPES for arm in ARMS)
    assert (tmp_path / 'out' / 'table.md').read_text().startswith('| from | pairs | branches | moments |')


def test_without_kernels_the_study_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(study.kernels, 'library', lambda: None)
    with pytest.raises(ValueError, match='of the compiled kernels, which cannot be built here'):
        study.run_all({'scratch': None}, tmp_path)
