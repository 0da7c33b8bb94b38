"""One block: its fused form against its branches, and a fusion that is wrong on purpose."""

from functools import partial

import pytest
import torch
from conftest import randomize_norms
from mmpretrain.models.utils import SELayer
from torch import nn
from torch.nn.utils import prune

from mobileone_ext import branches as branches_module
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
    return branches_module_affine(torch.zeros_like(mean), *rest)


def forgotten_skip(*args, **kwargs):
    return torch.zeros_like(branches_module_identity(*args, **kwargs))


def wrong_pad(weight, shape):
    return branches_module_pad(weight, shape).roll(1, dims=-1)


branches_module_affine = branches_module.norm_affine
branches_module_identity = branches_module.identity_kernel
branches_module_pad = branches_module._padded

SABOTAGE = {
    'dropped running mean': ('norm_affine', dropped_mean),
    'forgotten skip': ('identity_kernel', forgotten_skip),
    'wrong pad': ('_padded', wrong_pad),
}


@pytest.mark.parametrize(('name', 'wrong'), SABOTAGE.values(), ids=SABOTAGE)
def test_a_wrong_fusion_shows(name, wrong, monkeypatch):
    block = make_block(**DEPTHWISE).double()
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    expected = block(x)
    monkeypatch.setattr(branches_module, name, wrong)
    block.switch_to_deploy()
    assert (block(x) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(DEPTHWISE, kernel_size=4), 'kernel_size=4'),
        (dict(DEPTHWISE, groups=3), 'divisible by groups'),
        (dict(DEPTHWISE, num_conv_branches=0, use_scale=False, use_skip=False), 'without a branch'),
        (dict(STEM, num_conv_branches=-1), 'ConvBN: count=-1'),
        *(
            (dict(STEM, **{name: 0}), f'{name}=0: allowed is an integer, 1 or more')
            for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'dilation', 'groups')
        ),
        *((dict(STEM, stride=value), f'stride={value!r}: allowed') for value in (3.0, float('nan'), True, '3', None)),
        (dict(STEM, train_impl='fast'), "train_impl='fast'"),
    ],
)
def test_impossible_blocks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MobileOneBlock(**options)


@pytest.mark.parametrize('norm', [nn.InstanceNorm2d, partial(nn.BatchNorm2d, track_running_stats=False)])
def test_norms_that_do_not_fuse_are_named(norm):
    with pytest.raises(ValueError, match='cannot be fused'):
        MobileOneBlock(**DEPTHWISE, norm=norm).switch_to_deploy()


class Adapter(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 0.1 * x


class Harmless(nn.Conv2d):
    pass


def replaced(block, kind=nn.Conv2d, **options):
    old = block.branch_conv_list[0].conv
    conv = kind(8, 8, 3, **dict(dict(padding=1, groups=8, bias=False), **options))
    nn.init.normal_(conv.weight)
    block.branch_conv_list[0].conv = conv.to(old.weight.dtype)


def step_aside(block):
    """As an optimizer does after the last forward pass: what old-style parametrizations left behind is stale."""
    with torch.no_grad():
        for parameter in block.branch_conv_list[0].parameters():
            parameter.mul_(1.5)


def doubled(_, inputs, out):
    return 2 * out


FUSE = {
    'bias': lambda b: replaced(b, bias=True),
    'subclass that adds nothing': lambda b: replaced(b, Harmless),
    'statistics collector': lambda b: b.branch_conv_list[0].conv.register_forward_hook(lambda *args: None),
    'dropout in a branch': lambda b: b.branch_conv_list[0].add_module('drop', nn.Dropout(0.5)),
    'weight_norm': lambda b: nn.utils.parametrizations.weight_norm(b.branch_conv_list[0].conv),
    'spectral_norm': lambda b: nn.utils.parametrizations.spectral_norm(b.branch_conv_list[0].conv),
    'old weight_norm': lambda b: (nn.utils.weight_norm(b.branch_conv_list[0].conv), step_aside(b)),
    'old spectral_norm': lambda b: (nn.utils.spectral_norm(b.branch_conv_list[0].conv), step_aside(b)),
    'pruning': lambda b: (prune.l1_unstructured(b.branch_conv_list[0].conv, 'weight', 0.5), step_aside(b)),
}
REFUSE = {
    'forward hook': lambda b: b.branch_conv_list[0].conv.register_forward_hook(doubled),
    'adapter': lambda b: replaced(b, Adapter),
    'reflected border': lambda b: replaced(b, padding_mode='reflect'),
    'dilation': lambda b: replaced(b, padding=2, dilation=2),
    'activation in a branch': lambda b: b.branch_conv_list[0].add_module('act', nn.GELU()),
    'other module as a branch': lambda b: b.branch_conv_list.__setitem__(0, nn.AvgPool2d(3, 1, 1)),
    'no norm': lambda b: setattr(b.branch_conv_list[0], 'norm', nn.Identity()),
    'own forward': lambda b: setattr(b.branch_conv_list[0].norm, 'forward', lambda x: x),
    'NaN': lambda b: replaced(b, Nan),
}


class Nan(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * float('nan')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('change', FUSE.values(), ids=FUSE)
def test_changed_branches_fuse_to_what_they_compute(change):
    torch.manual_seed(0)
    block = make_block(**DEPTHWISE, num_conv_branches=2).double()
    change(block)
    block.train()
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    block.switch_to_deploy()
    assert block.training and [*block.state_dict()] == ['branch_reparam.weight', 'branch_reparam.bias']
    torch.manual_seed(0)
    expected = make_block(**DEPTHWISE, num_conv_branches=2).double()
    change(expected)
    torch.testing.assert_close(block.eval()(x), expected.eval()(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('change', REFUSE.values(), ids=REFUSE)
def test_what_no_kernel_computes_is_not_fused(change):
    torch.manual_seed(0)
    block = make_block(**DEPTHWISE, num_conv_branches=2).double()
    change(block)
    before, modes = [*block.state_dict()], [module.training for module in block.modules()]
    with pytest.raises(ValueError, match='cannot be fused'):
        block.switch_to_deploy()
    assert not block.deploy and [*block.state_dict()] == before
    assert [module.training for module in block.modules()] == modes


@pytest.mark.parametrize('options', [dict(DEPTHWISE), dict(POINTWISE), dict(POINTWISE, out_channels=12)], ids=str)
@pytest.mark.parametrize('part', ['norms', 'kernels', 'all', 'none'])
def test_a_fused_kernel_can_learn_if_something_of_its_branches_could(options, part):
    block = make_block(**options, act=nn.PReLU)
    for module in block.modules():
        kinds = dict(norms=(nn.BatchNorm2d,), kernels=(nn.Conv2d,), all=(nn.BatchNorm2d, nn.Conv2d), none=())[part]
        if isinstance(module, kinds):
            module.requires_grad_(False)
    block.switch_to_deploy()
    expected = part != 'all'
    assert {parameter.requires_grad for parameter in block.branch_reparam.parameters()} == {expected}


def test_channels_last_training_step_equals_contiguous():
    torch.manual_seed(0)
    block, x = MobileOneBlock(**STEM), torch.randn(2, 3, 17, 16)
    block(x).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in block.named_parameters()}
    block.zero_grad()
    block.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).sum().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4)
