"""The page of measured photos: what report.html of finetune.py and test.py --html say of each."""

import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from ..data.classes import is_multi_label
from ..data.pixels import Preprocessing
from ..files import csv_text, write_text
from ..metadata import fit_of
from ..pages import write_page
from ..pages.thumbnails import thumbnails
from ..text import as_text
from .collect import CollectHook
from .finetuning.scores import Scores, by_class, confusion, sureness
from .finetuning.suspects import Pair, doubtful
from .metrics import flat

PICTURES = 5000  # photos that the page has pictures of: mistakes first, the surest of them before all
MATRIX, CONFUSIONS = 40, 50  # a matrix of more classes shows the most frequent confusions alone
PAIRS = 200
COLUMNS = ('file', 'label', 'guess', 'score')


@dataclass(frozen=True)
class Looks:
    """What else is known of measured photos.

    Attributes:
        levels: (N, h, w) uint8, where the network looked for its best class, see
            :func:`mobileone_ext.deploy.explain.gray_levels`.
        view: which part of a photo it sees, as of :func:`mobileone_ext.metadata.fit_of`.
        pairs: near-duplicates among the measured photos and, behind these, the training photos.
        trained: paths of the training photos, each with the numbers of its labels.
    """

    levels: np.ndarray | None = None
    view: Mapping[str, Any] = field(default_factory=dict)
    pairs: Sequence[Pair] = ()
    trained: Sequence[tuple[str, list[int]]] = ()


def photo_rows(result: Scores) -> Iterator[dict]:
    """Of each measured photo its path, the numbers of its labels and of the guessed classes, and scores as shares.

    ``score`` is the best class's, ``own`` that of a photo's one label, ``error`` how sure its error is.
    """
    columns = result.paths, result.truth, result.predicted, result.scores, sureness(result)
    for path, truth, guess, scores, error in zip(*columns):
        label = np.flatnonzero(truth).tolist()
        own = {} if result.multi_label else dict(own=round(float(scores[label[0]]), 4))
        yield dict(
            path=as_text(path),
            part='to measure on',
            label=label,
            guess=np.flatnonzero(guess).tolist(),
            score=round(float(scores.max()), 4),
            wrong=bool((truth != guess).any()),
            error=round(float(error), 4),
            **own,
        )


def write_photo_list(result: Scores, path: Path) -> None:
    """Write every measured photo as CSV with ``COLUMNS``; several labels are separated by ``;``."""

    def named(indices: list[int]) -> str:
        return as_text(';'.join(result.classes[index] for index in indices))

    rows = (
        dict(file=row['path'], label=named(row['label']), guess=named(row['guess']), score=row['score'])
        for row in photo_rows(result)
    )
    write_text(csv_text(rows, COLUMNS), path)


def write_photo_page(path: Path, result: Scores, texts: Mapping[str, Any], looks: Looks, **drawn: Any) -> None:
    """Write the page ``path`` of ``result``.

    Args:
        texts: title, figure, sentence and what else of its head and foot ``pages/photos.html`` shows.
        drawn: ``curves``, and ``calibration`` with ``reliability`` and ``reject``, for ``pages/page.js`` to draw.
    """
    rows, count, in_doubt, pairs = list(photo_rows(result)), len(result.paths), doubtful(result), looks.pairs[:PAIRS]
    in_pairs = {index for pair in pairs for index in pair[:2]}
    trained = sorted(index for index in in_pairs if index >= count)
    of_pairs = [looks.trained[index - count] for index in trained]
    rows += [dict(path=as_text(name), label=label, part='to train on') for name, label in of_pairs]
    places = {index: count + place for place, index in enumerate(trained)}  # in the page, which has no others of them
    first = in_pairs | {index for index, _ in in_doubt}
    order = sorted(range(count), key=lambda i: (i not in first, not rows[i]['wrong'], -rows[i]['error']))
    pictured = order[:PICTURES] + [*places.values()]
    files = [*result.paths, *(name for name, _ in of_pairs)]
    for index, picture in zip(pictured, thumbnails([files[index] for index in pictured])):
        rows[index]['thumb'] = picture
        if looks.levels is not None and looks.view and index < count:
            rows[index]['map'] = b64encode(looks.levels[index].tobytes()).decode()
    prefix = os.path.commonprefix([row['path'] for row in rows])
    root = prefix[: prefix.rfind('/') + 1]
    for row in rows:
        row['path'] = row['path'][len(root) :]
    data = dict(
        classes=[as_text(name) for name in result.classes],
        root=root,
        photos=rows,
        measured=count,
        doubts=in_doubt,
        pairs=[(places.get(a, a), places.get(b, b), similarity) for a, b, similarity in pairs],
        view=dict(looks.view),
        map=[] if looks.levels is None else looks.levels.shape[1:],
        **(dict(curves={}, calibration=None) | drawn),
    )
    defaults = dict(lines=(), facts=(), notes=(), pairs=None, calibration=(), commands=())
    write_page(path, 'photos.html', data, title=texts['title'], page=defaults | of_classes(result) | texts)


def write_test_page(
    path: str | Path, config: Config, collected: CollectHook, network: str, metrics: dict, classes: Sequence[str] | None
) -> None:
    """Write the page of a test run, see :mod:`mobileone_ext.engine.test`.

    Args:
        collected: took part in it.
        network: the path of what was measured.
    """
    result = collected.scores(classes, is_multi_label(config))
    right = (result.truth == result.predicted).all(1).mean() * 100
    what = 'have all labels right' if result.multi_label else 'right'
    numbers = {name: value for name, value in flat(metrics) if isinstance(value, float)}
    texts = dict(
        title=f'{Path(network).name} on {len(result.paths):,} images of {len(result.classes):,} classes',
        figure=f'{right:.1f} %',
        sentence=f'{what} ({uncertainty(right, len(result.paths))})',
        facts=[(name, f'{value:.2f}') for name, value in numbers.items()],
    )
    levels = np.concatenate(collected.levels) if collected.levels else None
    write_photo_page(Path(path), result, texts, Looks(levels, fit_of(Preprocessing(config).pipeline)))


def of_classes(result: Scores) -> dict[str, Any]:
    """What the page shows of classes: ``names``, the table ``classes``, and ``matrix`` or ``confusions``."""

    def shown(percent: float | None) -> str:
        return '-' if percent is None else f'{percent:.1f}'

    names = list(result.classes)
    table = [(row.name, row.count, shown(row.recall), shown(row.precision)) for row in by_class(result)]
    found = dict(names=names, classes=table, matrix=None, confusions=())
    if result.multi_label:
        return found
    matrix = confusion(result)
    if len(names) <= MATRIX:
        return found | dict(matrix=matrix.tolist())
    np.fill_diagonal(matrix, 0)
    largest = np.argsort(-matrix, axis=None, kind='stable')[:CONFUSIONS]
    cells = zip(*np.unravel_index(largest, matrix.shape))
    return found | dict(confusions=[(i, j, int(matrix[i, j])) for i, j in cells if matrix[i, j]])


def uncertainty(percent: float, count: int) -> str:
    """The 95 % interval (Wilson) of a share of ``count``."""
    z, share = 1.96, percent / 100
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return f'95 % interval {100 * max(0, center - half):.1f} to {100 * min(1, center + half):.1f}'
