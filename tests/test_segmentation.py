"""The backbone in mmsegmentation (the maintained fork, beside its stack): builds, takes a train step, fuses."""

import pytest
import torch
from conftest import randomize_norms

pytest.importorskip('mmseg', reason='needs onedl-mmsegmentation: make test REQUIREMENTS=requirements-onedl.txt')


def test_a_segmentor_trains_and_fuses():
    from mmengine.registry import DefaultScope
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    arch = dict(num_blocks=[1, 1, 1, 1], width_factor=[0.125, 0.125, 0.0625, 0.0625], num_conv_branches=[2, 2, 2, 2])
    config = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
        backbone=dict(type='mobileone_ext.MobileOne', arch=arch, out_indices=(0, 1, 2, 3)),
        decode_head=dict(
            type='FCNHead',
            in_channels=32,
            in_index=3,
            channels=8,
            num_convs=1,
            num_classes=3,
            norm_cfg=dict(type='BN'),
            loss_decode=dict(type='CrossEntropyLoss', loss_weight=1.0),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config)
        assert type(model.backbone).__module__ == 'mobileone_ext.backbone'
        torch.manual_seed(0)
        label = PixelData(data=torch.randint(0, 3, (1, 64, 64)))
        samples = [SegDataSample(gt_sem_seg=label, metainfo=dict(img_shape=(64, 64))) for _ in range(2)]
        images = torch.randn(2, 3, 64, 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        before = [parameter.clone() for parameter in model.backbone.parameters()]
        losses = model.train()(images, samples, mode='loss')
        losses['decode.loss_ce'].backward()
        optimizer.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, model.backbone.parameters()))
        randomize_norms(model).eval()
        with torch.no_grad():
            expected = model(images, mode='tensor')
            model.backbone.switch_to_deploy()
            found = model(images, mode='tensor')
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert not any('branch_conv_list' in key for key in model.state_dict())
