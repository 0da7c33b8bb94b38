"""Kernels for a GPU: the interpreter's run of them, their compilation, and all that can keep them from being taken."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from by_moments import batch_statistics

from mobileone_ext.block import MobileOneBlock
from mobileone_ext.moments import gpu, kernels

FLOAT32 = torch.ones(2, 3, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize('which', ['not slow', 'slow'])
def test_kernels_under_the_interpreter(which):
    """Triton decides at its import whether to interpret, hence a process of its own."""
    pytest.importorskip('triton')
    tests = Path(__file__).with_name('test_triton.py')
    options = ['-q', '-x', '-p', 'no:randomly', '-p', 'no:cacheprovider', '-m', which]
    environment = dict(os.environ, TRITON_INTERPRET='1')
    command = [sys.executable, '-m', 'pytest', *options, str(tests)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]


def compiled(name, architecture, dtype):
    """PTX of a kernel for channels-last maps, as its launch on such a GPU makes it."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    from mobileone_ext.moments import triton_kernels

    kernel = getattr(triton_kernels, name)
    constants = dict(
        ACC=tl.float32, BLOCK_W=gpu.TILE // gpu.BLOCK, BLOCK_C=gpu.BLOCK, channel_step=1, dx_channel_step=1
    )
    pointers = dict(x=dtype, dx=dtype, shift='fp32', out='fp32', weights='fp32', slope='fp32', offset='fp32')
    signature, values = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], values[(index,)] = 'constexpr', constants[argument]
        else:
            signature[argument] = f'*{pointers[argument]}' if argument in pointers else 'i32'
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=values)
    return triton.compile(source, target=GPUTarget('cuda', architecture, 32)).asm['ptx']


@pytest.mark.slow
@pytest.mark.parametrize('architecture', [80, 90])
@pytest.mark.parametrize('dtype', ['bf16', 'fp16', 'fp32'])
@pytest.mark.parametrize('name', ['plane_sums', 'plane_grad', 'strided_sums', 'strided_grad'])
def test_kernels_compile_without_a_gpu(name, architecture, dtype, tmp_path, monkeypatch):
    pytest.importorskip('triton')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    text = compiled(name, architecture, dtype)
    assert f'.target sm_{architecture}' in text and '.f64' not in text


@pytest.fixture
def said(monkeypatch):
    """What the log is told of kernels that nobody has asked for yet; maps on a CPU pass for ones on a GPU."""
    lines = []
    monkeypatch.setattr(kernels, 'report', lambda message, level: lines.append((level, message)))
    monkeypatch.setattr(gpu, 'INTERPRETED', True)
    monkeypatch.setattr(gpu, '_reasons', {})
    gpu._report_large.cache_clear()
    yield lines
    gpu._report_large.cache_clear()


def fail(error):
    def raising(*args):
        raise error

    return raising


class OldGPU:
    """Stands for a torch.device."""

    type = 'cuda'
    index = 0


REASONS = {
    'no Triton': (lambda m: m.setitem(sys.modules, 'triton', None), 'ModuleNotFoundError'),
    'switched off': (lambda m: m.setenv('MOBILEONE_KERNELS', '0'), 'MOBILEONE_KERNELS=0'),
    'no compiler': (
        lambda m: m.setattr(gpu, 'plane_sums', fail(RuntimeError('no C compiler\nfound'))),
        'no C compiler f',
    ),
    'cache not writable': (
        lambda m: m.setattr(gpu, 'plane_sums', fail(PermissionError(13, 'Permission denied', '/home/.triton'))),
        '/home/.triton',
    ),
    'wrong sums': (
        lambda m: m.setattr(gpu, 'plane_sums', lambda x, shift: torch.zeros(1, 42)),
        'the kernels compute something else',
    ),
}


@pytest.mark.parametrize(('change', 'reason'), REASONS.values(), ids=REASONS)
def test_without_kernels_operators_and_one_line(said, monkeypatch, change, reason):
    pytest.importorskip('triton')
    if reason.startswith('the kernels'):
        monkeypatch.setattr(gpu, 'strided_sums', lambda x, shift: torch.zeros(1, 56))
        monkeypatch.setattr(gpu, 'stem_sums', lambda x, shift: torch.zeros(32, 32))
    change(monkeypatch)
    weights = torch.randn(2, 3, 1, 3, 3)
    for _ in range(2):
        found = batch_statistics(FLOAT32, weights, 1, 3)
    expected = batch_statistics(FLOAT32.double(), weights.double(), 1, 3)
    torch.testing.assert_close(found.mean.double(), expected.mean, rtol=1e-5, atol=1e-5)
    ((level, message),) = [line for line in said if 'float32' in line[1]]
    assert level == logging.WARNING and '\n' not in message
    assert message.startswith("training statistics of float32: by torch's operators") and reason in message
    assert reason in repr(MobileOneBlock(3, 3, 3, groups=3, num_conv_branches=2))


def test_a_gpu_without_bfloat16(said, monkeypatch):
    pytest.importorskip('triton')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'Turing')
    with pytest.raises(TypeError, match='Turing has no bfloat16'):
        gpu._run_on_ones(OldGPU, torch.bfloat16)


def test_maps_of_too_many_values(said, monkeypatch):
    monkeypatch.setattr(gpu, 'reason', lambda device, dtype: None)
    assert gpu.usable(FLOAT32)
    large = torch.empty(1).expand(2**31, 1, 1, 1)
    assert not gpu.usable(large) and not gpu.usable(large)
    assert [message for _, message in said] == [
        "training statistics of maps of 2^31 values or more: by torch's operators"
    ]


def test_what_kernels_do_not_take(said, monkeypatch):
    monkeypatch.setattr(gpu, 'reason', lambda device, dtype: None)
    assert gpu.usable(FLOAT32, FLOAT32) and gpu.usable(FLOAT32.bfloat16())
    assert not gpu.usable(FLOAT32, FLOAT32.double()) and not gpu.usable(FLOAT32[:0]) and not gpu.usable(FLOAT32.int())
    assert not gpu.usable(FLOAT32.to('meta'))
    monkeypatch.setattr(gpu, 'INTERPRETED', False)
    assert not gpu.usable(FLOAT32)
