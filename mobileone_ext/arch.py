"""The variants of MobileOne as data.

MobileOne, arXiv 2206.04040, Table 7 and Apple's ml-mobileone; the stem has one
branch in the published code and weights, also in s0, where the table says four.

mu0 .. mu2 are ours, after the paper's figures: Table 13 publishes their parameters
and multiply-adds and no widths. These are the widths (multiples of 8, growing from
stage to stage) that come within 1 % of both figures with a shape closest to s0's:
the least spread of log(width / s0's width); k = 4 is s0's as well, as Table 6 shows
it to pay in the small. tests/test_micro_variants.py repeats the search.
"""

from math import inf
from operator import index

BASE_WIDTHS = (64, 128, 256, 512)


def _variant(width_factor: list[float], branches: int, num_se_blocks: tuple[int, ...] = (0, 0, 0, 0)) -> dict:
    return dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=width_factor,
        num_conv_branches=[branches] * 4,
        num_se_blocks=[*num_se_blocks],
    )


ARCHS: dict[str, dict[str, list]] = {
    'mu0': _variant([24 / 64, 64 / 128, 112 / 256, 360 / 512], branches=4),
    'mu1': _variant([32 / 64, 96 / 128, 168 / 256, 528 / 512], branches=4),
    'mu2': _variant([40 / 64, 128 / 128, 200 / 256, 632 / 512], branches=4),
    's0': _variant([0.75, 1.0, 1.0, 2.0], branches=4),
    's1': _variant([1.5, 1.5, 2.0, 2.5], branches=1),
    's2': _variant([1.5, 2.0, 2.5, 4.0], branches=1),
    's3': _variant([2.0, 2.5, 3.0, 4.0], branches=1),
    's4': _variant([3.0, 3.5, 3.5, 4.0], branches=1, num_se_blocks=(0, 0, 5, 1)),
}


def resolve_arch(arch: str | dict[str, list]) -> dict[str, list]:
    """The checked table of ``arch``: a name of ``ARCHS`` or a dict with its keys.

    Keys of a dict: ``num_blocks`` and ``width_factor`` (four numbers each, one a
    stage; widths times 64, 128, 256, 512), optionally ``num_conv_branches``
    (default 1) and ``num_se_blocks`` (default 0; the last blocks of a stage).

    Raises:
        TypeError: for an unknown or missing key, or what is no number.
        ValueError: for an unknown name, a list of another length than four, or a number out of range.
    """
    if not isinstance(arch, str):
        return _table(**arch)
    if arch not in ARCHS:
        raise ValueError(f'unknown; known are {", ".join(ARCHS)}, or a dict of four-number lists')
    return ARCHS[arch]


def _table(num_blocks, width_factor, num_conv_branches=(1, 1, 1, 1), num_se_blocks=(0, 0, 0, 0)) -> dict[str, list]:
    counts = dict(num_blocks=num_blocks, num_conv_branches=num_conv_branches, num_se_blocks=num_se_blocks)
    table = dict({key: [*map(index, values)] for key, values in counts.items()}, width_factor=[*width_factor])
    least = dict(num_blocks=1, num_conv_branches=0, num_se_blocks=0, width_factor=0)
    for key, values in table.items():
        # A network of other numbers would be built, and be another one than was meant. Written so that NaN fails.
        if len(values) != len(BASE_WIDTHS) or not all(least[key] <= value < inf for value in values):
            raise ValueError(f'{key}={values!r}: allowed are four numbers, {least[key]} or more')
    if any(se > blocks for se, blocks in zip(table['num_se_blocks'], table['num_blocks'])):
        raise ValueError(f'num_se_blocks={num_se_blocks!r} of num_blocks={num_blocks!r}: more than there are')
    return table


def stage_widths(arch: dict[str, list]) -> list[int]:
    """Output channels of the stem and the four stages, for a resolved ``arch``."""
    widths = [int(base * factor) for base, factor in zip(BASE_WIDTHS, arch['width_factor'])]
    return [min(BASE_WIDTHS[0], widths[0]), *widths]
