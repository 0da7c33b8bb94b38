"""Pictures of a report: worst mistakes, curves."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ...data.decode import read_rgb
from ...pictures import Line, names_in_pictures, picture, write_on
from .curves import Curve
from .scores import Scores, worst

COLUMNS, TILE, LINE = 6, 190, 17  # of the contact sheet: photos a row, pixels


def draw_curves(curves: dict[str, Curve], path: Path) -> None:
    """A PNG with an axis for each of ``curves``, over the epochs."""
    with picture(path, (4.2 * len(curves), 3.2), curves, dpi=110) as figure:
        for axis, (name, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
            axis.plot(curve.epochs, curve.values, marker='.' if len(curve.values) <= 40 else None)
            axis.set(title=name, xlabel='epoch')
            axis.grid(alpha=0.3)


def draw_mistakes(result: Scores, path: Path) -> None:
    """A PNG with the photos of the worst mistakes, what they are, and what they were taken for.

    A class whose name has no font is its number (:func:`mobileone_ext.pictures.legend`).
    """
    chosen = worst(result)
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    cell_width, cell_height = TILE + 10, TILE + 3 * LINE + 14
    sheet = Image.new('RGB', (columns * cell_width + 10, rows * cell_height + 10), 'white')
    lines = []
    for number, index in enumerate(chosen):
        left = 10 + number % columns * cell_width
        top = 10 + number // columns * cell_height
        photo = _thumbnail(result.paths[index])
        sheet.paste(photo, (left + (TILE - photo.width) // 2, top + (TILE - photo.height) // 2))
        for line, (text, color) in enumerate(_caption(result, index)):
            lines.append(Line(text, left, top + TILE + 2 + line * LINE, TILE, color))
    write_on(sheet, lines, 13).save(path, 'png')


def _caption(result: Scores, index: int) -> list[tuple[str, str]]:
    """Lines of text with their color: what a photo is, what it was taken for, its file."""
    scores, names = result.scores[index], names_in_pictures(result.classes)

    def listed(which: np.ndarray) -> str:
        return ', '.join(f'{names[i]} {scores[i]:.0%}' for i in np.flatnonzero(which)) or 'nothing'

    return [
        (f'is {listed(result.truth[index])}', 'black'),
        (f'taken for {listed(result.predicted[index])}', '#b00020'),
        (Path(result.paths[index]).name, '#777777'),
    ]


def _thumbnail(path: str) -> Image.Image:
    try:
        return ImageOps.contain(read_rgb(path, TILE), (TILE, TILE))
    except (OSError, ValueError):  # gone since it was measured
        return Image.new('RGB', (TILE, TILE), '#dddddd')
