"""Branch types: what each computes, fused and by moments, where it stands, and types and blocks of one's own."""

import copy
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from conftest import randomize_norms
from printed import blocks
from torch import nn

from mobileone_ext.backbone import MobileOne
from mobileone_ext.block import MobileOneBlock
from mobileone_ext.branches import BRANCH_TYPES, BranchType, ConvShape, register, running_affine
from mobileone_ext.config import load_config
from mobileone_ext.engine.dry_run import used_branches
from mobileone_ext.reparam import Kernel, compose_kernels, fold_affine

SHAPES = {
    'depthwise': dict(in_channels=6, out_channels=6, kernel_size=3, groups=6),
    'depthwise 5x5, stride 2': dict(in_channels=6, out_channels=6, kernel_size=5, groups=6, stride=2),
    'depthwise, dilation 2': dict(in_channels=6, out_channels=6, kernel_size=3, groups=6, dilation=2),
    'depthwise multiplier 2': dict(in_channels=4, out_channels=8, kernel_size=3, groups=4),
    'two groups': dict(in_channels=4, out_channels=6, kernel_size=3, groups=2),
    'pointwise': dict(in_channels=6, out_channels=6, kernel_size=1),
    'dense': dict(in_channels=5, out_channels=5, kernel_size=3),
    'stem': dict(in_channels=3, out_channels=8, kernel_size=3, stride=2),
}
STANDS = {  # by hand: in which of SHAPES
    'ConvBN': {*SHAPES},
    'PointwiseBN': {*SHAPES} - {'pointwise'},
    'SkipBN': {'depthwise', 'depthwise, dilation 2', 'pointwise', 'dense'},
    'Conv1xKBN': {*SHAPES} - {'pointwise'},
    'ConvKx1BN': {*SHAPES} - {'pointwise'},
    'PointwiseConvBN': {*SHAPES} - {'pointwise'},
    'PointwisePoolBN': {*SHAPES} - {'pointwise', 'depthwise, dilation 2'},
}
ARCH = dict(num_blocks=[1, 2, 2, 1], width_factor=[0.125] * 4, num_conv_branches=[2] * 4)
EVERY = [dict(type=name) for name in STANDS]


def make(shape, branches, **options):
    torch.manual_seed(0)
    block = MobileOneBlock(**SHAPES[shape], branches=branches, act=nn.SiLU, **options)
    return randomize_norms(block).double()


def images(shape, size=(8, 7)):
    return torch.randn(3, SHAPES[shape]['in_channels'], *size, dtype=torch.float64)


