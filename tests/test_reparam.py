"""The fusion algebra against convolution and batch norm themselves, in float64."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mobileone_ext.reparam import fold_affine, identity_kernel, norm_affine, pad_kernel, sum_kernels


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize('affine', [True, False])
def test_convolution_and_norm_fold_into_one_kernel(affine):
    x, weight = randn(2, 6, 7, 9), randn(8, 3, 3, 3)
    mean, var = randn(8), torch.rand(8, dtype=torch.float64) + 0.5
    gamma, beta = (randn(8), randn(8)) if affine else (None, None)
    kernel = fold_affine(weight, norm_affine(mean, var, gamma, beta, eps=1e-3))
    expected = F.batch_norm(F.conv2d(x, weight, groups=2, padding=1), mean, var, gamma, beta, eps=1e-3)
    torch.testing.assert_close(F.conv2d(x, *kernel, groups=2, padding=1), expected)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('size', [3, 5])
def test_padded_kernel_computes_the_same(stride, dilation, size):
    x, weight = randn(2, 4, 9, 10), randn(5, 4, 1, 1)
    padded = pad_kernel(weight, size)
    out = F.conv2d(x, padded, stride=stride, dilation=dilation, padding=dilation * (size - 1) // 2)
    torch.testing.assert_close(out, F.conv2d(x, weight, stride=stride))


@pytest.mark.parametrize('size', [2, 1])
def test_kernel_that_cannot_be_centered_is_refused(size):
    with pytest.raises(ValueError, match='cannot center a 3x3 kernel'):
        pad_kernel(randn(1, 1, 3, 3), size)


@pytest.mark.parametrize('groups', [1, 2, 6])
@pytest.mark.parametrize('size', [1, 3])
def test_identity_kernel_returns_its_input(groups, size):
    x = randn(2, 6, 5, 4)
    kernel = identity_kernel(6, groups, size, like=x)
    torch.testing.assert_close(F.conv2d(x, kernel, groups=groups, padding=size // 2), x, rtol=0, atol=0)


def test_sum_of_kernels_computes_the_sum():
    x = randn(2, 4, 6, 6)
    kernels = [
        fold_affine(randn(4, 4, 3, 3), norm_affine(randn(4), randn(4).square(), None, None, 1e-5)) for _ in 'abc'
    ]
    expected = sum(F.conv2d(x, *kernel, padding=1) for kernel in kernels)
    torch.testing.assert_close(F.conv2d(x, *sum_kernels(kernels), padding=1), expected)


def test_algebra_block_and_checkpoints_need_torch_and_safetensors_alone():
    modules = ', '.join(f'mobileone_ext.{name}' for name in ('reparam', 'block', 'checkpoints.load'))
    code = f'import sys, {modules}; print(*sys.modules)'
    loaded = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert 'torch' in loaded
    assert not {'mmengine', 'mmcv', 'mmpretrain', 'timm', 'torchvision'} & set(loaded)
