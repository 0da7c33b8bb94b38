"""What the studies that fine-tune on photos train and measure on, and how the one of the defaults chooses."""

import pytest
from PIL import Image

from research.defaults import study as defaults
from research.fit import study as fit
from research.strangers import study as strangers


@pytest.fixture
def photos(tmp_path):
    for name in 'abcd':
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for number in range(20):
            Image.new('RGB', (24, 24), (number, 0, 0)).save(tmp_path / 'photos' / name / f'{name}{number}.png')
    return tmp_path / 'photos'


def test_each_photo_is_in_one_part_and_strangers_are_in_none_of_the_classes(photos, tmp_path):
    assert [strangers.pair_of(list('abcd'), seed) for seed in range(3)] == [['a', 'b'], ['c', 'd'], ['a', 'b']]
    strangers.lay_out(photos, ['a', 'b'], 0, tmp_path / 'out')
    parts = {name: sorted((tmp_path / 'out' / 'photos' / name).glob('*/*')) for name in strangers.PARTS}
    assert {name: len(part) for name, part in parts.items()} == dict(train=24, val=8, test=8)
    real = [path.resolve() for part in parts.values() for path in part]
    assert len(set(real)) == 40 and {path.parent.name for path in real} == {'c', 'd'}
    halves = [sorted((tmp_path / 'out' / name).glob('*/*')) for name in ('others', 'strangers')]
    assert [len(half) for half in halves] == [20, 20]
    assert len({path.resolve() for half in halves for path in half}) == 40


def test_the_interval_is_wilson_s():
    assert strangers.interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert strangers.interval(0.0, 10) == pytest.approx((0, 0.2775), abs=1e-4)


def test_photos_are_cut_as_their_names_say(photos, tmp_path):
    fit.cut(photos, tmp_path / 'cut')
    sizes = {}
    for path in (tmp_path / 'cut').rglob('*.png'):
        with Image.open(path) as image:
            assert max(image.size) == 24 and min(image.size) == round(24 / fit.proportion_of(path.name))
            sizes[image.size] = sizes.get(image.size, 0) + 1
    assert set(sizes) == {(24, 24), (24, 18), (18, 24), (24, 12), (12, 24)} and sum(sizes.values()) == 80


def links(folder):
    return {part: sorted(path.resolve() for path in (folder / part).glob('*/*')) for part in ('train', 'val', 'test')}


def test_of_trashnet_each_photo_is_in_one_part_but_for_those_that_are_left_out(photos, tmp_path):
    runs = [defaults.Run('trashnet', 128, seed, defaults.DEFAULT) for seed in (0, 0, 1)]
    for number, run in enumerate(runs):
        defaults.lay_out(photos, run, tmp_path / str(number), frozenset(f'a/a{i}.png' for i in range(10)))
    parts = [links(tmp_path / str(number)) for number in range(3)]
    assert {name: len(part) for name, part in parts[0].items()} == dict(train=35, val=10, test=25)
    assert len({path for part in parts[0].values() for path in part}) == 70
    assert parts[0] == parts[1] != parts[2]


def test_of_imagenette_as_many_of_each_class_are_drawn(photos, tmp_path, monkeypatch):
    for part in ('train', 'val'):
        (tmp_path / 'imagenette' / part).parent.mkdir(exist_ok=True)
        (tmp_path / 'imagenette' / part).symlink_to(photos)
    monkeypatch.setattr(defaults, 'PER_CLASS', 6)
    monkeypatch.setattr(defaults, 'CHOOSING', 3)
    run = defaults.Run('imagenette', 128, 0, defaults.DEFAULT)
    defaults.lay_out(tmp_path / 'imagenette', run, tmp_path / 'out', frozenset())
    parts = links(tmp_path / 'out')
    assert {name: len(part) for name, part in parts.items()} == dict(train=24, val=12, test=80)
    assert not {*parts['train']} & {*parts['val']}


def rows_of(runs, top1, minutes):
    """Rows of ``runs`` by functions of a run; seeds lie a point apart."""
    return [
        dict(
            photos=run.photos,
            size=str(run.size),
            seed=str(run.seed),
            form=run.cell.form,
            lr=f'{run.cell.lr:g}',
            last=str(top1(run) + run.seed),
            best=str(top1(run) + 2 * run.seed),
            cpu_minutes=str(minutes(run)),
        )
        for run in runs
    ]


@pytest.mark.parametrize(
    'imagenette, minutes, expected',
    [
        (dict(branches=90.0, fused=80.0), 1, ('branches', 3e-4)),
        # half a point is not enough for what takes longer
        ({'branches': 81.4, 'norm alone': 82.0, 'fused': 80.0}, 1, ('norm alone', 1e-4)),
        ({'branches': 80.4, 'norm alone': 81.2, 'fused': 80.0}, 9, ('branches', 3e-4)),
        (dict(branches=70.0, fused=80.0), 1, ('fused', 1e-4)),
    ],
)
def test_the_default_is_chosen_by_the_rule(imagenette, minutes, expected):
    first = {('branches', 3e-4): 82.0, ('norm alone', 1e-4): 81.0, ('fused', 1e-4): 80.0}

    def top1(run):
        return first.get(run.cell, 70.0) if run.photos == 'trashnet' else imagenette.get(run.cell.form, 60.0)

    def time(run):
        return {'branches': 2, 'norm alone': minutes}.get(run.cell.form, 1)

    grid = rows_of(defaults.grid(), top1, time)
    assert len(grid) == 27 and defaults.second(grid[:-1]) == [] and defaults.chosen(grid) is None
    second = defaults.second(grid)
    assert {run.cell for run in second} == {('branches', 3e-4), ('norm alone', 1e-4), ('fused', 1e-4)}
    rows = grid + rows_of(second, top1, time)
    assert len(second) == 9 and defaults.chosen(rows) == expected
    assert [run.size for run in defaults.last(rows)] == [224]
    # 27 differences 0, 1, 2 in equal numbers: a standard error of 0.16013 and a t of 2.0555
    assert defaults.best_or_last(rows) == pytest.approx((1, 0.67085, 1.32915), abs=1e-4)
    assert 'Chosen: ' + expected[0] in defaults.table(rows)
