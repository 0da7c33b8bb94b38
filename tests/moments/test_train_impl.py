"""All branches as one convolution: the same training step as the branches themselves, in float64."""

import copy

import pytest
import torch
import torch.distributed as dist
from by_moments import batch_statistics
from conftest import randomize_norms
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mobileone_ext.block import MobileOneBlock
from mobileone_ext.moments import depthwise, kernels, patches

DEPTHWISE = dict(in_channels=6, out_channels=6, kernel_size=3, groups=6)
POINTWISE = dict(in_channels=6, out_channels=6, kernel_size=1)
BLOCKS = {
    **{f'depthwise k={k}': dict(DEPTHWISE, num_conv_branches=k) for k in (1, 4)},
    **{f'depthwise stride 2 k={k}': dict(DEPTHWISE, stride=2, num_conv_branches=k) for k in (1, 4)},
    **{f'pointwise k={k}': dict(POINTWISE, num_conv_branches=k) for k in (1, 4)},
    **{f'widening k={k}': dict(POINTWISE, out_channels=10, num_conv_branches=k) for k in (1, 4)},
    'stem': dict(in_channels=3, out_channels=8, kernel_size=3, stride=2),
    'no scale': dict(DEPTHWISE, use_scale=False, num_conv_branches=2),
    'no skip': dict(DEPTHWISE, use_skip=False, num_conv_branches=2),
    'pointwise stride 2': dict(POINTWISE, stride=2, num_conv_branches=2),
}
# As deep as s0.
NARROW = dict(num_blocks=[2, 8, 10, 1], width_factor=[0.125] * 4, num_conv_branches=[2] * 4)
UNCOVERED = dict(DEPTHWISE, dilation=2)
PUBLISHED = ('s0', 's1', 's2', 's3', 's4')
every_block = pytest.mark.parametrize('options', BLOCKS.values(), ids=BLOCKS)


def pair(options, dtype=torch.float64, **more):
    """The same block twice: by moments and by branches. SiLU, as a ReLU would hide half of the gradients."""
    torch.manual_seed(0)
    moments = randomize_norms(MobileOneBlock(**{'act': nn.SiLU, **options, **more}, train_impl='moments'))
    moments = moments.to(dtype).train()
    branches = copy.deepcopy(moments)
    branches.train_impl = 'branches'
    return moments, branches


