"""Memory traffic of a training step on paper: how often each map is read or written.

Counted are maps alone: kernels, statistics and the head are small beside them. Every operator reads its inputs from
memory and writes its output there; what a cache keeps between two operators is not known here. Per block, with I the
bytes of its input and O those of its output:

    convolution       I + O;        backward: O + I for the map's gradient, O + I for the kernel's
    batch norm        3 O (reads to sum, reads to normalize, writes);       backward 5 O (reads two maps twice, writes)
    sum of terms      3 O for each term but the first;      backward: gradients of the input, 3 I likewise
    activation        2 O;          backward 3 O
    SE                3 O (reads to pool, reads to multiply, writes);       backward 4 O
    moments           I;            backward 3 I (reads the map, reads and writes the gradient)
    of wide 1x1       4 I (shifted: reads, writes; sums, products: read);   backward 5 I (share: reads, writes; then 3)

Nobody asks for a gradient of the images, which saves the stem's share of those. A network that only predicts normalizes
by 2 O.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mobileone_ext.backbone import MobileOne
from mobileone_ext.block import MobileOneBlock
from mobileone_ext.moments.autotune import BlockShape
from mobileone_ext.moments.gpu import PIXEL_CHANNELS

IMPLS = ('branches', 'moments', 'moments in neighbors', 'fused')


@dataclass(frozen=True)
class Geometry(BlockShape):
    """A block of a network and the plane that it meets."""

    scale: bool
    skip: bool
    size: int
    se: bool = False

    @property
    def out_size(self) -> int:
        return -(-self.size // self.stride)

    @property
    def name(self) -> str:
        """What kind of block it is, in words."""
        if self.in_channels == 3:
            return 'stem'
        return 'pointwise' if self.kernel_size == 1 else f'depthwise, stride {self.stride}'


def blocks(arch: str | dict, size: int) -> list[Geometry]:
    """Of a new network, in order, for images of ``size`` pixels squared."""
    with torch.device('meta'):
        net = MobileOne(arch)
    found = []
    for block in net.modules():
        if isinstance(block, MobileOneBlock):
            names = 'in_channels', 'out_channels', 'kernel_size', 'stride', 'groups'
            kinds = len(block.branch_conv_list), block.branch_scale is not None, block.branch_norm is not None
            se = not isinstance(block.se, torch.nn.Identity)
            found.append(Geometry(*(getattr(block, name) for name in names), *kinds, size, se))
            size = found[-1].out_size
    return found


def block_bytes(block: Geometry, batch: int, impl: str, value_bytes: int = 2) -> int:
    """Bytes of a step of one block with its activation; ``impl`` is one of ``IMPLS``."""
    source = batch * block.in_channels * block.size**2 * value_bytes
    out = batch * block.out_channels * block.out_size**2 * value_bytes
    wanted = block.in_channels != 3  # whether the input's gradient is
    activation = (12 if block.se else 5) * out
    if impl == 'branches':
        return activation + _branches(block, source, out, wanted)
    one_convolution = _convolution(source, out, wanted)
    by_moments = 4 + 5 * wanted if block.kernel_size == 1 and block.in_channels > PIXEL_CHANNELS else 1 + 3 * wanted
    moments = {'fused': 0, 'moments': by_moments, 'moments in neighbors': 1 + wanted}[impl]
    return activation + one_convolution + moments * source


def forward_bytes(block: Geometry, batch: int, impl: str, value_bytes: int = 2) -> int:
    """Bytes of one block and its activation where a network only predicts; ``impl``: branches or fused."""
    source = batch * block.in_channels * block.size**2 * value_bytes
    out = batch * block.out_channels * block.out_size**2 * value_bytes
    activation = (5 if block.se else 2) * out
    if impl == 'fused':
        return activation + source + out
    terms, norm = block.branches + block.scale + block.skip, 2 * out
    scale = block.scale * (source // block.stride**2 + out + norm)
    return activation + block.branches * (source + out + norm) + scale + block.skip * norm + 3 * (terms - 1) * out


def products(block: Geometry, batch: int, impl: str) -> int:
    """Multiplications of a step of one block, forward and backward; ``impl`` as in :func:`block_bytes`."""
    patches = batch * block.out_size**2
    taps = block.in_channels // block.groups * block.kernel_size**2
    one = (2 + (block.in_channels != 3)) * patches * block.out_channels * taps
    if impl == 'fused':
        return one
    if impl == 'branches':
        return block.branches * one + block.scale * one // block.kernel_size**2
    # Of patches with each other and with their gradient; of kernels with the covariance, and with their slopes.
    return one + 2 * block.groups * taps**2 * (patches + block.branches * block.out_channels // block.groups)


def _convolution(source: int, out: int, wanted: bool) -> int:
    return (source + out) * (2 + wanted)


def _branches(block: Geometry, source: int, out: int, wanted: bool) -> int:
    norm, terms = 8 * out, block.branches + block.scale + block.skip
    total = block.branches * (_convolution(source, out, wanted) + norm) + block.skip * norm
    if block.scale:
        pixels = source // block.stride**2  # that it looks at
        # At stride 2 these are copied first, and their gradient is spread over a map of zeros.
        picked = 0 if block.stride == 1 else 2 * pixels + wanted * (pixels + source)
        total += _convolution(pixels, out, wanted) + norm + picked
    return total + 3 * (terms - 1) * out + wanted * 3 * (terms - 1) * source


def network_bytes(geometries: Iterable[Geometry], batch: int, impl: str, value_bytes: int = 2) -> int:
    """Bytes of a step of all blocks."""
    return sum(block_bytes(block, batch, impl, value_bytes) for block in geometries)
