"""Statistics from moments: against the convolutions themselves, their gradients, bad numbers, half precision."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from by_moments import batch_statistics
from torch import nn
from torch.autograd import gradcheck

from mobileone_ext.moments.linears import collect
from mobileone_ext.moments.statistics import one_kernel

# in, out, kernel, stride, groups, branches; depthwise kernels take lags or branches by their number and stride
CONVOLUTIONS = {
    'pointwise': (3, 4, 1, 1, 1, 2),
    'pointwise, one branch': (3, 4, 1, 1, 1, 1),
    'stem': (3, 4, 3, 2, 1, 2),
    'dense 3x3': (2, 3, 3, 1, 1, 1),
    'depthwise, one branch': (3, 3, 3, 1, 3, 1),
    'depthwise': (3, 3, 3, 1, 3, 4),
    'depthwise stride 2': (3, 3, 3, 2, 3, 2),
}
pytestmark = pytest.mark.usefixtures('either')
every_convolution = pytest.mark.parametrize('convolution', CONVOLUTIONS.values(), ids=CONVOLUTIONS)


def make(convolution, plane, batch=2, dtype=torch.float64):
    """x, weights, and the stride and groups."""
    in_channels, out_channels, kernel_size, stride, groups, branches = convolution
    torch.manual_seed(0)
    x = torch.randn(batch, in_channels, *plane, dtype=dtype)
    weights = torch.randn(branches, out_channels, in_channels // groups, kernel_size, kernel_size, dtype=dtype)
    return x, weights, stride, groups


def by_convolution(x, weights, stride, groups):
    """mean, var of every branch's output; mean, var of the pixels: float64."""
    x, weights = x.double(), weights.double()
    outputs = torch.stack([F.conv2d(x, w, None, stride, w.shape[-1] // 2, groups=groups) for w in weights])
    pixels = x[:, :, ::stride, ::stride]
    return [
        outputs.mean((1, 3, 4)),
        outputs.var((1, 3, 4), correction=0),
        pixels.mean((0, 2, 3)),
        pixels.var((0, 2, 3), correction=0),
    ]


@every_convolution
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
def test_statistics_are_those_of_the_convolutions(convolution, memory_format):
    for plane in ((7, 9), (8, 6), (9, 4), (2, 3), (1, 5), (1, 1)):
        x, *rest = make(convolution, plane, batch=3)
        statistics = batch_statistics(x.contiguous(memory_format=memory_format), *rest)
        expected = by_convolution(x, *rest)
        for result, value in zip(statistics, expected):
            torch.testing.assert_close(result, value, rtol=1e-12, atol=1e-13)
        height, width = (-(-side // rest[1]) for side in plane)
        assert statistics.count == 3 * height * width


@every_convolution
@pytest.mark.parametrize('plane', [(5, 4), (1, 1)], ids=str)
def test_gradients(convolution, plane):
    x, weights, stride, groups = make(convolution, plane)  # of two images
    pixels = [torch.randn(3, dtype=x.dtype)] if groups > 1 else []
    affine = torch.randn(2 * (len(weights) + len(pixels)), weights.shape[1], dtype=x.dtype)

    def kernel(x, *tensors):
        of_weights, *rest = split(tensors, len(weights), len(pixels))
        same, (kernel, bias) = one_kernel(x, collect(zip((*of_weights, *rest[0]), rest[1]), stride, groups))
        return same * torch.linspace(-1, 1, same.numel(), dtype=same.dtype).view_as(same), kernel, bias

    inputs = [tensor.detach().requires_grad_() for tensor in (x, *weights, *pixels, *affine)]
    assert gradcheck(kernel, inputs, fast_mode=True)


def split(tensors, weights, pixels):
    """Weights, pixel weights, and a norm for each of them."""
    norms = weights + pixels
    gammas, betas = tensors[norms : 2 * norms], tensors[2 * norms :]
    fresh = (nn.BatchNorm2d(len(gammas[0])).double() for _ in gammas)
    given = [
        SimpleNamespace(
            weight=gamma,
            bias=beta,
            eps=1e-2 * (1 + index),
            momentum=0.1,
            running_mean=norm.running_mean,
            running_var=norm.running_var,
            num_batches_tracked=norm.num_batches_tracked,
        )
        for index, (gamma, beta, norm) in enumerate(zip(gammas, betas, fresh))
    ]
    return tensors[:weights], tensors[weights:norms], given


@every_convolution
def test_a_gradient_that_shares_its_memory(convolution):
    """That of a sum is one value for all pixels, which nothing may be added to in place."""
    x, weights, stride, groups = make(convolution, (5, 4))
    tensors = [*weights, *torch.randn(2 * len(weights), weights.shape[1], dtype=x.dtype)]
    gradients = []
    for weight in (0, 1):
        leaf = x.clone().requires_grad_()
        of_weights, pixels, norms = split(tensors, len(weights), 0)
        same, (kernel, _) = one_kernel(leaf, collect(zip((*of_weights, *pixels), norms), stride, groups))
        (kernel.square().sum() + (same.sum() if weight else 0)).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0] + 1)


@every_convolution
def test_only_what_needs_a_gradient_gets_one(convolution):
    x, weights, stride, groups = make(convolution, (5, 4))
    tensors = [*weights.clone(), *torch.randn(2 * len(weights), weights.shape[1], dtype=x.dtype)]
    tensors[0].requires_grad_()
    of_weights, pixels, norms = split(tensors, len(weights), 0)
    same, (kernel, _) = one_kernel(x, collect(zip((*of_weights, *pixels), norms), stride, groups))
    kernel.square().sum().backward()
    assert x.grad is None and not same.requires_grad and tensors[0].grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in tensors[1:])


@every_convolution
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_a_mean_of_a_hundred_deviations_leaves_digits(convolution, dtype):
    """mean^2 = 1e4 variances: half of float32's seven digits would be lost without care, and none may turn negative."""
    x, *rest = make(convolution, (12, 10), batch=4, dtype=dtype)
    x += 100
    statistics = batch_statistics(x, *rest)
    expected = by_convolution(x, *rest)
    eps = torch.finfo(dtype).eps
    for found, value in zip(statistics, expected):
        # Measured in units of what the numbers consist of: squares of 100 for a variance.
        torch.testing.assert_close(found.double(), value, rtol=1e3 * eps, atol=1e5 * eps)
    assert statistics.var.min() >= 0 and statistics.pixel_var.min() >= 0


def test_no_variance_rounds_below_zero():
    """Kernels that cancel what all channels share: w C w is rounding alone, half of the time below 0."""
    torch.manual_seed(0)
    scale = torch.randn(16)
    x = torch.randn(4, 1, 12, 10) * scale[:, None, None]
    weights = torch.randn(1, 200, 16)
    weights -= (weights @ scale)[..., None] * scale / scale.square().sum()
    statistics = batch_statistics(x, weights[..., None, None], 1, 1)
    assert statistics.var.min() >= 0 and statistics.var.max() < 1e-4


@every_convolution
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_constant_and_dead_channels(convolution, dtype):
    x, *rest = make(convolution, (6, 7), dtype=dtype)
    x[:, 0], x[:, 1] = 0, 3
    statistics = batch_statistics(x, *rest)
    for found, value in zip(statistics, by_convolution(x, *rest)):
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e2 * torch.finfo(dtype).eps)
    assert statistics.pixel_var[0] == 0


@every_convolution
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_in_float32(convolution, dtype):
    """Exact statistics of the rounded numbers: half precision cannot even count the 4096 pixels."""
    x, weights, *rest = make(convolution, (32, 32), batch=4, dtype=torch.float32)
    x = (x + 2).to(dtype)
    with torch.autocast('cpu', torch.bfloat16):
        statistics = batch_statistics(x, weights, *rest)
    for found, value in zip(statistics, by_convolution(x, weights, *rest)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=1e-4)
