"""Compiled kernels: against float64 patches and torch's operators, and all that can keep them from being built."""

import logging
import os
import platform
import stat
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mobileone_ext.block import MobileOneBlock
from mobileone_ext.moments import depthwise, kernels, patches

PLANES = [(7, 9), (8, 6), (5, 4), (2, 2), (1, 2), (2, 1), (1, 1), (1, 7), (13, 1), (30, 17), (4, 300)]
CHANNELS = (1, 3, 8, 16, 17, 48)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}
TINY = 'extern "C" int answer() { return 42; }\n'
every_type = pytest.mark.parametrize(('dtype', 'tolerance'), TOLERANCES.items(), ids=str)
LAYOUTS = {'nhwc': torch.channels_last, 'nchw': torch.contiguous_format}
every_layout = pytest.mark.parametrize('layout', LAYOUTS)
every_stride = pytest.mark.parametrize('stride', [1, 2])
has_compiler = pytest.mark.skipif(not kernels.usable(torch.ones(1, 1, 1, 1)), reason='no compiler')


@pytest.fixture
def threads(monkeypatch):
    """Three for the kernels alone: torch's own threads stay as they are. One is what all other tests have."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 3)


def maps(channels, plane, dtype, images=3, layout='nhwc'):
    torch.manual_seed(0)
    x = torch.randn(images, channels, *plane, dtype=dtype) + 0.5
    return x.contiguous(memory_format=LAYOUTS[layout])


def unfolded(x, stride):
    """(C, 9, P) in float64."""
    taps = F.unfold(x.double(), 3, padding=1, stride=stride).unflatten(1, (x.shape[1], 9))
    return taps.permute(1, 2, 0, 3).flatten(2)


def covariance(taps):
    mean = taps.mean(-1)
    rest = taps - mean[..., None]
    return mean, rest @ rest.transpose(-1, -2) / taps.shape[-1]


@has_compiler
@every_type
@every_stride
@pytest.mark.parametrize('plane', PLANES, ids=str)
def test_moments_of_depthwise_patches(plane, stride, dtype, tolerance, threads):
    for channels, layout in product(CHANNELS, LAYOUTS):
        x = maps(channels, plane, dtype, layout=layout)
        found, expected = depthwise.compiled_moments(x, stride), covariance(unfolded(x, stride))
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@has_compiler
@every_type
@every_stride
@pytest.mark.parametrize('plane', PLANES, ids=str)
def test_their_gradient(plane, stride, dtype, tolerance, threads):
    for channels, layout, grad_layout in product((1, 3, 16, 17), LAYOUTS, LAYOUTS):
        x = maps(channels, plane, dtype, layout=layout)
        slope, offset = torch.randn(channels, 9, 9, dtype=dtype), torch.randn(channels, 9, dtype=dtype)
        slope = slope + slope.transpose(1, 2)
        start = torch.randn_like(x).contiguous(memory_format=LAYOUTS[grad_layout])
        found = start.clone(memory_format=torch.preserve_format)
        depthwise.add_grad(found, x, slope, offset, stride)
        taps = (slope.double() @ unfolded(x, stride) + offset.double()[..., None]).flatten(0, 1)
        taps = taps.unflatten(1, (len(x), -1)).transpose(0, 1)
        expected = start.double() + F.fold(taps, plane, 3, padding=1, stride=stride)
        torch.testing.assert_close(found.double(), expected, rtol=10 * tolerance, atol=50 * tolerance)


@has_compiler
@every_type
@pytest.mark.parametrize('plane', PLANES, ids=str)
def test_moments_of_the_stem(plane, dtype, tolerance, threads):
    for channels, layout in product((1, 2, 3), [*LAYOUTS, 'part of a larger one']):
        x = maps(channels, plane, dtype, layout=layout if layout in LAYOUTS else 'nhwc')
        if layout not in LAYOUTS:
            x = F.pad(x, (2, 3, 1, 1))[:, :, 1:-1, 2:-3]
        taps = F.unfold(x.double(), 3, padding=1, stride=2).transpose(0, 1).flatten(1)
        for one, other in zip(patches.patch_moments(x, 3, 2), covariance(taps)):
            torch.testing.assert_close(one[0].double(), other, rtol=tolerance, atol=tolerance)


@has_compiler
@every_stride
@every_layout
def test_the_same_bits_each_time(layout, stride, threads):
    x = maps(48, (28, 30), torch.float32, images=8, layout=layout)
    results = [depthwise.compiled_moments(x, stride) for _ in range(3)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@has_compiler
@every_stride
def test_float32_is_nearer_to_float64_than_operators(stride, monkeypatch):
    """Smooth maps with a mean, kernels that find edges: what float32 does worst."""
    torch.manual_seed(0)
    x = F.avg_pool2d(torch.randn(16, 32, 60, 60), 5, 1).relu().contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(32, 4, 9)
    kernel -= kernel.mean(2, keepdim=True)

    def variance(x):
        if stride == 1:
            _, cov = depthwise.compiled_moments(x, 1) if kernels.usable(x) else depthwise.lag_moments(x)
            q = kernel.to(cov) @ cov
        elif kernels.usable(x):
            cov = depthwise.compiled_moments(x, 2)[1]
            q = kernel.to(cov) @ cov
        else:
            q = depthwise.branch_moments(x, kernel.to(x), 2)[1]
        return (kernel.to(q) * q).sum(2).double()

    expected, found = variance(x.double()), variance(x)
    monkeypatch.setattr(kernels, 'usable', lambda *maps, **options: False)
    by_operators = variance(x)
    error, allowed = (float((value / expected - 1).abs().max()) for value in (found, by_operators))
    assert error <= max(allowed, 1e-6)


@pytest.mark.parametrize('case', ['bfloat16', 'empty', 'two types', 'a view', 'turned', 'meta'])
def test_what_kernels_do_not_take(case):
    x = maps(6, (8, 8), torch.float32)
    turned = x.contiguous().transpose(2, 3)
    other = dict(bfloat16=x.bfloat16(), empty=x[:0], turned=turned, meta=x.to('meta')).get(
        case, x[:, :, 1:] if case == 'a view' else x.double()
    )
    assert not kernels.usable(x, other) and (case == 'two types' or not kernels.usable(other))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No kernels yet in this process, a cache of its own, and a source that compiles at once."""
    said = []
    monkeypatch.setattr(kernels, 'report', lambda message, level: said.append((level, message)))
    monkeypatch.setattr(kernels, 'SOURCE', tmp_path / 'tiny.cpp')
    (tmp_path / 'tiny.cpp').write_text(TINY)
    for name in ('CXX', 'MOBILEONE_KERNELS'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    kernels.library.cache_clear()
    yield said
    kernels.library.cache_clear()


def cached(tmp_path):
    return sorted((tmp_path / 'cache').rglob('*.so'))


def says_answer():
    library = kernels.library()
    return library is not None and library.answer() == 42


@has_compiler
def test_a_build_is_kept_and_taken_again(fresh, tmp_path):
    assert says_answer() and len(cached(tmp_path)) == 1
    built = cached(tmp_path)[0].stat().st_mtime_ns
    kernels.library.cache_clear()
    assert says_answer() and [file.stat().st_mtime_ns for file in cached(tmp_path)] == [built]
    assert fresh == [(logging.INFO, 'training statistics: by compiled kernels')] * 2
    assert 'compiled kernels' in repr(MobileOneBlock(4, 4, 3, groups=4))


@has_compiler
@pytest.mark.parametrize('change', ['source', 'processor', 'compiler'])
def test_a_build_for_something_else_is_not_taken(fresh, tmp_path, monkeypatch, change):
    """Another processor may lack instructions that this one has."""
    assert says_answer()
    if change == 'source':
        kernels.SOURCE.write_text(TINY + '// changed\n')
    elif change == 'compiler':
        monkeypatch.setenv('CXX', 'c++ -DOTHER')
    else:
        monkeypatch.setattr(platform, 'processor', lambda: 'another')
    kernels.library.cache_clear()
    assert says_answer() and len(cached(tmp_path)) == 2


@has_compiler
@pytest.mark.parametrize('content', [b'', b'\x7fELF'], ids=str)
def test_a_damaged_build_is_made_anew(fresh, tmp_path, content):
    assert says_answer()
    file = cached(tmp_path)[0]
    file.unlink()  # as it is loaded, its bytes must stay
    file.write_bytes(content)
    kernels.library.cache_clear()
    assert says_answer() and len(cached(tmp_path)) == 1


@has_compiler
@pytest.mark.parametrize('place', ['a file', 'below a file'])
def test_without_a_cache_there_is_a_build_for_this_process(fresh, tmp_path, monkeypatch, place):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file' / ('' if place == 'a file' else 'more')))
    assert says_answer() and not cached(tmp_path)


def failing_compiler(folder):
    path = folder / 'compiler'
    path.write_text('#!/bin/sh\necho "no such thing" >&2\nexit 1\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize('case', ['switched off', 'no compiler', 'failing compiler', 'no source', 'no library'])
def test_without_kernels_operators_do_the_same(fresh, tmp_path, monkeypatch, case):
    if case == 'switched off':
        monkeypatch.setenv('MOBILEONE_KERNELS', '0')
    elif case == 'no compiler':
        monkeypatch.setenv('PATH', str(tmp_path))
    elif case == 'failing compiler':
        monkeypatch.setenv('CXX', str(failing_compiler(tmp_path)))
    elif case == 'no source':
        kernels.SOURCE.unlink()
    else:
        monkeypatch.setenv('CXX', 'touch')
    x = maps(6, (8, 7), torch.float64)
    block = MobileOneBlock(6, 6, 3, groups=6, num_conv_branches=2, train_impl='moments').double()
    found = block(x)
    block.train_impl = 'branches'
    torch.testing.assert_close(found, block(x), rtol=1e-9, atol=1e-9)
    (level, message), *more = fresh
    assert not more and level == logging.WARNING and '\n' not in message and 'operators' in message
    block.train_impl = 'moments'
    assert "torch's operators" in repr(block)
    assert not [*tmp_path.rglob('.build-*')]


CHILD = """
import os, sys, torch
from pathlib import Path
from mobileone_ext.moments import kernels
torch.get_num_threads = lambda: 2  # for the kernels alone
x = torch.arange(2 * 16 * 6 * 6.).reshape(2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
kernels.SOURCE = Path(sys.argv[1])
shift = torch.zeros(16)
torch.ones(1000, 1000).sin() @ torch.ones(1000, 1000)  # torch's own threads have started
def work():  # by the kernels alone: torch's own threads do not survive a fork
    return kernels.library().answer() if 'tiny' in sys.argv[1] else kernels.plane_sums(x, shift).tolist()
first = work()
child = os.fork() if 'fork' in sys.argv else None
if child == 0:
    os._exit(0 if work() == first else 1)
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(first)
"""


def start(tmp_path, source, *arguments):
    environment = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / 'cache'), OMP_NUM_THREADS='2')
    command = [sys.executable, '-c', CHILD, str(source), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@has_compiler
def test_two_processes_build_at_once(tmp_path):
    (tmp_path / 'tiny.cpp').write_text(TINY)
    processes = [start(tmp_path, tmp_path / 'tiny.cpp') for _ in range(2)]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0 and out.strip() == '42', error
    assert len(cached(tmp_path)) == 1 and not [*tmp_path.rglob('.build-*')]


@pytest.mark.slow
@has_compiler
def test_a_fork_after_threads_have_run_works(tmp_path):
    process = start(tmp_path, Path(kernels.__file__).with_suffix('.cpp'), 'fork')
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
