"""mmpretrain's own tools on our configs, run from where it is installed."""

import runpy
import sys
from pathlib import Path

import matplotlib
import mmpretrain
import pytest
from conftest import ROOT
from PIL import Image

TOOLS = Path(mmpretrain.__file__).parent / '.mim/tools/visualization'


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(name, *arguments):
        matplotlib.use('Agg')
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(TOOLS / name), run_name='__main__')

    return run


@pytest.mark.parametrize('config', ['mobileone_s2_8xb32', 'mobileone_s0_digits'])
def test_vis_scheduler(run, tmp_path, config):
    options = ['--dataset-size', 512, '--not-show', '--save-path', tmp_path / 'lr.png']
    short = [f'work_dir={tmp_path}', 'train_cfg.max_epochs=8']
    run('vis_scheduler.py', ROOT / f'configs/{config}.py', *options, '--cfg-options', *short)
    assert Image.open(tmp_path / 'lr.png').size[0] > 100


def test_browse_dataset(run, tmp_path):
    """JPEG files, as the ImageNet configs read them: their decoding waits for the crop.

    Its modes that draw a grid fail in mmpretrain itself with this matplotlib, on any config.
    """
    for kind in 'ab':
        (tmp_path / 'data/train' / kind).mkdir(parents=True)
        Image.radial_gradient('L').convert('RGB').save(tmp_path / f'data/train/{kind}/{kind}.jpg')
    text = f"""
_base_ = '{ROOT}/configs/mobileone_s2_8xb32.py'
train_dataloader = dict(dataset=dict(_delete_=True, type='CustomDataset', data_root='{tmp_path}/data',
    data_prefix='train', pipeline=[
        dict(type='mobileone_ext.LoadImageFromFile', lazy=True),
        dict(type='mobileone_ext.RandomResizedCrop', scale=224, backend='pillow'),
        dict(type='mobileone_ext.AutoAugment', policies='imagenet'),
        dict(type='PackInputs')]))
"""
    (tmp_path / 'config.py').write_text(text)
    options = ['--output-dir', tmp_path / 'out', '--not-show', '--show-number', 2, '--mode', 'original']
    run('browse_dataset.py', tmp_path / 'config.py', *options)
    assert len(list((tmp_path / 'out').glob('*.jpg'))) == 2
