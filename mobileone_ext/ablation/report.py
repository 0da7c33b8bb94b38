"""A study's results as tables, a plot and a page: results.csv, results.md, results.png, results.html."""

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..files import csv_text, write_text
from ..pages import write_page
from ..pictures import BLUE, ORANGE, in_picture, legend, names_in_pictures, picture
from ..provenance import device, versions
from ..text import as_markdown, code, markdown_table, shorten
from .study import Study

# What a run brings home beside variant, seed, status and reason: the keys of the fusion's report.
METRICS = (
    'top1_before',
    'top1_after',
    'top5_after',
    'num_images',
    'changed_predictions',
    'params_before',
    'params_after',
    'multiply_adds_after',
    'latency_ms_before',
    'latency_ms_after',
    'training_minutes',
    'commit',
)
_HEADINGS = 'variant', 'top-1', 'n', 'difference', 'paper', 'parameters', 'multiply-adds', 'latency ms', 'minutes'
_COLUMNS = ('variant', 'seed', 'status', *METRICS, 'reason')


class Summary(NamedTuple):
    """A variant over its seeds: top-1 in percent, standard deviation of the sample (None for one run), mean minutes."""

    variant: str
    mean: float | None
    std: float | None
    runs: int
    row: dict
    failures: list[str]
    minutes: float | None = None


def summarize(variant: str, rows: Sequence[dict]) -> Summary:
    """The mean and spread over the finished runs of ``variant`` among ``rows``."""
    own = [row for row in rows if row['variant'] == variant]
    done = [row for row in own if row['status'] == 'done']
    top1 = [row['top1_after'] for row in done]
    minutes = [row['training_minutes'] for row in done if row.get('training_minutes') is not None]
    return Summary(
        variant,
        statistics.mean(top1) if top1 else None,
        statistics.stdev(top1) if len(top1) > 1 else None,
        len(top1),
        done[0] if done else {},
        [f'seed {row["seed"]}: {row["reason"]}' for row in own if row['status'] == 'failed'],
        statistics.mean(minutes) if minutes else None,
    )


def write_results(study: Study, base: str, rows: Sequence[dict], folder: Path, num_classes: int | None = None) -> None:
    """Write all four files of ``rows``, one a variant and seed, into ``folder``; ``num_classes``: see :func:`plot`."""
    summaries = [summarize(variant, rows) for variant in study.variants]
    lines = ({column: row.get(column, '') for column in _COLUMNS} for row in rows)
    write_text(csv_text(lines, _COLUMNS), folder / 'results.csv')
    write_text(markdown(study, base, summaries), folder / 'results.md')
    if any(summary.runs for summary in summaries):
        plot(study, summaries, rows, folder / 'results.png', num_classes)
    write_html(study, base, summaries, rows, folder / 'results.html')


def markdown(study: Study, base: str, summaries: Sequence[Summary]) -> str:
    """The study's table: mean, standard deviation, n, the paper's number beside ours."""
    lines = [
        f'# {as_markdown(study.title)}',
        '',
        study.text,
        '',
        f'Base config: {code(base)}. {_what_is_shown(as_markdown(summaries[0].variant))}',
        '',
        markdown_table(_HEADINGS, (_cells(study, summary, summaries[0]) for summary in summaries)),
    ]
    failures = _failures(summaries)
    if failures:
        lines += ['', 'Failed runs:', *(f'- {as_markdown(failure)}' for failure in failures)]
    if study.source:
        lines += ['', f'The paper: {as_markdown(study.source)}.']
    lines += ['', '![every run and the mean](results.png)']
    numbers = legend([summary.variant for summary in summaries])
    if numbers:
        lines += ['', f'In the picture, {as_markdown(numbers)}.']
    lines += ['', f'{_measured_on(summaries)} {environment()}', '']
    return '\n'.join(lines)


