"""What metrics return, whatever it is: as plain data, as tables on the console, a confusion matrix as a picture."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..data.classes import labels
from ..pictures import names_in_pictures, picture
from ..text import make_console, print_table, shorten

ROWS = 50  # a table of more classes shows the lowest figures alone
COLUMNS = 20  # a confusion matrix of more classes shows the largest confusions alone
LETTERS = 24  # of a name


def as_plain(value: Any) -> Any:
    """``value`` as JSON has it: tensors and arrays as lists, NaN and infinity as None, objects by their text."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().tolist()
    elif isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [as_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def show(metrics: dict, classes: Sequence[str] | None, **options) -> None:
    """Print plain ``metrics``: accuracy in a line, other numbers in a table, figures of each class by its name.

    ``options`` are those of the console.
    """
    console = make_console(**options)
    figures = dict(flat(metrics))
    matrices = {key: value for key, value in figures.items() if is_matrix(value)}
    by_class: dict[int, dict] = {}
    for key, value in figures.items():
        if is_numbers(value) and len(value) > 1:
            by_class.setdefault(len(value), {})[key] = value
    shown = {'num_images', 'accuracy/top1', 'accuracy/top5', *matrices}
    if 'accuracy/top1' in figures:
        tops = [f'top-{k} {figures[key]:.2f}' for k in (1, 5) if (key := f'accuracy/top{k}') in figures]
        console.print(f'{", ".join(tops)} on {figures["num_images"]} images')
    rest = {
        key: value for key, value in figures.items() if key not in shown and not (is_numbers(value) and len(value) > 1)
    }
    if rest:
        rows = ((key, _text(value)) for key, value in rest.items())
        print_table(f'{figures["num_images"]} images', ('', ''), rows, console=console)
    for columns in by_class.values():
        _show_classes(columns, classes, console)
    for key, matrix in matrices.items():
        _show_matrix(key, matrix, classes, console)


def flat(metrics: dict, prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Metrics without dicts in dicts: their keys joined by ``/``."""
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{key}/')
        else:
            yield f'{prefix}{key}', value


def is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(item is None or isinstance(item, int | float) for item in value)


def is_matrix(value: Any) -> bool:
    """Whether ``value`` is square, as a confusion matrix."""
    return isinstance(value, list) and len(value) > 1 and all(is_numbers(r) and len(r) == len(value) for r in value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ', '.join(_text(item) for item in value)
    return 'nan' if value is None else f'{value:.2f}' if isinstance(value, float) else str(value)


def _show_classes(columns: dict[str, list], classes: Sequence[str] | None, console) -> None:
    count = len(next(iter(columns.values())))
    names = labels(classes, count)
    rows = sorted(range(count), key=lambda row: [(v[row] is None, v[row] or 0) for v in columns.values()])
    if count <= ROWS:
        rows, title = range(count), f'{count} classes'
    else:
        rows, title = rows[:ROWS], f'the {ROWS} of {count} classes with the lowest figures'
    headings = ('class', *(key.removesuffix('_classwise') for key in columns))
    cells = ((shorten(names[row], LETTERS), *(_text(v[row]) for v in columns.values())) for row in rows)
    print_table(title, headings, cells, console=console)


def _show_matrix(key: str, matrix: list[list], classes: Sequence[str] | None, console) -> None:
    count = len(matrix)
    names = [shorten(name, LETTERS) for name in labels(classes, count)]
    if count <= COLUMNS:
        title, words = f'{key}: what is (rows), what was predicted (columns)', 1
        headings = ('', *map(str, range(count)))
        rows = [(f'{number} {names[number]}', *map(_text, row)) for number, row in enumerate(matrix)]
    else:
        title, words = f'{key}: the most frequent confusions of {count} classes', 2
        headings = ('what is', 'what was predicted', 'images')
        cells = np.array(matrix, dtype=float)
        np.fill_diagonal(cells, 0)
        order = np.argsort(-np.nan_to_num(cells), axis=None, kind='stable')[:COLUMNS]
        places = zip(*np.unravel_index(order, cells.shape))
        rows = [
            (names[row], names[column], _text(matrix[row][column])) for row, column in places if cells[row, column] > 0
        ]
    print_table(title, headings, rows, words, console)


def draw_matrices(metrics: dict, classes: Sequence[str] | None, out: str | Path) -> list[Path]:
    """Draw each confusion matrix in plain ``metrics`` beside ``out``, ``OUT_KEY.png``; the files written."""
    matrices = [(key, value) for key, value in flat(metrics) if is_matrix(value)]
    written = []
    for key, matrix in matrices:
        name = key.split('/')[0] if len(matrices) == 1 else key.replace('/', '_')
        path = Path(out).with_name(f'{Path(out).stem}_{name}.png')
        draw_matrix(np.array(matrix, dtype=float), labels(classes, len(matrix)), path)
        written.append(path)
    return written


def draw_matrix(cells: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A PNG of a confusion matrix (classes, classes): rows are the truth, color is the share of a row.

    A name in a script that no font has stands as its number (:func:`mobileone_ext.pictures.legend`).
    """
    count = len(names)
    side = min(max(4.0, 0.4 * count + 2), 20)
    share = cells / np.maximum(np.nansum(cells, axis=1, keepdims=True), 1e-9)  # of the images of a class
    shown = names_in_pictures([shorten(name, LETTERS) for name in names]) if count <= 100 else []
    with picture(path, (side, side), shown) as figure:
        axis = figure.subplots()
        image = axis.imshow(share, cmap='Blues', vmin=0, vmax=1, interpolation='nearest' if count <= 100 else 'auto')
        axis.set(xlabel='predicted', ylabel='label')
        if shown:
            axis.set_xticks(range(count), shown, rotation=90)
            axis.set_yticks(range(count), shown)
        if count <= 30:
            for row, column in np.ndindex(cells.shape):
                if cells[row, column]:
                    color = 'white' if share[row, column] > 0.5 else 'black'
                    axis.text(column, row, f'{cells[row, column]:g}', ha='center', va='center', color=color, fontsize=8)
        figure.colorbar(image, ax=axis, label='share of the row', shrink=0.8)
