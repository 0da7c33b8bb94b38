"""All branches as one convolution: the same training step as the branches themselves, in float64."""

import copy

import pytest
import torch
from conftest import randomise_norms
from torch import nn

from mobileone_ext.block import MobileOneBlock

DEPTHWISE = dict(in_channels=6, out_channels=6, kernel_size=3, groups=6)
POINTWISE = dict(in_channels=6, out_channels=6, kernel_size=1)
BLOCKS = {
    **{f'depthwise k={k}': dict(DEPTHWISE, num_conv_branches=k) for k in (1, 4)},
    **{f'pointwise k={k}': dict(POINTWISE, num_conv_branches=k) for k in (1, 4)},
    'widening': dict(POINTWISE, out_channels=10, num_conv_branches=4),
    'depthwise stride 2': dict(DEPTHWISE, stride=2, num_conv_branches=4),
    'stem': dict(in_channels=3, out_channels=8, kernel_size=3, stride=2),
    'no scale': dict(DEPTHWISE, use_scale=False, num_conv_branches=2),
    'no skip': dict(DEPTHWISE, use_skip=False, num_conv_branches=2),
    'not covered: dilation': dict(DEPTHWISE, dilation=2),
}


def step(block, x):
    """Output, gradients of input and parameters, and buffers of one training step."""
    x = x.clone().requires_grad_()
    out = block(x)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return dict(out=out.detach(), x=x.grad, **gradients, **dict(block.named_buffers()))


@pytest.mark.filterwarnings('ignore:train_impl')
@pytest.mark.parametrize('plane', [(7, 9), (8, 6), (2, 2), (1, 1)], ids=str)
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('options', BLOCKS.values(), ids=BLOCKS)
def test_moments_step_equals_branches_step(options, batch, plane):
    out_pixels = batch * -(-plane[0] // options.get('stride', 1)) * -(-plane[1] // options.get('stride', 1))
    if out_pixels < 2:
        pytest.skip('batch norm has no variance of one value')
    torch.manual_seed(0)
    moments = randomise_norms(MobileOneBlock(**options, act=nn.SiLU, train_impl='moments')).double().train()
    branches = copy.deepcopy(moments)
    branches.train_impl = 'branches'
    x = torch.randn(batch, options['in_channels'], *plane, dtype=torch.float64)
    assert moments._takes_moments(x) == (options.get('dilation', 1) == 1)
    expected, found = step(branches, x), step(moments, x)
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-10 * max(1, float(value.abs().max())), name


def test_the_choice_is_checked():
    with pytest.raises(ValueError, match="train_impl='fast'"):
        MobileOneBlock(**DEPTHWISE, train_impl='fast')
