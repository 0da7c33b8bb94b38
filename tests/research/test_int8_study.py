"""The studies of int8: what each set of photos draws, and what they print."""

import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, data_options, only_line
from PIL import Image

sys.path.insert(0, str(ROOT / 'tests' / 'deploy'))

from test_quantization import images, small_classifier

from mobileone_ext.deploy.quantization.chain import layers_of
from research.int8 import study
from research.int8.study import SETS, ZOOM, Calibration, draw
from research.paired import changes, estimate, losses
from research.toolchains.quantizers import Quantizer
from research.training import read_rows


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


def test_changes_are_told_apart():
    labels = torch.tensor([0, 1, 2, 0])
    expected, actual = torch.eye(4)[[0, 1, 1, 2]], torch.eye(4)[[0, 2, 2, 3]]
    row = dict(num_images='4', changes=changes(expected, actual, labels))
    assert row['changes'] == '1- 2+ 3~'
    np.testing.assert_array_equal(losses(row), [0, 1, -1, 0])


def test_an_interval_counts_a_photo_once():
    """Sets that agree about every photo are no more than one of them."""
    rng = np.random.default_rng(0)
    values = rng.choice([-1.0, 0.0, 1.0], 500, p=[0.02, 0.93, 0.05])
    changes = ' '.join(f'{number}{"-" if value > 0 else "+"}' for number, value in enumerate(values) if value)
    shared = dict(num_images='500', top1='80.00', flips='35', changes=changes)
    rows = [dict(shared, calibration='', form='float', changes='')]
    rows += [dict(shared, calibration=name, form=form) for name in list(SETS)[:6] for form in ('default', '8 bits')]
    one = estimate(values)
    assert one.mean == pytest.approx(100 * values.mean())
    resampled = [100 * rng.choice(values, 500).mean() for _ in range(4000)]  # the bootstrap
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert one.mean - one.half == pytest.approx(low, abs=0.25) and one.mean + one.half == pytest.approx(high, abs=0.25)
    lines = study.table(rows, study.PHOTOS).splitlines()
    assert 'Mean of 6 sets' in lines[-6]
    assert lines[-2].startswith(f'| default | {one} | 7.00 |') and '| 0.00 (0.00 to 0.00) |' in lines[-1]


def test_tool(run_tool, tiny_run, digits, tmp_path):
    """On digits: each file is a row, and rows are kept."""
    own = digits / 'train'
    arguments = TINY, tiny_run / 'epoch_4.pth', own, own, tmp_path, '--sets', '3'
    options = '--cfg-options', *data_options(digits)
    code, printed = run_tool('research.int8', *arguments, *options)
    assert code == 0, printed
    rows = read_rows(tmp_path / 'rows.csv')
    assert [row['form'] for row in rows] == ['float', 'default', '8 bits', 'per tensor', 'raw']
    reference, *others = rows
    for row in others:
        assert row['num_photos'] == '32' and int(row['flips']) == len(row['changes'].split())
        lost = float(reference['top1']) - float(row['top1'])
        assert losses(row).mean() * 100 == pytest.approx(lost, abs=0.01)
    assert (tmp_path / 'table.md').read_text().count('(') > 8
    (tmp_path / 'rows.csv').write_text((tmp_path / 'rows.csv').read_text().rpartition('all classes, 32')[0][:-1])
    assert len(read_rows(tmp_path / 'rows.csv')) == 4
    assert run_tool('research.int8', *arguments, *options)[0] == 0
    assert [row['form'] for row in read_rows(tmp_path / 'rows.csv')] == [row['form'] for row in rows]


def test_others_are_measured_from_two_sets_one_of_them_the_photos_plan_s():
    first, second = study.OTHERS.sets.values()
    assert first == SETS['all classes, 100'] and second == first._replace(seed=1)
    for form in study.OTHERS.forms.values():
        assert form == study.FORMS['default'] or 'channel' in study.toolchains.QUANTIZERS[form.quantizer].scales


def test_a_quantizer_of_others_gets_the_network_as_published_or_pre_rounded(monkeypatch, tmp_path):
    """Pre-rounded weights are whole steps, 127 to the largest of a channel; published ones are not."""
    given = []
    quantizer = Quantizer(lambda model, *_: given.append(model), 'none')
    monkeypatch.setitem(study.toolchains.QUANTIZERS, 'other', quantizer)
    model = small_classifier()
    for preround in (False, True):
        study.build(None, '', model, images(8), study.Other('other', preround), tmp_path)
    published, snapped = ([layer.linear.weight.detach().flatten(1) for layer in layers_of(one)] for one in given)
    assert all(
        torch.equal(weight, layer.linear.weight.flatten(1)) for weight, layer in zip(published, layers_of(model))
    )

    def share_on_the_grid(weights):
        steps = [(127 * weight / weight.abs().amax(1, keepdim=True)).flatten() for weight in weights]
        return float(torch.cat([(each - each.round()).abs() < 1e-3 for each in steps]).double().mean())

    # A few channels' largest weight has moved off the grid's end.
    assert share_on_the_grid(published) < 0.2 and share_on_the_grid(snapped) > 0.8


def test_the_comparison_with_others_has_an_interval_of_95_percent():
    """Right in one set of two, wrong in the other, on 20 of 500 photos: half a loss each."""
    wrong = ' '.join(f'{number}-' for number in range(20))
    rows = [dict(calibration='', form='float', changes='')]
    rows += [dict(calibration=name, form='default', changes='') for name in study.OTHERS.sets]
    rows += [dict(calibration=name, form='NNCF', changes=lost) for name, lost in zip(study.OTHERS.sets, (wrong, ''))]
    rows = [dict(row, num_images='500', top1='80.00', flips=str(len(row['changes'].split()))) for row in rows]
    half = 1.959964 * 50 * (0.04 * 0.96 / 499) ** 0.5
    cell = f'2.00 ({2 - half:.2f} to {2 + half:.2f})'
    assert study.table(rows, study.OTHERS).endswith(f'| NNCF | {cell} | 2.00 | {cell} |')


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
