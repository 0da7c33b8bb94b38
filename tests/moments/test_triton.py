"""The Triton kernels on a GPU, or under Triton's interpreter on a CPU: test_gpu.py runs this file so.

The truth is unfolded patches in float64.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from benchmarks.blocks import MOST_EXCESS, Precision, excess
from benchmarks.traffic import blocks
from test_kernels import covariance, unfolded
from test_train_impl import BLOCKS, assert_same, step
from test_train_impl import pair as pair_on_cpu

from mobileone_ext.moments import depthwise, gpu, kernels, patches

DEVICE = 'cpu' if gpu.INTERPRETED else 'cuda'
pytestmark = [
    pytest.mark.filterwarnings('ignore::RuntimeWarning'),  # numpy's, of what a mask leaves out
    pytest.mark.skipif(not (gpu.INTERPRETED or torch.cuda.is_available()), reason='needs a GPU or TRITON_INTERPRET=1'),
]
BACKEND = 'aot_eager' if gpu.INTERPRETED else 'inductor'
on_a_gpu = pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
EPS = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float16: 3e-6}
# N, C, H, W, layout: odd and even planes, lines, a pixel, several tiles of columns and blocks of channels.
MAPS = {
    'odd': (2, 3, 3, 5, 'nhwc'),
    'even': (3, 2, 4, 6, 'nhwc'),
    'contiguous': (1, 3, 3, 5, 'nchw'),
    'part of a larger one': (1, 2, 4, 3, 'view'),
    'row': (1, 1, 1, 3, 'nhwc'),
    'column': (1, 2, 5, 1, 'nhwc'),
    'pixel': (2, 1, 1, 1, 'nhwc'),
    'two by two': (1, 1, 2, 2, 'nhwc'),
}
every_map = pytest.mark.parametrize('shape', MAPS.values(), ids=MAPS)
every_stride = pytest.mark.parametrize('stride', [1, 2])


@pytest.fixture(autouse=True)
def device():
    """Where tensors are made."""
    with torch.device(DEVICE):
        yield


def pair(options, dtype=torch.float64):
    with torch.device('cpu'):
        both = pair_on_cpu(options, dtype)
    return tuple(block.to(DEVICE) for block in both)


@pytest.fixture(autouse=True)
def small_programs(request, monkeypatch):
    """Several of them even for tiny maps: 8 values a tile, two channels at most."""
    if 'shape' in request.fixturenames:
        monkeypatch.setattr(gpu, 'TILE', 8)
        monkeypatch.setattr(gpu, 'BLOCK', 2)
        monkeypatch.setattr(gpu, 'PROGRAMS', 2)


def make_map(shape, dtype):
    *size, layout = shape
    x = (torch.randn(size, dtype=torch.float64) + 0.5).to(dtype)
    if layout == 'view':
        return F.pad(x, (1, 2, 3, 1))[:, :, 3:-1, 1:-2]
    return x.contiguous(memory_format=torch.channels_last if layout == 'nhwc' else torch.contiguous_format)


def check_moments(x, stride):
    assert depthwise.kernels_for(x) is gpu
    for one, other in zip(depthwise.compiled_moments(x, stride), covariance(unfolded(x, stride))):
        torch.testing.assert_close(one, other, rtol=EPS[x.dtype], atol=EPS[x.dtype])


def check_gradient(x, stride):
    channels, eps = x.shape[1], EPS[x.dtype]
    slope, offset = torch.randn(channels, 9, 9, dtype=torch.float64), torch.randn(channels, 9, dtype=torch.float64)
    slope = slope + slope.transpose(1, 2)
    start = torch.randn(x.shape, dtype=torch.float64).to(x)  # contiguous, as x need not be
    taps = (slope @ unfolded(x, stride) + offset[..., None]).flatten(0, 1).unflatten(1, (len(x), -1)).transpose(0, 1)
    expected = start.double() + F.fold(taps, x.shape[2:], 3, padding=1, stride=stride)
    found = start.clone()
    sum_type = torch.promote_types(x.dtype, torch.float32)
    depthwise.add_grad(found, x, slope.to(sum_type), offset.to(sum_type), stride)
    # The interpreter cuts off digits where a GPU rounds.
    rounding = torch.finfo(x.dtype).eps if x.dtype in patches.HALF else 0
    torch.testing.assert_close(found.double(), expected, rtol=10 * eps + rounding, atol=50 * eps)


@every_map
@every_stride
def test_moments_and_their_gradient(shape, stride):
    x = make_map(shape, torch.float64)
    check_moments(x, stride)
    check_gradient(x, stride)


@every_stride
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_types(dtype, stride):
    """Half precision is read as it is; sums are as exact as those of float32."""
    x = make_map((2, 2, 3, 4, 'nhwc'), dtype)
    check_moments(x, stride)
    check_gradient(x, stride)


@pytest.fixture(params=['kernel', 'kernel, nchw', 'operators'])
def memory_format(request, monkeypatch):
    """By a kernel in two layouts, and as maps of more channels than kernels take."""
    if request.param == 'operators':
        monkeypatch.setattr(gpu, 'PIXEL_CHANNELS', 4)
    return torch.contiguous_format if 'nchw' in request.param else torch.channels_last


@pytest.mark.parametrize('dtype', patches.HALF, ids=str)
def test_covariance_of_pixels_keeps_the_digits_of_a_large_mean(dtype, memory_format):
    """Up to 300 deviations, as far as the type resolves it; by a kernel, and by products of a shifted copy."""
    x = (torch.randn(4, 6, 9, 8) + 300 * torch.arange(6)[:, None, None] % 700).to(dtype)
    x = x.contiguous(memory_format=memory_format)
    mean, cov = patches.patch_moments(x, 1, 1)
    expected_mean, expected = covariance(x.double().transpose(0, 1).flatten(1))
    assert mean.dtype == cov.dtype == torch.float32
    torch.testing.assert_close(mean[0].double(), expected_mean, rtol=1e-5, atol=1e-3)
    scale = expected.diagonal().sqrt()
    rounding = 4 * torch.finfo(dtype).eps
    assert ((cov[0] - expected) / (scale[:, None] * scale)).abs().max() < rounding


@pytest.mark.parametrize('scale', [1.0, 1e-9])
@pytest.mark.parametrize('dtype', patches.HALF, ids=str)
def test_gradient_of_pixels(dtype, scale, memory_format):
    """Of a large mean too, and of slopes below what float16 can hold."""
    x = (torch.randn(3, 5, 4, 7) + 30).to(dtype).contiguous(memory_format=memory_format)
    slope, mean, offset = torch.randn(5, 5), x.double().mean((0, 2, 3)).float(), scale * torch.randn(5)
    slope = scale * (slope + slope.t())
    size = 1 if scale == 1 else 2**-16
    start = (size * torch.randn(x.shape)).to(x).contiguous(memory_format=memory_format)
    found = start.clone()
    patches.add_patch_grad(found, x, 1, 1, slope, mean, offset)
    rest = x.double() - mean.double()[:, None, None]
    more = torch.einsum('ij,njyx->niyx', slope.double(), rest) + offset.double()[:, None, None]
    eps = torch.finfo(dtype).eps
    smallest = 2 * 2**-24 if dtype == torch.float16 else 0
    # A kernel subtracts the mean in float32, operators in the map's type.
    mean_left = 0 if gpu.takes_pixels(x) else 30 * float(slope.abs().sum(1).max())
    atol = eps * (float(more.abs().max()) + mean_left + size) + smallest
    torch.testing.assert_close(found.double(), start.double() + more, rtol=eps, atol=atol)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(('channels', 'plane'), [(3, (5, 6)), (1, (4, 3)), (2, (1, 1))], ids=str)
def test_moments_of_the_stem(channels, plane, dtype, monkeypatch):
    monkeypatch.setattr(gpu, 'PROGRAMS', 2)
    x = (torch.randn(9, channels, *plane) + 0.5).to(dtype)
    taps = F.unfold(x.double(), 3, padding=1, stride=2).transpose(0, 1).flatten(1)
    monkeypatch.setattr(kernels, 'usable', lambda *maps, **options: False)
    calls = []
    monkeypatch.setattr(gpu, 'stem_sums', lambda *args, f=gpu.stem_sums: calls.append(1) or f(*args))
    for one, other in zip(patches.patch_moments(x, 3, 2), covariance(taps)):
        torch.testing.assert_close(one[0].double(), other, rtol=3e-6, atol=3e-6)
    assert calls


TYPICAL = ('depthwise k=4', 'depthwise stride 2 k=1', 'pointwise k=4')


@pytest.mark.parametrize('name', TYPICAL)
def test_a_block_trains_as_its_branches(name):
    moments, branches = pair(BLOCKS[name])
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert_same(step(moments, x), step(branches, x))


@pytest.mark.parametrize('name', TYPICAL)
@pytest.mark.parametrize('dtype', patches.HALF, ids=str)
def test_autocast_is_as_near_to_float64_as_the_branches(name, dtype):
    """Output, running statistics and gradients of a map in half precision; the kernels get it as it is."""
    moments, branches = pair(BLOCKS[name], torch.float32)
    x = (torch.randn(8, 6, 3, 4) + 0.5).to(dtype).contiguous(memory_format=torch.channels_last)
    expected = step(copy.deepcopy(branches).double(), x.double())
    with torch.autocast(DEVICE, dtype):
        found, allowed = step(moments, x), step(branches, x)
    for key, value in expected.items():
        if not value.is_floating_point():
            assert torch.equal(found[key], value)
            continue
        error, limit = (float((result[key].double() - value).abs().max()) for result in (found, allowed))
        scale = max(1, float(value.abs().max()))
        assert error <= 2 * limit + 2 * torch.finfo(dtype).eps * scale, key
        if 'running' in key:
            assert found[key].dtype == torch.float32


@pytest.mark.parametrize('name', [pytest.param(n, marks=[pytest.mark.slow] * (n != 'depthwise k=4')) for n in TYPICAL])
def test_compiles_around_the_kernels(name):
    """In float32, whose sums are added up in float64; a graph holds constants of both."""
    moments, _ = pair(BLOCKS[name], torch.float32)
    plain = copy.deepcopy(moments)
    x = torch.randn(2, 6, 3, 2).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()
    compiled = torch.compile(moments, fullgraph=True, backend=BACKEND)
    results = []
    for block in (compiled, plain):
        inputs = x.clone().requires_grad_()
        block(inputs).square().sum().backward()
        results.append(inputs.grad)
    assert_same(*({name: p.grad for name, p in block.named_parameters()} for block in (moments, plain)), tolerance=1e-4)
    assert_same(dict(moments.named_buffers()), dict(plain.named_buffers()), tolerance=1e-6)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', [pytest.param(n, marks=[pytest.mark.slow] * (n != 'pointwise k=4')) for n in TYPICAL])
def test_compiles_under_autocast_for_any_batch_size(name):
    moments, _ = pair(BLOCKS[name], torch.float32)
    plain = copy.deepcopy(moments)
    torch._dynamo.reset()
    compiled = torch.compile(moments, fullgraph=True, backend=BACKEND)
    for images in (2, 3, 5):  # from the second on a symbolic number
        x = torch.randn(images, 6, 3, 2).bfloat16().contiguous(memory_format=torch.channels_last)
        results = []
        for block in (compiled, plain):
            inputs = x.clone().requires_grad_()
            with torch.autocast(DEVICE, torch.bfloat16):
                block(inputs).float().square().sum().backward()
            results.append(inputs.grad)
        torch.testing.assert_close(*results, rtol=0.05, atol=0.05)


def test_the_log_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(kernels, 'report', lambda message, level: said.append(message))
    monkeypatch.setattr(gpu, '_reasons', {})
    device = torch.ones(1).device
    assert 'where they can be had' in gpu.status(device)
    for _ in range(2):
        assert gpu.usable(torch.ones(1, 1, 2, 2))
    assert said == ['training statistics of float32: by Triton kernels']
    assert gpu.status(device) == 'Triton kernels'


@on_a_gpu
@pytest.mark.parametrize('dtype', patches.HALF, ids=str)
@pytest.mark.parametrize('geometry', sorted({*blocks('s0', 224), *blocks('s1', 224)}, key=str), ids=str)
def test_blocks_of_s0_and_s1_are_as_near_to_float64_as_their_branches(geometry, dtype):
    """With kernels as large as they are in use."""
    with torch.device('cpu'):
        assert excess(geometry, 8, Precision('cuda', dtype)) <= MOST_EXCESS


@on_a_gpu
@every_stride
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_the_same_map_gives_the_same_bits(dtype, stride):
    x = make_map((64, 48, 56, 56, 'nhwc'), dtype)
    slope, offset = torch.randn(48, 9, 9), torch.randn(48, 9)
    found = []
    for _ in range(2):
        dx = torch.zeros_like(x)
        depthwise.add_grad(dx, x, slope, offset, stride)
        found.append((*depthwise.compiled_moments(x, stride), dx))
    assert all(torch.equal(one, other) for one, other in zip(*found))
