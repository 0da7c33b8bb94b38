"""The study of gradients against float64: its error and its table, and one state to scale."""

import csv

import pytest
import torch
from PIL import Image

from mobileone_ext.moments import kernels
from research.gradients.study import WAYS, relative_error, table


def test_error_is_the_root_of_the_mean_over_tensors():
    truth = [torch.tensor([3.0, 4.0]), torch.tensor([10.0]), torch.zeros(2)]
    actual = [torch.tensor([3.0, 4.5]), torch.tensor([13.0]), torch.ones(2)]  # 0.1, 0.3, and nothing to compare with
    assert relative_error(actual, truth) == pytest.approx((0.5 * (0.01 + 0.09)) ** 0.5)


def test_table_has_median_and_largest_of_each_state_and_of_all():
    rows = [
        dict(state=state, kind='stem', **dict.fromkeys(WAYS, value)) for state, value in zip('aab', ('1', '3', '8'))
    ]
    lines = table(rows).splitlines()[2:]
    assert [line.split('|')[3].strip() for line in lines] == [
        '2.0e+00 (3.0e+00)',
        '8.0e+00 (8.0e+00)',
        '3.0e+00 (8.0e+00)',
    ]


@pytest.mark.slow
def test_tool(tmp_path, run_tool):
    generator = torch.Generator().manual_seed(0)
    for name in 'ab':
        (tmp_path / 'train' / name).mkdir(parents=True)
        for number in range(2):
            pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / 'train' / name / f'{number}.png')
    arguments = tmp_path, tmp_path / 'out', '--steps', 0, '--image-size', 64, '--batch-size', 4
    code, printed = run_tool('research.gradients', *arguments)
    assert code == 0, printed
    rows = list(csv.DictReader((tmp_path / 'out/errors.csv').open()))
    assert len(rows) == 43 and {row['kind'] for row in rows} == {
        'stem',
        'pointwise',
        'depthwise, stride 1',
        'depthwise, stride 2',
    }
    assert all(0 < float(row[way]) < 1e-2 for row in rows for way in ('kernels', 'operators'))
    if kernels.status() == 'compiled kernels':
        assert any(row['kernels'] != row['operators'] for row in rows)