def assert_close(found, expected, tolerance=1e-10):
    scale = max(1.0, float(expected.detach().abs().max()))
    assert found.shape == expected.shape and float((found - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('name', STANDS)
def test_every_type_stands_where_it_can_and_fuses_exactly(name, shape):
    if shape not in STANDS[name]:
        with pytest.raises(ValueError, match='without a branch'):
            make(shape, [dict(type=name)])
        return
    # Nothing tells a branch of one pixel from its border's, so a larger plane; twice where there can be two.
    count = 1 if BRANCH_TYPES[name].slot in ('branch_scale', 'branch_norm') else 2
    block = make(shape, [dict(type=name, count=count)]).eval()
    x = images(shape)
    expected = block(x)
    block.switch_to_deploy()
    assert_close(block(x), expected)
    assert [*block.state_dict()] == ['branch_reparam.weight', 'branch_reparam.bias']


@pytest.mark.parametrize('shape', ['depthwise', 'stem', 'two groups'])
def test_all_types_together_fuse_exactly(shape):
    block = make(shape, EVERY).eval()
    x = images(shape, (9, 9))
    expected = block(x)
    block.switch_to_deploy()
    assert_close(block(x), expected)


def test_1xk_is_what_its_paper_says():
    block = make('depthwise', [dict(type='Conv1xKBN'), dict(type='ConvKx1BN')]).eval()
    row, column = block.branch_list
    assert row.conv.weight.shape == (6, 1, 1, 3) and column.conv.weight.shape == (6, 1, 3, 1)
    x = images('depthwise')
    for branch, padding in ((row, (0, 1)), (column, (1, 0))):
        assert_close(branch(x), branch.norm(F.conv2d(x, branch.conv.weight, padding=padding, groups=6)))


def test_the_map_between_is_padded_by_what_its_norm_makes_of_zero():
    """Zeros there, as torch's padding has them, would not fuse."""
    block = make('stem', [dict(type='PointwiseConvBN')]).eval()
    (branch,) = block.branch_list
    x = images('stem')
    padded = branch.padded.norm(branch.pointwise(F.pad(x, [1] * 4)))
    assert_close(branch(x), branch.norm(F.conv2d(padded, branch.conv.weight, stride=2)))


def test_compose_kernels_is_one_convolution_after_the_other():
    first = Kernel(torch.randn(4, 3, 1, 1, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    expected = F.conv2d(F.conv2d(x, *first, groups=2), weight, groups=2)
    assert_close(F.conv2d(x, *compose_kernels(first, weight, 2), groups=2), expected)


def step(block, x):
    x = x.clone().requires_grad_()
    out = block(x)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return dict(out=out.detach(), x=x.grad, **gradients, **dict(block.named_buffers()))


COVERED = {
    'ACNet': ('depthwise', [dict(type='ConvBN'), dict(type='Conv1xKBN'), dict(type='ConvKx1BN')]),
    'ACNet in the stem': ('stem', [dict(type='ConvBN'), dict(type='Conv1xKBN'), dict(type='ConvKx1BN')]),
    'asymmetric alone': ('depthwise', [dict(type='Conv1xKBN', count=2), dict(type='SkipBN')]),
    'pooling': ('depthwise', [dict(type='ConvBN'), dict(type='PointwisePoolBN'), dict(type='PointwiseBN')]),
}


@pytest.mark.parametrize(('shape', 'branches'), COVERED.values(), ids=COVERED)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
def test_moments_train_them_to_the_same(either, shape, branches, memory_format):
    moments = make(shape, branches, train_impl='moments').to(memory_format=memory_format)
    x = images(shape).contiguous(memory_format=memory_format)
    assert moments.takes_moments(x) and 'takes the branches' not in repr(moments)
    by_branches = copy.deepcopy(moments)
    by_branches.train_impl = 'branches'
    found, expected = step(moments, x), step(by_branches, x)
    for name, value in expected.items():
        assert_close(found[name], value)


@pytest.mark.filterwarnings('ignore:train_impl')
@pytest.mark.parametrize(
    ('shape', 'name'), [('depthwise', 'PointwiseConvBN'), ('stem', 'PointwiseConvBN'), ('stem', 'PointwisePoolBN')]
)
def test_what_has_a_norm_inside_trains_by_its_branches_and_says_so(shape, name):
    block = make(shape, [dict(type='ConvBN'), dict(type=name)], train_impl='moments')
    assert not block.takes_moments(images(shape))
    assert 'takes the branches: branch_list.0: it is not linear up to a last batch norm' in repr(block)
    assert all(grad is not None for grad in step(block, images(shape)).values())


@pytest.mark.parametrize(
    ('branches', 'options', 'message'),
    [
        ([dict(type='Nobody')], {}, "{'type': 'Nobody'} is of no registered type; known are Conv1xKBN, ConvBN"),
        ([dict(type='SkpBN')], {}, "{'type': 'SkpBN'} is of no registered type; did you mean 'SkipBN'?"),
        ([dict(count=2)], {}, "{'count': 2} is of no registered type"),
        (['ConvBN'], {}, "'ConvBN' is of no registered type"),
        ([dict(type='ConvBN', count=-1)], {}, 'ConvBN: count=-1: allowed is an integer, 0 or more'),
        ([dict(type='ConvBN', count=True)], {}, 'ConvBN: count=True'),
        ([dict(type='SkipBN', count=2)], {}, 'SkipBN: count=2: allowed is an integer from 0 to 1'),
        ([dict(type='SkipBN'), dict(type='SkipBN')], {}, 'SkipBN: there is one place for it'),
        ([dict(type='ConvBN', count=0)], {}, 'without a branch'),
        ([], {}, 'without a branch'),
        ([dict(type='ConvBN', size=5)], {}, "ConvBN: .*unexpected keyword argument 'size'"),
        ([dict(type='ConvBN')], dict(num_conv_branches=2), 'say the same thing'),
    ],
    ids=str,
)
@pytest.mark.parametrize('deploy', [False, True])
def test_slips_are_one_line(branches, options, message, deploy):
    if deploy and 'keyword' in message:
        pytest.skip('nothing is built of a branch that is fused')
    with pytest.raises(ValueError, match=message) as error:
        MobileOneBlock(**SHAPES['depthwise'], branches=branches, deploy=deploy, **options)
    assert '\n' not in str(error.value)


def conv_bn(shape, norm, kernel_size=None, between=None, **options):
    layers = [shape.conv(kernel_size, **options), norm(shape.out_channels)]
    return nn.Sequential(*layers[:1], *([between] if between else []), *layers[1:])


def conv_kernel(branch, shape):
    return fold_affine(branch[0].weight, running_affine(branch[-1]))


def conv_linear(branch, shape):
    return branch[0].weight, branch[-1]


WRONG = {
    'a ReLU inside': dict(build=lambda shape, norm: conv_bn(shape, norm, between=nn.ReLU())),
    'another stride': dict(build=lambda shape, norm: conv_bn(shape, norm, stride=2)),
    'another padding': dict(build=lambda shape, norm: conv_bn(shape, norm, padding=0)),
    'a larger kernel': dict(build=lambda shape, norm: conv_bn(shape, norm, kernel_size=5)),
    'another dilation': dict(build=lambda shape, norm: conv_bn(shape, norm, dilation=2, padding=2)),
    'a kernel that is wrong': dict(kernel=lambda branch, shape: Kernel(branch[0].weight, branch[1].bias)),
    'a linear part that is wrong': dict(linear=lambda branch, shape: (2 * branch[0].weight + 1, branch[-1])),
    'a kernel that fails': dict(kernel=lambda branch, shape: branch.nothing),
}
SAID = {
    'a ReLU inside': r'kernel\(\) is not .* \(by [\d.e+-]+ where the largest is [\d.e+-]+\) for ConvShape',
    'another stride': r'kernel\(\) is not .* \(\(2, 8, 6, 6\) for its \(2, 8, 3, 3\)\) for ConvShape',
    'a linear part that is wrong': r'linear\(\) is not .* \(by ',
    'a kernel that fails': 'AttributeError: .*nothing',
}


@pytest.fixture
def registered():
    """``registered(name, type)`` for this test alone."""
    with patch.dict(BRANCH_TYPES):
        yield register


@pytest.mark.parametrize('wrong', WRONG)
def test_a_type_that_is_not_what_it_says_is_refused_when_the_network_is_built(registered, wrong):
    kind = BranchType(**{**dict(build=conv_bn, kernel=conv_kernel, linear=conv_linear), **WRONG[wrong]})
    registered('Mine', kind)
    with pytest.raises(ValueError, match=f'branch type Mine: {SAID.get(wrong, "")}') as error:
        MobileOne(ARCH, branches=[dict(type='ConvBN'), dict(type='Mine')])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('shape', ['depthwise', 'stem', 'pointwise'])
def test_a_type_of_ones_own_trains_by_moments_and_fuses(registered, shape):
    registered('Mine', BranchType(build=conv_bn, kernel=conv_kernel, linear=conv_linear))
    block = make(shape, [dict(type='ConvBN'), dict(type='Mine', count=2)], train_impl='moments')
    x = images(shape)
    assert block.takes_moments(x)
    by_branches = copy.deepcopy(block)
    by_branches.train_impl = 'branches'
    found, expected = step(block, x), step(by_branches, x)
    for name, value in expected.items():
        assert_close(found[name], value)
    block.eval()
    before = block(x)
    block.switch_to_deploy()
    assert_close(block(x), before)


def test_names_are_registered_once():
    with pytest.raises(ValueError, match="'ConvBN' is registered already"):
        register('ConvBN', BranchType(build=conv_bn, kernel=conv_kernel))


def test_building_a_type_of_ones_own_draws_what_its_modules_draw(registered):
    """Proving it leaves the random numbers of the run alone."""
    registered('Mine', BranchType(build=conv_bn, kernel=conv_kernel))
    torch.manual_seed(0)
    MobileOneBlock(**SHAPES['depthwise'], branches=[dict(type='Mine')])
    found = torch.get_rng_state()
    torch.manual_seed(0)
    conv_bn(ConvShape(**SHAPES['depthwise']), nn.BatchNorm2d)
    assert torch.equal(found, torch.get_rng_state())


class Extra(MobileOneBlock):
    """As one would write it who reads the block alone: one more module, added to the sum."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = nn.Conv2d(self.in_channels, self.out_channels, 1, self.stride, groups=self.groups)

    def _sum_branches(self, x):
        return super()._sum_branches(x) + self.extra(x)


class Behind(MobileOneBlock):
    """Something behind the block, in its own forward."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.full((1, self.out_channels, 1, 1), 1.5))

    def forward(self, x):
        return self.gain * super().forward(x)


class Beside(MobileOneBlock):
    """A branch beside the block, in its own forward, which the fused form lacks."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = nn.Conv2d(self.in_channels, self.out_channels, 1, self.stride, groups=self.groups)

    def forward(self, x):
        out = super().forward(x)
        return out if self.deploy else out + self.extra(x)


@pytest.mark.parametrize('kind', [Extra, Beside])
@pytest.mark.parametrize('impl', ['auto', 'moments'])
@pytest.mark.filterwarnings('ignore:train_impl')
def test_a_subclass_trains_what_it_adds_and_does_not_lose_it(kind, impl, monkeypatch):
    monkeypatch.setattr('mobileone_ext.moments.dispatch.is_faster', lambda *args: True)
    block = kind(**SHAPES['depthwise'], train_impl=impl).double()
    assert step(block, images('depthwise'))['extra.weight'].abs().sum() > 0
    before = [*block.state_dict()]
    with pytest.raises(ValueError, match=f'cannot be fused, it is a {kind.__name__}'):
        block.switch_to_deploy()
    assert [*block.state_dict()] == before
    net = MobileOne(ARCH, block=kind)
    with pytest.raises(ValueError, match=r'stage0: cannot be fused'):
        net.switch_to_deploy()
    assert not net.deploy


def test_a_subclass_whose_fused_form_does_the_same_fuses_and_trains_by_moments():
    block = randomize_norms(Behind(**SHAPES['depthwise'], train_impl='moments')).double()
    x = images('depthwise')
    assert block.takes_moments(x) and step(block, x)['gain'].abs().sum() > 0
    before = block.eval()(x)
    block.switch_to_deploy()
    assert_close(block(x), before)


class Plain(nn.Module):
    """A block of somebody else's: a convolution and a norm, and a fusion of its own."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, groups=1, factor=1.0, deploy=False, **_):
        super().__init__()
        self.in_channels, self.factor = in_channels, factor
        shape = ConvShape(in_channels, out_channels, kernel_size, stride, 1, groups)
        self.conv, self.norm = shape.conv(bias=deploy), nn.Identity() if deploy else nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return F.silu(self.norm(self.conv(x)))

    def switch_to_deploy(self):
        if isinstance(self.norm, nn.BatchNorm2d):
            kernel = fold_affine(self.conv.weight, running_affine(self.norm))
            self.conv.weight, self.conv.bias = map(nn.Parameter, Kernel(self.factor * kernel.weight, kernel.bias))
            self.norm = nn.Identity()


def test_a_block_of_ones_own_is_built_and_fused_with_proof():
    net = randomize_norms(MobileOne(ARCH, block=Plain)).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = net(x)[0]
    net.switch_to_deploy()
    assert net.deploy and not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert_close(net(x)[0], expected)
    wrong = randomize_norms(MobileOne(ARCH, block=dict(type=Plain, factor=1.01)))
    before = [*wrong.state_dict()]
    with pytest.raises(ValueError, match=r'stage0: cannot be fused: switch_to_deploy\(\) of Plain changes'):
        wrong.switch_to_deploy()
    assert [*wrong.state_dict()] == before and not wrong.deploy


@pytest.mark.parametrize('block', [3, 'Nobody', dict(factor=2)], ids=str)
def test_blocks_that_are_none_are_named(block):
    with pytest.raises(ValueError, match='block='):
        MobileOne(ARCH, block=block)


def count(net, kind):
    return sum(isinstance(module, kind) for module in net.modules())


def test_branches_of_a_network_by_config():
    paper = MobileOne(ARCH, branches=[dict(type='ConvBN', count=2), dict(type='PointwiseBN'), dict(type='SkipBN')])
    assert [*paper.state_dict()] == [*MobileOne(ARCH).state_dict()]
    stages = [[dict(type='ConvBN', count=k)] for k in (1, 2, 3, 4)]
    net = MobileOne(ARCH, branches=stages)
    assert [len(getattr(net, f'stage{i}')[0].branch_conv_list) for i in range(1, 5)] == [1, 2, 3, 4]
    assert len(net.stage0.branch_conv_list) == 1 and net.stage0.branch_scale is None
    fused = MobileOne(ARCH, branches=EVERY, deploy=True)
    branched = randomize_norms(MobileOne(ARCH, branches=EVERY))
    branched.switch_to_deploy()
    assert [*fused.state_dict()] == [*branched.state_dict()]


@pytest.mark.parametrize(
    ('branches', 'message'),
    [
        ([[dict(type='ConvBN')]] * 3, 'branches=.*one for each of 4'),
        ([dict(type='ConvBN'), [dict(type='ConvBN')]], 'branches='),
        ('ConvBN', "branches='ConvBN': "),
        (4, 'branches=4: '),
    ],
    ids=str,
)
def test_lists_of_branches_that_are_none_are_named(branches, message):
    with pytest.raises(ValueError, match=message):
        MobileOne(ARCH, branches=branches)


@pytest.mark.parametrize('norm', [nn.SyncBatchNorm, partial(nn.BatchNorm2d, affine=False)], ids=['SyncBN', 'no affine'])
def test_other_norms_fuse(norm):
    block = make('depthwise', EVERY, norm=norm).eval()
    x = images('depthwise')
    expected = block(x)
    block.switch_to_deploy()
    assert_close(block(x), expected)


@pytest.mark.parametrize('groups', [5, 1], ids=['depthwise', 'dense'])
def test_the_type_of_the_page_trains_and_fuses(registered, groups):
    (code,) = [block.text for block in blocks('docs/branches.md') if block.word == 'my_branches.py']
    exec(code, {})
    torch.manual_seed(0)
    shape = dict(in_channels=5, out_channels=5, kernel_size=5, groups=groups)
    block = MobileOneBlock(**shape, branches=[dict(type='ConvBN'), dict(type='DilatedBN', scale=0.5)])
    block = randomize_norms(block).double()
    assert block.branch_list[0][0].weight.shape[2:] == (3, 3)
    x = torch.randn(2, 5, 11, 12, dtype=torch.float64)
    gradients = step(block, x)
    assert gradients['branch_list.0.0.weight'].abs().sum() > 0
    expected = block.eval()(x)
    block.switch_to_deploy()
    assert_close(block(x), expected)


def test_the_type_of_the_page_stands_in_every_3x3_block(registered):
    (code,) = [block.text for block in blocks('docs/branches.md') if block.word == 'my_branches.py']
    exec(code, {})
    config = load_config('configs/mobileone_tiny_digits.py').model.backbone
    options = {key: value for key, value in config.items() if key not in ('type', 'num_conv_branches')}
    backbone = MobileOne(**options, branches=[dict(type='ConvBN'), dict(type='DilatedBN')])
    assert used_branches(backbone) == '; of 15 blocks, ConvBN in 15 (1x1 and 3x3), DilatedBN in 8 (3x3);'
    assert used_branches(nn.Linear(2, 2)) == ''
