"""What can be fused is, with the same proof: other networks that have ``switch_to_deploy``, subclasses, own blocks."""

import json

import pytest
import torch
from conftest import TINY, data_options, randomize_norms
from mmpretrain.registry import MODELS

from mobileone_ext.backbone import MobileOne
from mobileone_ext.block import MobileOneBlock
from mobileone_ext.cli import load_config
from mobileone_ext.deploy import fuse


class OwnMobileOne(MobileOne):
    """A subclass under a name of its own."""


class OwnBlock(MobileOneBlock):
    """A block of one's own that adds nothing."""


MODELS.register_module(module=OwnMobileOne, force=True)
MODELS.register_module(module=OwnBlock, force=True)

REPVGG = dict(
    type='RepVGG',
    arch=dict(num_blocks=[1, 1, 1, 1], width_factor=[0.125, 0.125, 0.125, 0.0625], group_layer_map=None, se_cfg=None),
)
TYPES = [dict(type='ConvBN', count=2), dict(type='Conv1xKBN'), dict(type='PointwiseConvBN'), dict(type='SkipBN')]
BACKBONES = {
    'a subclass with a block of its own': dict(type='OwnMobileOne', block='OwnBlock'),
    'other branches': dict(branches=TYPES),
    'RepVGG of mmpretrain': dict(REPVGG, _delete_=True),
}


def config_with(backbone, digits):
    overrides = dict(option.split('=', 1) for option in data_options(digits)[:3])
    config = load_config(TINY, overrides)
    if backbone.get('_delete_'):
        config.model.backbone = {key: value for key, value in backbone.items() if key != '_delete_'}
        config.model.head.in_channels = 32
    else:
        config.model.backbone.update(backbone)
        config.model.backbone.arch = {k: v for k, v in config.model.backbone.arch.items() if k != '_delete_'}
    return config


@pytest.mark.parametrize('backbone', BACKBONES.values(), ids=BACKBONES)
def test_reparam_and_test_take_them(run_tool, backbone, digits, tmp_path):
    config = config_with(backbone, digits)
    torch.manual_seed(0)
    model = randomize_norms(fuse.build_model(config, 'branched'))
    file, out = tmp_path / 'branched.pth', tmp_path / 'fused.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), file)
    config.dump(tmp_path / 'config.py')
    code, printed = run_tool('reparam', tmp_path / 'config.py', file, out, '--report', tmp_path / 'report.json')
    assert code == 0, printed
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['changed_predictions'] == 0 and report['params_after'] < report['params_before']
    x = torch.randn(2, 3, 32, 32)
    weights = fuse.read_weights(config, str(out))
    torch.testing.assert_close(fuse.load_model(config, weights)(x), model(x), rtol=1e-3, atol=1e-4)
    code, printed = run_tool('test', tmp_path / 'config.py', out, '--work-dir', tmp_path / 'work')
    assert code == 0 and f'{report["top1_after"]:.2f}'[:4] in printed, printed
    code, printed = run_tool('reparam', tmp_path / 'config.py', out, tmp_path / 'again.pth')
    assert code == 1 and 'is fused already' in printed and not (tmp_path / 'again.pth').exists()


def test_what_cannot_be_fused_is_named(run_tool, digits, tmp_path):
    config = config_with(dict(type='ResNet', depth=18, _delete_=True), digits)
    config.dump(tmp_path / 'config.py')
    code, printed = run_tool('reparam', tmp_path / 'config.py', 'none.pth', tmp_path / 'out.pth')
    assert code == 1 and 'its backbone is ResNet, which has no switch_to_deploy(): nothing to fuse' in printed
