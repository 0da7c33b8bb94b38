"""What the studies of strangers and of photos that are not square train and measure on."""

import pytest
from PIL import Image

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