def step(block, x):
    """Output, gradients of input and parameters, and buffers of one training step."""
    x = x.clone().requires_grad_()
    out = block(x)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=generator, device='cpu').to(out)
    (out * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return dict(out=out.detach(), x=x.grad, **gradients, **dict(block.named_buffers()))


def assert_same(found, expected, tolerance=1e-10, where=''):
    """Every tensor within ``tolerance`` of the other, as a share of its largest value (of 1 if that is smaller)."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        apart = float((found[name] - value).abs().max())
        assert apart <= tolerance * max(1, float(value.abs().max())), (where, name, apart)


@every_block
def test_moments_step_equals_branches_step(either, options):
    """Odd and even planes in both layouts; one image; planes without an inside; the fewest patches that there are."""
    nchw, nhwc = torch.contiguous_format, torch.channels_last
    for batch, *plane, layout in ((3, 7, 9, nchw), (3, 8, 6, nhwc), (1, 5, 4, nhwc), (3, 2, 2, nhwc), (2, 1, 1, nchw)):
        moments, branches = pair(options)
        x = torch.randn(batch, options['in_channels'], *plane, dtype=torch.float64)
        x = x.contiguous(memory_format=layout)
        assert moments.takes_moments(x)
        assert_same(step(moments, x), step(branches, x), where=plane)


@every_block
def test_a_batch_worked_on_in_parts(options, monkeypatch):
    """An image, or few, at a time, as large maps are."""
    monkeypatch.setattr(patches, 'CHUNK_VALUES', 300)
    monkeypatch.setattr(patches, 'CHUNK_PATCHES', 30)
    monkeypatch.setattr(depthwise, 'LAG_PATCHES', 30)
    moments, branches = pair(options)
    x = torch.randn(5, options['in_channels'], 6, 4, dtype=torch.float64)
    assert len(patches.chunks(x)) > 1
    assert_same(step(moments, x), step(branches, x))


needs_kernels = pytest.mark.skipif(not kernels.usable(torch.ones(1, 1, 1, 1)), reason='no compiler')


# in, out, kernel, stride, k, pixels at the input; batch 32. Measured: docs/results/fused_training.md.
FASTER = [
    (256, 256, 3, 2, 4, 14),
    (192, 192, 3, 2, 1, 28),
    (256, 256, 3, 1, 4, 7),
    (1024, 1024, 3, 1, 1, 7),
    (3, 48, 3, 2, 1, 224),
    (48, 48, 3, 2, 4, 112),
    (64, 64, 3, 2, 1, 112),
    (256, 256, 3, 1, 4, 14),
    (512, 512, 3, 1, 1, 14),
    (256, 256, 1, 1, 4, 14),
    (96, 96, 1, 1, 1, 56),
]
SLOWER = [
    (256, 256, 3, 2, 1, 14),
    (256, 256, 3, 1, 1, 7),
    (256, 256, 3, 1, 4, 4),
    (256, 256, 3, 2, 4, 4),
    (128, 128, 1, 1, 4, 2),
    (3, 8, 3, 2, 1, 32),
    (256, 1024, 1, 1, 4, 2),
    (192, 192, 1, 1, 1, 28),
    (512, 512, 1, 1, 1, 14),
]


@needs_kernels
@pytest.mark.parametrize(('shape', 'expected'), [*((s, True) for s in FASTER), *((s, False) for s in SLOWER)], ids=str)
def test_auto_takes_what_was_measured_to_be_faster(shape, expected):
    in_channels, out_channels, kernel_size, stride, branches, size = shape
    depthwise = kernel_size == 3 and in_channels > 3
    block = MobileOneBlock(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        groups=in_channels if depthwise else 1,
        num_conv_branches=branches,
    )
    assert block.train_impl == 'auto'
    x = torch.zeros(32, in_channels, size, size).to(memory_format=torch.channels_last)
    assert block.takes_moments(x) == expected
    assert not block.takes_moments(x.double())  # nobody has measured that
    with torch.autocast('cpu', torch.bfloat16):
        assert not block.takes_moments(x)
    assert not block.eval().takes_moments(x)


@pytest.mark.parametrize(
    'arch', [pytest.param(a, marks=[pytest.mark.slow] * (a not in ('s0', 's4'))) for a in PUBLISHED]
)
def test_every_block_of_the_published_networks(arch):
    """Every distinct shape with all its channels, on a small plane; planes of all kinds have their turn above."""
    from mobileone_ext.backbone import MobileOne

    with torch.device('meta'):
        blocks = [block for block in MobileOne(arch).modules() if isinstance(block, MobileOneBlock)]
    distinct = {(b.in_channels, b.out_channels, b.kernel_size, b.stride, len(b.branch_conv_list)): b for b in blocks}
    for key, block in distinct.items():
        names = 'in_channels', 'out_channels', 'kernel_size', 'stride', 'groups'
        options = {name: getattr(block, name) for name in names}
        moments, branches = pair(options, num_conv_branches=len(block.branch_conv_list))
        assert [*moments.state_dict()] == [name for name in block.state_dict() if not name.startswith('se.')]
        x = torch.randn(2, block.in_channels, 5, 4, dtype=torch.float64)
        assert moments.takes_moments(x)
        assert_same(step(moments, x), step(branches, x), where=key)


@pytest.mark.parametrize('arch', [NARROW, pytest.param('s0', marks=pytest.mark.slow)], ids=['narrow', 's0'])
def test_a_whole_network(arch):
    """Odd and even planes down to 2 x 2; nearly fifty batch norms in a row magnify the rounding."""
    from mobileone_ext.backbone import MobileOne

    torch.manual_seed(0)
    branches = MobileOne(arch, train_impl='branches')
    moments = MobileOne(arch, train_impl='moments')
    moments.load_state_dict(branches.state_dict())
    x = torch.randn(4, 3, 44, 52, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    results = []
    for net in (moments, branches):
        net = net.double().train().to(memory_format=torch.channels_last)
        results.append(step(nn.Sequential(net, Last()), x))
    assert_same(*results, tolerance=1e-8)


class Last(nn.Module):
    def forward(self, maps):
        return maps[-1]


def test_with_cp_counts_statistics_once():
    from mobileone_ext.backbone import MobileOne

    arch = dict(num_blocks=[1, 2, 2, 1], width_factor=[0.125] * 4, num_conv_branches=[2] * 4, num_se_blocks=[0] * 4)
    torch.manual_seed(0)
    plain = randomize_norms(MobileOne(arch, train_impl='branches')).double().train()
    saving = MobileOne(arch, train_impl='moments', with_cp=True).double().train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    found, expected = (step(nn.Sequential(net, Last()), x) for net in (saving, plain))
    assert_same(found, expected, tolerance=1e-9)
    counts = {int(value) for name, value in saving.named_buffers() if name.endswith('num_batches_tracked')}
    assert counts == {1}


@every_block
def test_gradients_share_no_memory(options):
    """Clipping and the scaler of mixed precision change gradients in place, each once."""
    moments, branches = pair(options)
    x = torch.randn(2, options['in_channels'], 6, 5, dtype=torch.float64)
    for block in (moments, branches):
        step(block, x)
        nn.utils.clip_grad_norm_(block.parameters(), 1e-3)
    for found, expected in zip(moments.parameters(), branches.parameters()):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-8, atol=1e-14)


@every_block
@pytest.mark.parametrize('number', [float('nan'), float('inf')], ids=str)
def test_what_is_not_finite_spreads_as_from_branches(either, options, number):
    moments, branches = pair(options)
    x = torch.randn(2, options['in_channels'], 6, 5, dtype=torch.float64)
    x[1, 2, 2, 2] = number
    found, expected = step(moments, x), step(branches, x)
    for name in ('out', 'x', *(name for name, _ in moments.named_buffers())):
        assert torch.equal(found[name].isfinite(), expected[name].isfinite()), name
    assert not expected['out'].isfinite().all()


@pytest.mark.parametrize(
    'channels, kernel_size, stride, groups',
    [(48, 3, 1, 48), (48, 3, 2, 48), (48, 1, 1, 1), (3, 3, 2, 1)],
    ids=['depthwise', 'depthwise stride 2', 'pointwise', 'stem'],
)
def test_float32_keeps_its_digits_over_many_patches(either, channels, kernel_size, stride, groups):
    """Kernels whose weights cancel, on smooth maps: they see little of the variance of the pixels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, channels, 68, 68, generator=generator)
    x = nn.functional.avg_pool2d(x, 5, 1).relu().contiguous(memory_format=torch.channels_last)
    weights = torch.randn(4, 48, channels // groups, kernel_size, kernel_size, generator=generator)
    if kernel_size > 1:
        weights -= weights.mean((3, 4), keepdim=True)
    found = batch_statistics(x, weights, stride, groups)
    expected = batch_statistics(x.double(), weights.double(), stride, groups)
    torch.testing.assert_close(found.pixel_var.double(), expected.pixel_var, rtol=5e-6, atol=0)
    torch.testing.assert_close(found.var.double(), expected.var, rtol=2e-5, atol=0)


def test_float32_adds_up_large_images_in_float64(either):
    """Smooth images, kernels that find edges: 5e-6 off (root of the mean square), 14e-6 with totals in float32."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(32, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(smooth, size=(224, 224), mode='bicubic')
    x = smooth + 0.03 * torch.randn(smooth.shape, generator=generator)
    weights = torch.randn(4, 48, 3, 3, 3, generator=generator)
    weights -= weights.mean((3, 4), keepdim=True)
    found = batch_statistics(x, weights, 2, 1)
    expected = batch_statistics(x.double(), weights.double(), 2, 1)
    assert (found.var / expected.var - 1).square().mean().sqrt() < 9e-6


@every_block
@pytest.mark.parametrize('case', ['mean of 100 deviations', 'constant channel'])
def test_degenerate_channels(either, options, case):
    """float64 as exact as the numbers allow; float32 as close to float64 as the branches are in float32."""
    x = torch.randn(4, options['in_channels'], 12, 10, dtype=torch.float64)
    if case == 'mean of 100 deviations':
        x += 100
    else:
        x[:, 1], x[:, 2] = 3, 0
    moments, branches = pair(options)
    expected = step(copy.deepcopy(branches), x)
    # C is a difference of numbers of the size of mean^2.
    assert_same(step(copy.deepcopy(moments), x), expected, tolerance=1e-8 if x.mean() > 50 else 1e-10)

    single, single_branches = (step(copy.deepcopy(block).float(), x.float()) for block in (moments, branches))
    for name, value in expected.items():
        scale = max(1.0, float(value.abs().max()))
        error, allowed = (float((result[name].double() - value).abs().max()) for result in (single, single_branches))
        assert error <= max(10 * allowed, 1e-2 * scale), (name, error, allowed, scale)


@every_block
def test_autocast_keeps_statistics_in_float32(options):
    """bfloat16 convolutions; running statistics as without autocast, of the rounded input."""
    moments, _ = pair(options, torch.float32)
    plain = copy.deepcopy(moments)
    x = (torch.randn(4, options['in_channels'], 24, 24) + 2).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        out = moments(x)
    expected = plain(x.float())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.1)
    for (name, found), value in zip(moments.named_buffers(), plain.buffers()):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    'options',
    [pytest.param(BLOCKS[name], id=name, marks=() if name == 'pointwise k=4' else pytest.mark.slow) for name in BLOCKS],
)
def test_compiles_without_a_graph_break(options):
    """``fullgraph`` raises at a break; generating code has no part in that, so the graphs run as they are."""
    moments, _ = pair(options)
    x = torch.randn(2, options['in_channels'], 6, 5, dtype=torch.float64)
    plain = copy.deepcopy(moments)
    torch._dynamo.reset()
    compiled = torch.compile(moments, fullgraph=True, backend='aot_eager')
    x = x.clone().requires_grad_()
    compiled(x).sum().backward()
    plain(x.detach()).sum().backward()
    gradients = ({name: p.grad for name, p in block.named_parameters()} for block in (moments, plain))
    assert_same(*gradients)
    assert_same(dict(moments.named_buffers()), dict(plain.named_buffers()))


def whole_step(net, x):
    """Forward, loss and backward pass in one graph; gradients."""
    torch._dynamo.reset()
    torch.compile(net, fullgraph=True, backend='aot_eager', dynamic=False)(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_the_fused_network_compiles_without_a_graph_break():
    from mobileone_ext.backbone import MobileOne

    net = nn.Sequential(MobileOne('s0', deploy=True), Last()).train()
    assert all(grad is not None for grad in whole_step(net, torch.randn(2, 3, 32, 32)).values())


@pytest.mark.slow
def test_a_network_by_moments_compiles_without_a_graph_break():
    x = torch.randn(3, 3, 18, 15, dtype=torch.float64)
    net, branches = small_net('moments'), small_net('branches')
    branches(x).square().mean().backward()
    assert_same(whole_step(net, x), {name: parameter.grad for name, parameter in branches.named_parameters()})


@every_block
def test_maps_are_laid_out_as_they_come(options):
    block = pair(options, torch.float32)[0]
    x = torch.randn(3, options['in_channels'], 8, 6)
    assert block(x).is_contiguous()
    assert block(x.to(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('train_impl', ['branches', 'moments'])
def test_a_network_in_channels_last_takes_the_loaders_images(train_impl):
    """They are NCHW; what leaves the stem is not, or the whole network would be slower."""
    stem = MobileOneBlock(**BLOCKS['stem'], train_impl=train_impl).to(memory_format=torch.channels_last)
    assert stem(torch.randn(2, 3, 16, 12)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@every_block
def test_on_a_gpu(options):
    moments, branches = (block.cuda() for block in pair(options))
    x = torch.randn(3, options['in_channels'], 8, 7, dtype=torch.float64, device='cuda')
    assert_same(step(moments, x), step(branches, x))


@pytest.mark.filterwarnings('ignore:train_impl')
def test_what_is_not_covered_takes_its_branches_and_says_so():
    with pytest.warns(UserWarning, match="train_impl='moments' takes the branches here"):
        block = MobileOneBlock(**UNCOVERED, train_impl='moments')
    assert 'takes the branches' in repr(block) and not block.takes_moments(torch.randn(2, 6, 8, 8))
    moments, branches = pair(UNCOVERED)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    assert_same(step(moments, x), step(branches, x), tolerance=0)


def small_net(train_impl, norm=nn.BatchNorm2d):
    """A block of each kind."""
    torch.manual_seed(0)
    kinds = 'stem', 'depthwise stride 2 k=4', 'pointwise k=4', 'depthwise k=4', 'widening k=1'
    blocks = []
    for kind in kinds:
        options = dict(BLOCKS[kind])
        if kind == 'stem':
            options['out_channels'] = 6
        blocks.append(MobileOneBlock(**options, norm=norm, act=nn.SiLU, train_impl=train_impl))
    return randomize_norms(nn.Sequential(*blocks)).double().train()


def images_of_each_rank():
    """Unequal shares of one batch."""
    return torch.randn(5, 3, 18, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).split([3, 2])


def rank_step(net, x):
    """Like ``step``; the sum of squares has no random weights, which would differ from share to share."""
    x = x.clone().requires_grad_()
    out = net(x)
    out.square().sum().backward()
    plain = net.module if isinstance(net, DistributedDataParallel) else net
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    return dict(out=out.detach(), x=x.grad, **gradients, **dict(plain.named_buffers()))


def work(rank, folder):
    """One of two processes: DDP by branches and moments, then SyncBN by moments."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    x = images_of_each_rank()[rank]
    results = {
        train_impl: rank_step(DistributedDataParallel(small_net(train_impl)), x)
        for train_impl in ('branches', 'moments')
    }
    net = small_net('moments', nn.SyncBatchNorm)
    results['sync'] = rank_step(net, x)
    for parameter in net.parameters():  # DDP refuses SyncBN on CPU; the results hold these very gradients
        dist.all_reduce(parameter.grad)
    torch.save(results, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """The results of ``work`` in two processes."""
    folder = tmp_path_factory.mktemp('ranks')
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f'{rank}.pt') for rank in (0, 1)]


def test_two_processes_of_ddp(ranks):
    for results in ranks:
        assert_same(results['moments'], results['branches'])
    assert not torch.equal(
        ranks[0]['moments']['0.branch_scale.norm.running_mean'], ranks[1]['moments']['0.branch_scale.norm.running_mean']
    )


def test_two_processes_of_syncbn_equal_one_with_the_whole_batch(ranks):
    """The reference has no SyncBN, which torch refuses on CPU, and no moments."""
    expected = rank_step(small_net('branches'), torch.cat(images_of_each_rank()))
    of_all = {name: value for name, value in expected.items() if name not in ('out', 'x')}
    for results in ranks:
        assert_same({name: results['sync'][name] for name in of_all}, of_all)
    for name in ('out', 'x'):
        assert_same({name: torch.cat([results['sync'][name] for results in ranks])}, {name: expected[name]})
