"""Blocks of a network one by one: do moments agree with branches, what does a step cost, and where do moments pay."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mobileone_ext.block import MobileOneBlock
from mobileone_ext.moments.autotune import Kind, Row

from .traffic import Geometry, block_bytes
from .turns import Contestant, measure

IMPLS = ('branches', 'moments', 'fused')
# How far from float64 moments may be, in errors of the branches: roots of the mean square, of half precision.
MOST_EXCESS = 2.0
KIND_FIELDS = {field.name for field in fields(Kind)}


class Precision(NamedTuple):
    """Where and how a step runs; ``dtype`` is that of autocast, or float32 without it."""

    device: str
    dtype: torch.dtype

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)


def make_block(geometry: Geometry, impl: str, device: str = 'cpu') -> MobileOneBlock:
    """With the same random weights each time; ``impl`` is one of ``IMPLS``."""
    torch.manual_seed(0)
    train_impl = 'branches' if impl == 'fused' else impl
    block = MobileOneBlock(
        geometry.in_channels,
        geometry.out_channels,
        geometry.kernel_size,
        geometry.stride,
        groups=geometry.groups,
        num_conv_branches=geometry.branches,
        use_scale=geometry.scale,
        use_skip=geometry.skip,
        act=nn.SiLU,  # ReLUs that open for one and not for the other would tell more of chance than of errors
        train_impl=train_impl,
        deploy=impl == 'fused',
    )
    return block.train().to(device, memory_format=torch.channels_last)


def make_map(geometry: Geometry, batch: int, precision: Precision) -> Tensor:
    """As the block meets it: images in float32, NCHW; behind the stem maps of autocast's type, channels last."""
    size = batch, geometry.in_channels, geometry.size, geometry.size
    x = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(precision.device)
    if geometry.in_channels == 3:
        return x
    return x.relu().to(precision.dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def excess(geometry: Geometry, batch: int, precision: Precision) -> float:
    """Error of a step by moments, in errors of the branches; the largest among output and gradients.

    Against float64 by branches. Errors below an eighth of the type's resolution count as that.
    """
    x = make_map(geometry, batch, precision).detach()
    blocks = (make_block(geometry, impl, precision.device) for impl in ('branches', 'moments'))
    allowed, found = (_results(block, x, precision, precision.dtype) for block in blocks)
    exact_block = make_block(geometry, 'branches', precision.device).double()
    exact = _results(exact_block, x.double(), precision._replace(dtype=torch.float32), precision.dtype)
    scores = []
    for name, value in exact.items():
        floor = torch.finfo(precision.dtype).eps / 8 * _rms(value)
        error, limit = (_rms(results[name].double() - value) for results in (found, allowed))
        scores.append(float(error / torch.maximum(limit, floor)) if error else 0.0)
    return max(scores, key=lambda score: float('inf') if score != score else score)


def _results(block: MobileOneBlock, x: Tensor, precision: Precision, grad_dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and gradients of a step; what arrives from behind is rounded to ``grad_dtype``."""
    x = x.clone().requires_grad_(block.in_channels != 3)
    with precision.autocast():
        out = block(x)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(grad_dtype)
    out.backward(grad.to(out))
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return dict(out=out.detach(), **({} if x.grad is None else {'x': x.grad}), **gradients)


def _rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()


def make_step(geometry: Geometry, impl: str, batch: int, precision: Precision, wrap: Callable) -> Callable[[], None]:
    """Forward and backward pass of one block; ``wrap`` compiles it, or not."""
    block = wrap(make_block(geometry, impl, precision.device))
    x = make_map(geometry, batch, precision)
    grads: list[Tensor] = []

    def step() -> None:
        with precision.autocast():
            out = block(x)
        if not grads:
            grads.append(torch.randn_like(out))
        out.backward(grads[0])

    return step


def measure_blocks(
    geometries: Sequence[Geometry],
    batch: int,
    precision: Precision,
    wraps: dict[str, Callable],
    steps: int,
    note: Callable,
) -> list[dict]:
    """A row for each of ``geometries``, way (``wraps``: eager, compiled) and impl.

    Rows have ``impl``, ``compiled``, the fields of a geometry and of a summary, the model's ``traffic_gb``, what that
    makes in ``gb_per_s``, and ``excess``. ``note`` hears what comes next.
    """
    rows = []
    for geometry in geometries:
        note(f'{geometry.name}: {geometry.in_channels} to {geometry.out_channels}, {geometry.size} px')
        apart = _try_excess(geometry, min(batch, 8), precision)
        for way, wrap in wraps.items():
            torch.compiler.reset()
            steps_of = {impl: partial(make_step, geometry, impl, batch, precision, wrap) for impl in IMPLS}
            contestants = {impl: Contestant(make, precision.device) for impl, make in steps_of.items()}
            measure([*contestants.values()], steps, repeats=3)
            for impl, contestant in contestants.items():
                summary = contestant.summary()
                gb = block_bytes(geometry, batch, impl, precision.dtype.itemsize) / 1e9
                speed = None if summary['median_ms'] is None else 1000 * gb / summary['median_ms']
                row = dict(kind=geometry.name, impl=impl, way=way, **asdict(geometry), **summary)
                rows.append(dict(row, traffic_gb=gb, gb_per_s=speed, excess=apart if impl == 'moments' else None))
    return rows


def _try_excess(geometry: Geometry, batch: int, precision: Precision) -> float:
    try:
        return excess(geometry, batch, precision)
    except (RuntimeError, MemoryError):  # out of memory, say: then nothing is known
        return float('nan')


def pays_rows(rows: list[dict], batch: int, dtype: torch.dtype) -> list[Row]:
    """Of ``measure_blocks``, what `auto` will read: where both were measured and agree."""
    found: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        found.setdefault((Geometry(**{field.name: row[field.name] for field in fields(Geometry)}), row['way']), {})[
            row['impl']
        ] = row
    table = []
    for (geometry, way), impls in found.items():
        if way not in ('eager', 'compiled'):  # CUDA graphs, of which a block doesn't know
            continue
        branches, moments = impls['branches'], impls['moments']
        if branches['note'] or moments['note'] or not moments['excess'] <= MOST_EXCESS:
            continue
        known = {name: value for name, value in asdict(geometry).items() if name in KIND_FIELDS}
        kind = Kind(**known, dtype=str(dtype).removeprefix('torch.'), compiled=way == 'compiled')
        table.append(Row(kind, batch * geometry.out_size**2, branches['median_ms'], moments['median_ms']))
    return table
