"""The studies of int8: what each set of photos draws, and what they print."""

import numpy as np
import pytest
from conftest import TINY, data_options, only_line
from PIL import Image

from research.int8.study import SETS, ZOOM, Calibration, draw


@pytest.fixture
def photos(tmp_path):
    for name in ('own/a', 'own/b', 'outside'):
        (tmp_path / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.full((64, 96, 3), 50, np.uint8)
            pixels[28:36, 44:52] = number  # the middle eighth
            Image.fromarray(pixels).save(tmp_path / name / f'{number}.png')
    return tmp_path


def test_eight_sets():
    assert len(SETS) == 8 and len(set(SETS.values())) == 8


def test_draws(photos, tmp_path):
    def files(*calibration):
        return draw(Calibration(*calibration), photos / 'own', photos / 'outside', tmp_path)

    assert len(set(files('own', 30))) == 30 and files('own', 30) == files('own', 30) != files('own', 30, 1)
    assert {path.parent.name for path in files('own', 30)} == {'a', 'b'}
    assert {path.parent.name for path in files('half', 10)} == {'a'}
    assert {path.parent.name for path in files('other half', 10)} == {'b'}
    assert {path.parent.name for path in files('outside', 10)} == {'outside'}
    for path in files('textures', 5):
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (256, 256, 3) and pixels.max() < 20 and ZOOM == 8


def test_tool(run_tool, tiny_run, digits, tmp_path):
    """On digits: files are written once, and measured."""
    own = digits / 'train'
    arguments = TINY, tiny_run / 'epoch_4.pth', own, own, tmp_path, '--weight-bits', '8', '--sets', '3', '5'
    options = '--cfg-options', *data_options(digits)
    code, printed = run_tool('research.int8', *arguments, *options)
    assert code == 0 and printed.count(': written') == 2, printed
    code, printed = run_tool('research.int8', *arguments, *options)
    assert code == 0 and ': written' not in printed
    lines = (tmp_path / 'table.md').read_text().splitlines()
    assert (tmp_path / 'rows.csv').read_text().splitlines()[1].startswith('8 bits a channel,float,')
    assert [line.split('|')[1].strip() for line in lines[2:]] == ['float', 'all classes, 32', 'half of the classes, 32']


@pytest.mark.slow
def test_settings(run_tool, tiny_run, digits):
    own = digits / 'train'
    arguments = TINY, tiny_run / 'epoch_4.pth', own, own
    code, printed = run_tool('research.int8.settings', *arguments, 'balance=0,ridge=3', 'floor=0.5')
    rows = [line.split(' | ') for line in printed.splitlines() if ' % ' in line]
    assert code == 0 and [row[1] for row in rows] == ['half, 200'] * 2 + ['half, 32'] * 2 + ['outside, 100'] * 2
    assert all(0 < float(value) < 1 for row in rows for value in row[4].strip(' |').split(', '))
    assert rows[0][4] != rows[1][4] and rows[0][0] == '| balance=0,ridge=3'


@pytest.mark.parametrize('setting', ['floor', 'floor=low', 'flor=1', 'equalize=0', ''])
def test_a_wrong_setting(run_tool, tiny_run, digits, setting):
    arguments = TINY, tiny_run / 'epoch_4.pth', digits / 'train', digits / 'train'
    code, printed = run_tool('research.int8.settings', *arguments, 'floor=1', setting)
    assert code and 'a setting is NAME=NUMBER, of balance, floor, ridge, weight_bits' in only_line(printed)
