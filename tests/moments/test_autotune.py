"""The autotune table of a device, and `auto` under autocast."""

import json
import logging
from dataclasses import asdict, fields, replace

import pytest
import torch
from conftest import randomize_norms
from torch import nn

from mobileone_ext.block import MobileOneBlock
from mobileone_ext.moments import autotune, kernels
from mobileone_ext.moments.autotune import Kind, Row
from mobileone_ext.provenance import processor

KIND = Kind(48, 48, 3, 1, 48, 4, True, 'bfloat16', False)
ROWS = [Row(KIND, 1000, 2.0, 1.0), Row(KIND, 32000, 1.0, 2.0)]
BLOCKS = {
    'depthwise': dict(in_channels=48, out_channels=48, kernel_size=3, groups=48, num_conv_branches=4),
    'strided': dict(in_channels=48, out_channels=48, kernel_size=3, groups=48, stride=2, num_conv_branches=4),
    'pointwise': dict(in_channels=48, out_channels=48, kernel_size=1, num_conv_branches=4),
    'stem': dict(in_channels=3, out_channels=48, kernel_size=3, stride=2, num_conv_branches=1),
}


def test_constants_are_marked_as_torch_marks_them():
    ours, theirs = kernels.constant_when_compiled(lambda: 1), torch.compiler.assume_constant_result(lambda: 1)
    assert vars(ours) == vars(theirs) != {}


@pytest.fixture
def table(monkeypatch, tmp_path):
    """``table(rows or text)`` is the one of this processor; what the log is told."""
    said = []
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(kernels, 'report', lambda message, level: said.append((level, message)))

    def put(content):
        autotune.forget()
        file = autotune.path(processor())
        if isinstance(content, list):
            autotune.write(content, processor(), {'torch': '2'}, file)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return said

    autotune.forget()
    yield put
    autotune.forget()


def row_of(patches, pays_off):
    return Row(KIND, patches, 2.0, 1.0 if pays_off else 3.0)


@pytest.mark.parametrize(
    ('rows', 'expected'),
    [
        (ROWS, [(250, 4000)]),
        ([row_of(100, True)], [(25, 400)]),
        ([row_of(400, True), row_of(100, True)], [(25, 200), (200, 1600)]),
        ([row_of(400, True), row_of(100, False)], [(200, 1600)]),
        ([row_of(100, False)], []),
        ([], []),
    ],
)
def test_the_nearest_row_counts(rows, expected):
    """Up to a factor of four, and half way to the next row, on a scale of factors."""
    assert [*autotune.ranges(tuple(rows), KIND)] == expected


@pytest.mark.parametrize('field', [field.name for field in fields(Kind)])
def test_another_kind_is_not_known(field):
    value = getattr(KIND, field)
    other = replace(KIND, **{field: 'float16' if field == 'dtype' else not value if value in (True, False) else 7})
    assert autotune.ranges(tuple(ROWS), other) == ()


def test_a_table_reads_as_it_was_written(table, tmp_path):
    table(ROWS)
    assert autotune.read(autotune.path(processor()), processor()) == tuple(ROWS)


def test_new_rows_replace_those_of_the_same_kind_and_size(table):
    table(ROWS)
    new = [ROWS[0]._replace(moments_ms=9.0), ROWS[0]._replace(patches=5)]
    file = autotune.path(processor())
    assert autotune.merge(new, file, processor()) == [ROWS[1], *new]
    assert autotune.merge(new, file, 'another') == new
    file.write_text('[')
    assert autotune.merge(new, file, processor()) == new
    file.unlink()
    assert autotune.merge(new, file, processor()) == new


def row(**change):
    names = ('patches', 'branches_ms', 'moments_ms')
    return dict(asdict(KIND), **dict(zip(names, (1000, 2.0, 1.0))), **change) if not change else dict(row(), **change)


def as_bytes(**change):
    return json.dumps(dict(dict(device=processor(), versions={}, rows=[row()]), **change)).encode()


BAD = {
    'empty': (b'', 'Expecting value'),
    'no JSON': (b'{"rows": [', 'Expecting value'),
    'no text': (b'\xff\xfe\x00', 'codec'),
    'a list': (b'[]', 'TypeError'),
    'nested': (b'[' * 100000, 'recursion'),
    'other device': (as_bytes(device='H100'), "it is of 'H100'"),
    'a field less': (as_bytes(rows=[{k: v for k, v in row().items() if k != 'skip'}]), "argument: 'skip'"),
    'a field more': (as_bytes(rows=[row(), dict(row(), more=1)]), "argument 'more'"),
    'text for a number': (as_bytes(rows=[row(patches='1')]), 'TypeError'),
    'NaN': (as_bytes(rows=[row(moments_ms=float('nan'))]), 'row 1: [1000, 2.0, nan]'),
    'no time': (as_bytes(rows=[row(branches_ms=0.0)]), 'row 1: [1000, 0.0, 1.0]'),
    'no patches': (as_bytes(rows=[row(patches=-5)]), 'row 1: [-5, 2.0, 1.0]'),
}