def write_html(study: Study, base: str, summaries: Sequence[Summary], rows: Sequence[dict], path: Path) -> None:
    """Write the study's page: the table, curves of each run, and how far the seeds of a variant lie apart."""
    runs = [
        dict(variant=row['variant'], top1=row['top1_after'], curves=row.get('curves', {}))
        for row in rows
        if row['status'] == 'done'
    ]
    said = f'Base config: {base}. {_what_is_shown(summaries[0].variant)}'
    page = dict(
        lines=[line for line in (study.text, said, study.source, f'{_measured_on(summaries)} {environment()}') if line],
        headings=_HEADINGS,
        rows=[_cells(study, summary, summaries[0]) for summary in summaries],
        failures=_failures(summaries),
    )
    data = dict(variants=[summary.variant for summary in summaries], runs=runs)
    write_page(path, 'study.html', data, title=study.title, page=page)


def _what_is_shown(first: str) -> str:
    return (
        'Top-1 in percent of the fused network, mean ± standard deviation of the sample over n seeds; difference to '
        f'"{first}"; parameters, multiply-adds and latency are the fused network\'s; minutes of training, the mean.'
    )


def _failures(summaries: Sequence[Summary]) -> list[str]:
    return [f'{summary.variant}, {failure}' for summary in summaries for failure in summary.failures]


def _measured_on(summaries: Sequence[Summary]) -> str:
    counts = {summary.row['num_images'] for summary in summaries if 'num_images' in summary.row}
    return f'Evaluated on {", ".join(f"{count:g}" for count in sorted(counts))} images.'


def _cells(study: Study, summary: Summary, first: Summary) -> list[str]:
    """A row of the table below ``_HEADINGS``."""
    row = summary.row
    spread = '' if summary.std is None else f' ± {summary.std:.2f}'
    compared = summary is not first and summary.mean is not None and first.mean is not None
    return [
        summary.variant,
        f'{summary.mean:.2f}{spread}' if summary.runs else 'failed' if summary.failures else 'not run',
        str(summary.runs) + (f' ({len(summary.failures)} failed)' if summary.failures else ''),
        f'{summary.mean - first.mean:+.2f}' if compared else '',
        f'{study.numbers[summary.variant]:.1f}' if summary.variant in study.numbers else '',
        f'{int(row["params_after"]):,}' if 'params_after' in row else '',
        f'{row["multiply_adds_after"] / 1e6:.1f} M' if 'multiply_adds_after' in row else '',
        f'{row["latency_ms_after"]:.2f}' if 'latency_ms_after' in row else '',
        f'{summary.minutes:.1f}' if summary.minutes is not None else '',
    ]


def environment() -> str:
    """What the numbers were made with: versions and hardware."""
    packages = ', '.join(f'{name} {number}' for name, number in versions('torch', 'mmengine', 'mmpretrain').items())
    return f'Python {platform.python_version()}, {packages}, {device()}.'


def plot(
    study: Study, summaries: Sequence[Summary], rows: Sequence[dict], path: Path, num_classes: int | None = None
) -> None:
    """A dot a run and a bar at the mean, one line a variant, with the paper's numbers beside the names.

    Args:
        num_classes: a line is drawn where guessing among so many would be, unless every run is far above it.
    """
    shown = names_in_pictures([shorten(summary.variant, 40) for summary in summaries])
    numbers = [study.numbers.get(summary.variant) for summary in summaries]
    variants = [f'{name} (paper: {number:.1f})' if number else name for name, number in zip(shown, numbers)]
    title = in_picture(study.title)
    with picture(path, (8, 0.4 * len(summaries) + 1.4), [*variants, title], dpi=120) as figure:
        axes = figure.subplots()
        for y, summary in enumerate(summaries):
            dots = [row['top1_after'] for row in rows if row['variant'] == summary.variant and row['status'] == 'done']
            axes.plot(dots, [y] * len(dots), 'o', color=BLUE, alpha=0.6)
            if dots:
                axes.plot([summary.mean], [y], '|', color='black', markersize=18, markeredgewidth=2)
        done = [row['top1_after'] for row in rows if row['status'] == 'done']
        label = 'top-1 in %: dots are seeds, bars means'
        if num_classes and min(done) < 5 * 100 / num_classes:  # further off it would squeeze the rest
            axes.axvline(100 / num_classes, color=ORANGE, linestyle='--')
            label += ', the dashed line is guessing'
        axes.set(xlabel=label, title=title, ylim=(len(summaries) - 0.5, -0.5))
        axes.set_yticks(range(len(summaries)), variants)
        axes.grid(axis='x', alpha=0.3)
