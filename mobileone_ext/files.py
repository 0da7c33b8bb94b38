"""Files that are either whole or not there."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it on success, remove it on failure.

    Raises:
        OSError: if ``path`` is a folder or cannot be written.
    """
    path = Path(path)
    check_writable(path)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise OSError if a file cannot be written at ``path``: before an hour's work, not after it."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f'{path}: is a folder; name a file to write')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'{path.parent}: no such folder to write {path.name} in')
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f'{path.parent}: no permission to write {path.name} there')


def write_text(text: str, path: str | Path) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with write_atomically(path) as part:
        part.write_text(text, encoding='utf-8')


def json_text(value: object) -> str:
    """``value`` as JSON, which knows neither NaN nor infinities.

    Raises:
        ValueError: naming the first number that is not finite.
    """
    for place in _not_finite(value):
        raise ValueError(f'{place.lstrip(".")} is not a finite number; JSON has none but these')
    return json.dumps(value, indent=2, allow_nan=False) + '\n'


def _not_finite(value: object, place: str = '') -> Iterator[str]:
    """Where ``value`` holds NaN or an infinity, e.g. ``accuracy[1].top1``."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f'{place}.{key}')
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _not_finite(item, f'{place}[{index}]')


def write_json(value: object, path: str | Path) -> None:
    """Write ``value`` to ``path`` as JSON, whole or not at all; errors as in :func:`json_text`."""
    write_text(json_text(value), path)


def csv_text(rows: Iterable[dict], columns: Sequence[str]) -> str:
    """A CSV file: a line of ``columns``, then one for each of ``rows``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