def block_and_map(name='depthwise', impl='auto'):
    torch.manual_seed(0)
    block = randomize_norms(MobileOneBlock(**BLOCKS[name], act=nn.SiLU, train_impl=impl)).train()
    block = block.to(memory_format=torch.channels_last)
    x = (torch.randn(10, block.in_channels, 10, 10) + 0.5).to(memory_format=torch.channels_last)
    return block, x


@pytest.mark.parametrize(('content', 'reason'), BAD.values(), ids=BAD)
def test_bad_tables_give_one_line_and_branches(table, content, reason):
    said = table(content)
    block, x = block_and_map()
    with torch.autocast('cpu', torch.bfloat16):
        assert not block.takes_moments(x) and not block.takes_moments(x)
    ((level, message),) = said
    assert level == logging.WARNING and '\n' not in message and reason in message
    assert 'takes the branches' in message and '.json' in message


def test_a_table_that_is_a_folder(table):
    said = table(ROWS)
    autotune.path(processor()).unlink()
    autotune.path(processor()).mkdir()
    block, x = block_and_map()
    with torch.autocast('cpu', torch.bfloat16):
        assert not block.takes_moments(x)
    assert len(said) == 1


def test_auto_under_autocast_follows_the_table(table):
    block, x = block_and_map()
    said = table([])
    with torch.autocast('cpu', torch.bfloat16):
        assert not block.takes_moments(x)
        table(ROWS)
        block.train()  # a block decides once until then
        assert block.takes_moments(x) and block.takes_moments(x.bfloat16())
        assert not block.takes_moments(x.repeat(32, 1, 1, 1))  # 32000 patches
    with torch.autocast('cpu', torch.float16):
        assert not block.takes_moments(x)
    assert not block.takes_moments(x.double()) and not said


def test_without_a_table_the_log_says_what_to_do(table):
    said = table(ROWS)
    autotune.path(processor()).unlink()
    block, x = block_and_map()
    with torch.autocast('cpu', torch.bfloat16):
        assert not block.takes_moments(x)
    ((level, message),) = said
    assert level == logging.INFO and 'tools/benchmark.py train' in message


def test_a_compiled_block_reads_the_table(table):
    table([row._replace(kind=replace(KIND, compiled=True)) for row in ROWS])
    block, x = block_and_map()
    with torch.autocast('cpu', torch.bfloat16):
        assert not block.takes_moments(x)

    torch._dynamo.reset()

    @torch.compile(backend='eager', fullgraph=True)
    def asks(x):
        return x + 1 if block.takes_moments(x) else x - 1

    for images in (10, 12, 14, 320):  # from the second on a symbolic number
        x = torch.randn(images, 48, 10, 10)
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(asks(x), x + 1 if images < 40 else x - 1)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', BLOCKS)
def test_autocast_is_as_near_to_float64_as_the_branches(name, dtype):
    """Root of the mean square of what the step gives, and running statistics of float32.

    Within 2.5 times: the skip is rounded as a part of the one kernel here, and not at all as a branch.
    """
    results = {}
    for impl in ('exact', 'moments', 'branches'):
        block, x = block_and_map(name, 'branches' if impl == 'exact' else impl)
        x = x if name == 'stem' else x.to(dtype).float()
        x = (x.double() if impl == 'exact' else x).requires_grad_()
        block = block.double() if impl == 'exact' else block
        with torch.autocast('cpu', dtype, enabled=impl != 'exact'):
            assert block.takes_moments(x) == (impl == 'moments')
            out = block(x if impl == 'exact' or name == 'stem' else x.to(dtype))
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        (out.to(x.dtype) * weight.to(x.dtype)).sum().backward()
        gradients = {key: parameter.grad for key, parameter in block.named_parameters()}
        results[impl] = dict(out=out.detach(), x=x.grad, **gradients, **dict(block.named_buffers()))
    for key, exact in results['exact'].items():
        found, branches = results['moments'][key], results['branches'][key]
        assert found.dtype == branches.dtype
        if exact.is_floating_point():
            error, allowed = (float((value - exact).square().mean().sqrt()) for value in (found, branches))
            assert error <= 2.5 * allowed + 1e-4 * float(exact.abs().max()), key
        if 'running' in key:
            assert found.dtype == torch.float32
