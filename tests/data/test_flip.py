"""Flips on the device: the same batches as by mmcv's flips in the loader, and none that get lost."""

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, data_options, only_line
from mmengine.dataset import default_collate, pseudo_collate
from mmpretrain.datasets.transforms import PackInputs
from mmpretrain.registry import MODELS, TRANSFORMS

from mobileone_ext.data.flip import ON_DEVICE, DrawFlip

NORMALIZATION = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True)


def samples(flip, count=12):
    """Packed samples of images of noise, flipped by ``flip``, from the same seed."""
    np.random.seed(3)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(count)]
    return [PackInputs()(flip(dict(img=image, gt_label=1, img_shape=(5, 7)))) for image in images]


@pytest.mark.parametrize('collate', [default_collate, pseudo_collate])
@pytest.mark.parametrize('prob', [0.0, 0.5, 1.0])
def test_batches_are_those_of_flips_in_the_loader(prob, collate):
    by_loader, drawn = (
        samples(TRANSFORMS.build(dict(type=kind, prob=prob))) for kind in ('RandomFlip', 'mobileone_ext.DrawFlip')
    )
    assert all(sample['inputs'].dtype == torch.uint8 for sample in drawn)
    flips = [sample['data_samples'].get('flip_direction') == ON_DEVICE for sample in drawn]
    assert (0 < sum(flips) < 12) if prob == 0.5 else sum(flips) == 12 * prob
    ordinary = MODELS.build(dict(type='ClsDataPreprocessor', **NORMALIZATION))
    ours = MODELS.build(dict(type='mobileone_ext.FlippingDataPreprocessor', **NORMALIZATION))
    expected = ordinary(collate(by_loader), training=True)['inputs']
    assert torch.equal(ours(collate(drawn), training=True)['inputs'], expected)
    # What the loader has flipped is not flipped again.
    assert torch.equal(ours(collate(by_loader), training=True)['inputs'], expected)


def test_other_directions_stay_in_the_loader():
    with pytest.raises(ValueError, match="direction='vertical'"):
        DrawFlip(direction='vertical')


def options(digits, tmp_path, preprocessor):
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(ROOT / TINY)!r}\ntrain_cfg = dict(max_epochs=1)\nparam_scheduler = []\n')
    flips = ['train_dataloader.dataset.pipeline.RandomFlip.type=mobileone_ext.DrawFlip']
    if preprocessor:
        flips.append('model.data_preprocessor.type=mobileone_ext.FlippingDataPreprocessor')
    return ('train', config, '--no-validate', '--seed', 0, '--cfg-options', *data_options(digits), *flips)


def test_a_run_is_the_same(digits, run_tool, tmp_path):
    name, config, *rest = options(digits, tmp_path, True)
    runs = {}
    for kind, arguments in (('device', rest), ('loader', rest[:-2])):
        code, text = run_tool(name, config, '--work-dir', tmp_path / kind, *arguments)
        assert code == 0, text
        runs[kind] = torch.load(tmp_path / kind / 'epoch_1.pth', weights_only=True)['state_dict']
    assert all(torch.equal(tensor, runs['loader'][key]) for key, tensor in runs['device'].items())


def test_flips_that_nothing_carries_out_are_refused(digits, run_tool, tmp_path):
    for extra in ((), ('--dry-run',)):
        name, config, *rest = options(digits, tmp_path, False)
        code, text = run_tool(name, config, '--work-dir', tmp_path / 'run', *extra, *rest)
        assert code == 1 and 'FlippingDataPreprocessor' in only_line(text), text
