"""Pictures with users' names in them: matplotlib without a screen, text as it is written, in any script with a font.

DejaVu Sans, which comes with matplotlib, has Latin, Cyrillic, Greek, Arabic, Hebrew and more; what it lacks is taken
from the fonts of the system. A name for which there is none stands as a number, and :func:`legend` tells whose.
"""

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .files import suffix_of, write_atomically
from .text import printable

DEFAULT_FONT = 'DejaVu Sans'
BLUE, ORANGE = '#0072b2', '#d55e00'  # two that color-blind people tell apart (Okabe and Ito)
_BOXES = ('last resort', 'lastresort', 'blank')  # in the names of fonts that have every character as a box


class Line(NamedTuple):
    """A line of text on a picture, its upper left corner at ``left``, ``top``, cut off at ``width``; in pixels."""

    text: str
    left: int
    top: int
    width: int
    color: str = 'black'


@contextmanager
def drawing(texts: Iterable[str] = ()) -> Iterator[None]:
    """A figure that is made in here takes text as it is written, with fonts for the script of ``texts``.

    Dollars, carets, braces and backslashes are no formula.
    """
    options = {'text.parse_math': False, 'text.usetex': False, 'font.family': families(texts)}
    with matplotlib.rc_context(options):
        yield


@contextmanager
def picture(path: Path, size: tuple[float, float], texts: Iterable[str] = (), dpi: int = 100) -> Iterator[Figure]:
    """A figure of ``size`` inches, made as by :func:`drawing`, that is then at ``path``, whole or not at all.

    Args:
        path: its suffix names the format.
    """
    with drawing(texts):
        figure = Figure(figsize=size, layout='constrained')
        yield figure
        with write_atomically(path) as part:
            figure.savefig(part, dpi=dpi, format=suffix_of(path)[1:])


def names_in_pictures(names: Sequence[str]) -> list[str]:
    """``names`` as a picture shows them: a name without a font as its number, from 0."""
    return [name if has_font(name) else str(number) for number, name in enumerate(map(printable, names))]


def legend(names: Sequence[str]) -> str:
    """What the numbers in a picture of ``names`` mean, ``3: 猫, 4: 犬``; nothing where each name has a font."""
    shown = zip(names_in_pictures(names), map(printable, names))
    return ', '.join(f'{number}: {name}' for number, name in shown if number != name)


def in_picture(text: str) -> str:
    """``text`` for a title or a caption; characters without a font as escapes."""
    text = printable(text)
    if has_font(text):
        return text
    return ''.join(c if has_font(c) else c.encode('unicode_escape').decode() for c in text)


@cache
def has_font(text: str) -> bool:
    """Whether every character of ``text`` can be drawn: tried."""
    with drawing([text]), warnings.catch_warnings(record=True) as missing:
        warnings.simplefilter('always')
        figure = Figure(figsize=(1, 1))
        figure.text(0, 0, text)
        try:
            FigureCanvasAgg(figure).draw()
        except RuntimeError:  # a font without outlines, or a broken one
            return False
    return not missing


def families(texts: Iterable[str]) -> list[str]:
    """The default font, and of the system's those that have what it lacks of ``texts``; the fullest first."""
    fonts = [DEFAULT_FONT]
    missing = set().union(*texts) - _characters(font_manager.findfont(DEFAULT_FONT))
    while missing:
        best = max(_other_fonts(), key=lambda font: len(missing & _characters(font.fname)), default=None)
        if best is None or not missing & _characters(best.fname):
            break
        fonts.append(best.name)
        missing -= _characters(best.fname)
    return fonts


def _other_fonts() -> list[font_manager.FontEntry]:
    """The system's upright fonts, those of the usual weight first."""
    fonts = [
        font
        for font in font_manager.fontManager.ttflist
        if font.style == 'normal'
        and not font.fname.startswith(matplotlib.get_data_path())  # the others of matplotlib are for formulas
        and not any(word in font.name.lower() for word in _BOXES)
    ]
    weights = font_manager.weight_dict
    return sorted(fonts, key=lambda font: abs(weights.get(font.weight, font.weight) - weights['normal']))


@cache
def _characters(path: str) -> frozenset[str]:
    """What the font at ``path`` has; nothing if its outlines cannot be drawn, as of emoji in color."""
    try:
        font = font_manager.get_font(path)
        font.set_size(12, 100)
        charmap = font.get_charmap()
        font.load_char(max(charmap))
    except (RuntimeError, OSError, ValueError):
        return frozenset()
    return frozenset(map(chr, charmap))


def write_on(image: Image.Image, lines: Iterable[Line], pixels: int) -> Image.Image:
    """``image`` (RGB) with ``lines`` of letters ``pixels`` high on it."""
    lines = [line._replace(text=in_picture(line.text)) for line in lines]
    with drawing(line.text for line in lines):
        figure = Figure(figsize=(image.width / 100, image.height / 100), dpi=100)
        figure.figimage(np.asarray(image))
        renderer = FigureCanvasAgg(figure).get_renderer()
        for line in lines:
            left, top = line.left / image.width, 1 - line.top / image.height
            text = figure.text(left, top, line.text, color=line.color, fontsize=pixels * 0.72, va='top')
            shown = line.text
            while len(shown) > 1 and text.get_window_extent(renderer).width > line.width:
                shown = shown[:-1]
                text.set_text(shown + '…')
        file = io.BytesIO()
        figure.savefig(file, dpi=100, format='png')
    return Image.open(file).convert('RGB')
