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

from .arguments import is_integer, is_number

BASE_WIDTHS = (64, 128, 256, 512)
_LEAST = dict(num_blocks=1, num_conv_branches=0, num_se_blocks=0)

ARCHS: dict[str, dict[str, list]] = {
    'mu0': dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=[24 / 64, 64 / 128, 112 / 256, 360 / 512],
        num_conv_branches=[4, 4, 4, 4],
        num_se_blocks=[0, 0, 0, 0],
    ),
    'mu1': dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=[32 / 64, 96 / 128, 168 / 256, 528 / 512],
        num_conv_branches=[4, 4, 4, 4],
        num_se_blocks=[0, 0, 0, 0],
    ),
    'mu2': dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=[40 / 64, 128 / 128, 200 / 256, 632 / 512],
        num_conv_branches=[4, 4, 4, 4],
        num_se_blocks=[0, 0, 0, 0],
    ),
    's0': dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=[0.75, 1.0, 1.0, 2.0],
        num_conv_branches=[4, 4, 4, 4],
        num_se_blocks=[0, 0, 0, 0],
    ),
    's1': dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=[1.5, 1.5, 2.0, 2.5],
        num_conv_branches=[1, 1, 1, 1],
        num_se_blocks=[0, 0, 0, 0],
    ),
    's2': dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=[1.5, 2.0, 2.5, 4.0],
        num_conv_branches=[1, 1, 1, 1],
        num_se_blocks=[0, 0, 0, 0],
    ),
    's3': dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=[2.0, 2.5, 3.0, 4.0],
        num_conv_branches=[1, 1, 1, 1],
        num_se_blocks=[0, 0, 0, 0],
    ),
    's4': dict(
        num_blocks=[2, 8, 10, 1],
        width_factor=[3.0, 3.5, 3.5, 4.0],
        num_conv_branches=[1, 1, 1, 1],
        num_se_blocks=[0, 0, 5, 1],
    ),
}


def resolve_arch(arch: str | dict[str, list]) -> dict[str, list]:
    """The checked table of ``arch``: a name of ``ARCHS`` or a dict with its keys.

    Keys of a dict: ``num_blocks`` and ``width_factor`` (four numbers each, one a
    stage; widths times 64, 128, 256, 512), optionally ``num_conv_branches``
    (default 1) and ``num_se_blocks`` (default 0; the last blocks of a stage).

    Raises:
        ValueError: for an unknown name or key, a list of another length than
            four, or a number out of range.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'arch={arch!r} is unknown; known are {", ".join(ARCHS)}, or a dict of four-number lists')
        return ARCHS[arch]

    if not isinstance(arch, dict):
        raise ValueError(f'arch={arch!r}: allowed are {", ".join(ARCHS)}, or a dict of four-number lists')
    defaults = dict(num_conv_branches=[1] * 4, num_se_blocks=[0] * 4)
    required = ('num_blocks', 'width_factor')
    unknown = set(arch) - {*required, *defaults}
    if unknown:
        raise ValueError(
            f'arch: unknown key {sorted(unknown, key=str)[0]!r}; known are {", ".join([*required, *defaults])}'
        )
    for key in required:
        if key not in arch:
            raise ValueError(f'arch: {key!r} is missing')
    table = {**defaults, **arch}
    for key, values in table.items():
        if not isinstance(values, (list, tuple)) or len(values) != len(BASE_WIDTHS):
            raise ValueError(f'arch: {key}={values!r} must list four numbers, one for each stage')
        for value in values:
            # Written so that NaN fails.
            width = key == 'width_factor'
            if not (is_number(value) and 0 < value < inf if width else is_integer(value) and value >= _LEAST[key]):
                allowed = 'positive numbers' if width else f'integers, {_LEAST[key]} or more'
                raise ValueError(f'arch: {key}={values!r}: allowed are {allowed}')
    for blocks, se_blocks in zip(table['num_blocks'], table['num_se_blocks']):
        if se_blocks > blocks:
            raise ValueError(f'arch: num_se_blocks={se_blocks} of num_blocks={blocks}: a stage has no more than these')
    if not all(stage_widths(table)):
        raise ValueError(f'arch: width_factor={table["width_factor"]!r}: leaves a stage of {BASE_WIDTHS} no channel')
    return table


def stage_widths(arch: dict[str, list]) -> list[int]:
    """Output channels of the stem and the four stages, for a resolved ``arch``."""
    widths = [int(base * factor) for base, factor in zip(BASE_WIDTHS, arch['width_factor'])]
    return [min(BASE_WIDTHS[0], widths[0]), *widths]
