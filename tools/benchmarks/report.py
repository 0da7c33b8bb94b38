"""Tables and picture of a benchmark of training in mixed precision."""

from pathlib import Path

from mobileone_ext.text import markdown_table

from .blocks import MOST_EXCESS

TRAFFIC = ('branches', 'moments', 'moments in neighbors', 'fused')


def networks(rows: list[dict]) -> str:
    """A line a network and way: median ms a step (fastest to slowest), memory, and both relative to mmpretrain's."""
    lines = [
        'Milliseconds a training step: median (fastest to slowest); peak memory of the device; both relative to',
        'mmpretrain in the same way.',
        '',
    ]
    table = []
    references = {(row['arch'], row['way']): row for row in rows if row['network'] == 'mmpretrain'}
    for row in rows:
        reference = references.get((row['arch'], row['way']), {})
        ratios = [_ratio(row, reference, key) for key in ('median_ms', 'peak_gb')]
        table.append((row['arch'], row['network'], row['way'], _times(row), _number(row['peak_gb']), *ratios))
    headings = '', 'network', '', 'ms', 'GB', 'time / mmpretrain', 'memory / mmpretrain'
    return '\n'.join([*lines, markdown_table(headings, table), ''])


def traffic(found: dict[str, dict[str, float]], batch: int) -> str:
    """GB a step on paper."""
    table = markdown_table(
        ('', *TRAFFIC), ((arch, *(f'{gb[impl]:.1f}' for impl in TRAFFIC)) for arch, gb in found.items())
    )
    return f'GB of maps read and written in a step of {batch} images, on paper, of two bytes a value:\n\n{table}\n'


def blocks(rows: list[dict]) -> str:
    """A line a kind of block, way and impl."""
    lines = [
        'Blocks, forward and backward pass. GB on paper; GB/s: these by the time that it took; error: of moments',
        f'against float64, in errors of the branches, of which {MOST_EXCESS:g} are allowed:',
        '',
    ]
    table = []
    for row in rows:
        shape = f'{row["kind"]} {row["in_channels"]} to {row["out_channels"]}, {row["size"]} px'
        numbers = _number(row['traffic_gb'], 3), _number(row['gb_per_s'], 0), _number(row['excess'])
        table.append((shape, row['branches'], row['impl'], row['way'], _times(row), *numbers))
    return '\n'.join([*lines, markdown_table(('block', 'k', '', '', 'ms', 'GB', 'GB/s', 'error'), table), ''])


def _times(row: dict) -> str:
    if row['note']:
        return row['note']
    return f'{row["median_ms"]:.2f} ({row["min_ms"]:.2f} to {row["max_ms"]:.2f})'


def _number(value: float | None, digits: int = 2) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def _ratio(row: dict, reference: dict, key: str) -> str:
    return f'{row[key] / reference[key]:.2f}' if row[key] and reference.get(key) else ''


def draw(rows: list[dict], block_rows: list[dict], title: str, path: Path) -> None:
    """Bars of a step's time for each network; of blocks, time beside the traffic on paper."""
    from mobileone_ext.pictures import picture

    with picture(path, (13, 5), dpi=120) as figure:
        left, right = figure.subplots(1, 2)
        bars = [row for row in rows if not row['note']]
        names = [f'{row["arch"]} {row["network"]}, {row["way"]}' for row in bars]
        left.barh(names, [row['median_ms'] for row in bars])
        left.invert_yaxis()
        left.set_xlabel('ms a training step')
        for impl in dict.fromkeys(row['impl'] for row in block_rows):
            points = [row for row in block_rows if row['impl'] == impl and not row['note']]
            right.loglog([row['traffic_gb'] for row in points], [row['median_ms'] for row in points], 'o', label=impl)
        for axis in (right.xaxis, right.yaxis):
            axis.set_major_formatter('{x:g}')
        right.set_xlabel('GB of a block on paper')
        right.set_ylabel('ms')
        right.legend(fontsize=8)
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=7)
        figure.suptitle(title, fontsize=8)
