"""The study of exported files: what is measured, what is kept, and how it is tabulated."""

import pytest
import torch
from conftest import data_options

from mobileone_ext import cli
from mobileone_ext.deploy import fuse
from research.formats import study

pytestmark = pytest.mark.filterwarnings('ignore')


def test_files_are_measured_once_against_the_weights(digits, tmp_path, monkeypatch):
    config = cli.load_config(
        'tests/configs/tiny_digits.py', dict(option.split('=') for option in data_options(digits)[:3])
    )
    config.work_dir, config.test_dataloader.num_workers = str(tmp_path / 'log'), 0
    config.test_dataloader.persistent_workers = False
    torch.save(fuse.build_model(config, 'fused').state_dict(), tmp_path / 'net.pth')
    rows = study.measure_all(config, str(tmp_path / 'net.pth'), tmp_path, ['.onnx'], 32)
    assert [(row['file'], row['precision'], row['changed']) for row in rows][0] == ('.onnx', 'float32', 0)
    assert [row['precision'] for row in rows] == ['float32', 'float16']
    assert 0 < rows[0]['rel'] < 1e-5 < rows[1]['rel'] < 1e-2
    assert rows[0]['bytes'] == (tmp_path / 'float_onnx.onnx').stat().st_size > rows[1]['bytes']
    assert rows[0]['images'] == len(list((digits / 'val').rglob('*.png')))
    monkeypatch.setattr(study, 'measure', None)
    again = study.measure_all(config, str(tmp_path / 'net.pth'), tmp_path, ['.onnx'], 32)
    assert study.table(again) == study.table(rows)


def test_table():
    row = dict(file='.pte', precision='float32', top1=80.769, top5='94.923', changed=0, abs=5.2e-05, rel=6.3e-06)
    line = study.table([dict(row, bytes='8479177', cpu_ms=5.346, images=1300)]).splitlines()[2]
    assert line == '| `*.pte` | float32 | 80.77 | 94.92 | 0 of 1300 | 5.2e-05 | 6.3e-06 | 8.5 | 5.3 |'


def test_reference_is_asked_once_for_the_same_images():
    calls = []
    net = torch.nn.Linear(2, 2)
    net.register_forward_hook(lambda *_: calls.append(1))
    remembered, images = study.Remembered(net), torch.rand(3, 2)
    first, again, other = remembered(images), remembered(images.clone()), remembered(images + 1)
    assert len(calls) == 2 and torch.equal(first, again) and not torch.equal(first, other)
