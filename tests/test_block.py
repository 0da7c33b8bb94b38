"""One block: its fused form against its branches, and a fusion that is wrong on purpose."""

from functools import partial

import pytest
import torch
from conftest import randomize_norms
from mmpretrain.models.utils import SELayer
from torch import nn

from mobileone_ext import block as block_module
from mobileone_ext.block import MobileOneBlock

DEPTHWISE = dict(in_channels=8, out_channels=8, kernel_size=3, groups=8)
POINTWISE = dict(in_channels=8, out_channels=8, kernel_size=1)
STEM = dict(in_channels=3, out_channels=8, kernel_size=3, stride=2)

BLOCKS = {
    **{f'depthwise k={k}': dict(DEPTHWISE, num_conv_branches=k) for k in range(1, 6)},
    **{f'pointwise k={k}': dict(POINTWISE, num_conv_branches=k) for k in range(1, 6)},
    'stem': STEM,
    'widening': dict(POINTWISE, out_channels=12),
    'stride 2': dict(DEPTHWISE, stride=2),
    'dilation 2': dict(DEPTHWISE, dilation=2),
    'dilation 2, stride 2': dict(DEPTHWISE, dilation=2, stride=2),
    'kernel 5': dict(DEPTHWISE, kernel_size=5),
    'two groups': dict(DEPTHWISE, groups=2),
    'no scale': dict(DEPTHWISE, use_scale=False),
    'no skip': dict(DEPTHWISE, use_skip=False),
    'plain': dict(DEPTHWISE, use_scale=False, use_skip=False),
    'no conv branch': dict(DEPTHWISE, num_conv_branches=0),
    'skip alone': dict(POINTWISE, num_conv_branches=0),
    'SE': dict(POINTWISE, se=partial(SELayer, ratio=2, divisor=1)),
    'SyncBN': dict(DEPTHWISE, norm=nn.SyncBatchNorm),
    'BN without affine': dict(DEPTHWISE, norm=partial(nn.BatchNorm2d, affine=False)),
}


def make_block(**options):
    return randomize_norms(MobileOneBlock(**options).eval())


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('options', BLOCKS.values(), ids=BLOCKS)
def test_fused_equals_branched(options, dtype, tolerance):
    torch.manual_seed(0)
    block = make_block(**options).to(dtype)
    x = torch.randn(2, block.in_channels, 9, 10, dtype=dtype)
    expected = block(x)
    block.switch_to_deploy()
    assert (block(x) - expected).abs().max() <= tolerance * expected.abs().max()
    assert {k for k in block.state_dict() if not k.startswith('se.')} == {
        'branch_reparam.weight',
        'branch_reparam.bias',
    }
    assert MobileOneBlock(**options, deploy=True).state_dict().keys() == block.state_dict().keys()
    assert all(parameter.requires_grad for parameter in block.parameters())


def dropped_mean(mean, *rest):
    return block_module_affine(torch.zeros_like(mean), *rest)


def forgotten_skip(*args, **kwargs):
    return torch.zeros_like(block_module_identity(*args, **kwargs))


def wrong_pad(weight, size):
    return block_module_pad(weight, size).roll(1, dims=-1)


block_module_affine = block_module.norm_affine
block_module_identity = block_module.identity_kernel
block_module_pad = block_module.pad_kernel

SABOTAGE = {
    'dropped running mean': ('norm_affine', dropped_mean),
    'forgotten skip': ('identity_kernel', forgotten_skip),
    'wrong pad': ('pad_kernel', wrong_pad),
}


@pytest.mark.parametrize(('name', 'wrong'), SABOTAGE.values(), ids=SABOTAGE)
def test_a_wrong_fusion_shows(name, wrong, monkeypatch):
    block = make_block(**DEPTHWISE).double()
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    expected = block(x)
    monkeypatch.setattr(block_module, name, wrong)
    block.switch_to_deploy()
    assert (block(x) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(DEPTHWISE, kernel_size=4), 'kernel_size=4'),
        (dict(DEPTHWISE, groups=3), 'groups=3'),
        (dict(DEPTHWISE, num_conv_branches=0, use_scale=False, use_skip=False), 'without a branch'),
        (dict(STEM, num_conv_branches=-1), 'num_conv_branches=-1'),
    ],
)
def test_impossible_blocks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MobileOneBlock(**options)


@pytest.mark.parametrize('norm', [nn.InstanceNorm2d, partial(nn.BatchNorm2d, track_running_stats=False)])
def test_norms_that_do_not_fuse_are_named(norm):
    with pytest.raises(ValueError, match='cannot be fused'):
        MobileOneBlock(**DEPTHWISE, norm=norm).switch_to_deploy()


def test_channels_last_training_step_equals_contiguous():
    torch.manual_seed(0)
    block, x = MobileOneBlock(**STEM), torch.randn(2, 3, 17, 16)
    block(x).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in block.named_parameters()}
    block.zero_grad()
    block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).sum().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4)
