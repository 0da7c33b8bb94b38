"""Text of users in the small languages that it meets: a line, a console, rich's tables, Markdown.

Each is spoken in one place, and there text is taken as it is written: whoever passes a name on escapes nothing.
matplotlib's language is that of :mod:`mobileone_ext.pictures`.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar('Item')

# Characters that end a line or steer a terminal, and halves of surrogate pairs, which no file in UTF-8 can hold.
_CONTROLS = ('Cc', 'Cs', 'Zl', 'Zp')
# Marks of direction that reach beyond the name that they stand in.
_TURNS = ('LRE', 'RLE', 'LRO', 'RLO', 'PDF', 'LRI', 'RLI', 'FSI', 'PDI')


def one_line(message: object) -> str:
    """``message``, of an error or any other, on one line; an error that says nothing is the name of its type.

    Where a loader's worker wrapped an error in a traceback, it is the innermost one.
    """
    lines = str(message).strip().splitlines() or [type(message).__name__]
    if 'Traceback (most recent call last)' in str(message):
        return lines[-1].split('Error: ', 1)[-1]
    return ' '.join(line.strip() for line in lines)


def type_name(config: object) -> str:
    """The name behind ``type`` in a config, without its scope: ``SGD`` of ``dict(type='mmengine.SGD')``, or of a class.

    Empty for what has no type.
    """
    kind = config.get('type', '') if isinstance(config, dict) else ''
    return str(getattr(kind, '__name__', kind)).rsplit('.', 1)[-1]


def fits_a_line(text: str) -> bool:
    """Whether ``text`` can stand in a line of a file as it is: no line ends, control characters or stray bytes."""
    return not any(unicodedata.category(character) in _CONTROLS for character in text)


def nfc(text: str) -> str:
    """``text`` with its letters composed: keyboards and disks write é as one character or as two."""
    return unicodedata.normalize('NFC', text)


def printable(text: object) -> str:
    """``text`` for a terminal or a log: control characters, line breaks and stray bytes as escapes."""
    text = os.fsdecode(text) if isinstance(text, bytes) else str(text)
    return ''.join(_escaped(character) if _steers(character) else character for character in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS or unicodedata.bidirectional(character) in _TURNS


def as_text(path: object) -> str:
    """A path as text that can be written to any file: what is not UTF-8 as ``\\xff``."""
    return ''.join(_escaped(character) if '\ud800' <= character <= '\udfff' else character for character in str(path))


def _escaped(character: str) -> str:
    if '\udc80' <= character <= '\udcff':  # how Python keeps a byte that is not UTF-8
        return f'\\x{ord(character) - 0xDC00:02x}'
    return character.encode('unicode_escape', 'surrogatepass').decode()


def abbreviate(items: Iterable[str], count: int = 3) -> str:
    """The first ``count`` of ``items``, and how many there are beside, for a message."""
    items = list(items)
    more = f' and {len(items) - count} more' if len(items) > count else ''
    return ', '.join(items[:count]) + more


def hint(name: object, known: Iterable[object]) -> str:
    """What ``name`` may have meant, to be put behind a message: the nearest of ``known``, or some of them."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, 1)
    return f'; did you mean {close[0]!r}?' if close else f'; known are {abbreviate(known, 8)}'


def quoted(names: Iterable[str], count: int = 5) -> str:
    """The first ``count`` of ``names``, quoted, and how many more."""
    return abbreviate((f"'{printable(name)}'" for name in names), count)


def shorten(text: str, length: int) -> str:
    """``text`` for a terminal, its end cut off beyond ``length`` characters."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + '…'


_NUMBER = re.compile(r'[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)', re.I | re.A)
_CONSTANTS = {'true': True, 'True': True, 'false': False, 'False': False, 'None': None}
_QUOTED = r"""'[^']*'|"[^"]*\""""
_IN_BRACKETS = re.compile(rf'{_QUOTED}|[][(),]|[^][(),]+')


def option_value(text: str, words: bool = False) -> Any:
    """What ``text`` means behind ``key=``: a number, true or false, None, a list, tuple or dict, or itself as written.

    Brackets are read as in Python, and as in mmengine where the words in them have no quotes: ``[a, (b, 1)]``.
    Numbers with commas are a list; quotes around the whole are taken off. A text that is none of these is text.

    Args:
        words: whether words with commas are a list as well.
    """
    if re.fullmatch(_QUOTED, text):
        return text[1:-1]
    value = _scalar(text)
    if value is text and text[:1] in tuple('[({'):
        value = _bracketed(text)
    if value is text and ',' in text and not set(text) & set('[](){}'):
        items = [_scalar(item.strip()) for item in text.split(',')]
        if words or not any(isinstance(item, str) for item in items):
            return items
    return value


def _scalar(text: str) -> Any:
    if _NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r'[+-]?\d+', text, re.A) else float(text)
    return _CONSTANTS.get(text, text)


def _bracketed(text: str) -> Any:
    parts = re.compile(_QUOTED) if '{' in text else _IN_BRACKETS  # a dict is Python's, words in it have quotes
    try:
        value = ast.literal_eval(parts.sub(_as_literal, text))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # all that Python's parser raises
        return text
    if text[0] == '(' and not isinstance(value, tuple):
        value = (value,)
    return value if isinstance(value, (list, tuple, dict)) else text


def _as_literal(match: re.Match) -> str:
    """A part of a text in brackets as Python writes it: words and what is in quotes as text, without escapes."""
    part = match[0].strip()
    if part in ('', *'[](),'):
        return part
    return repr(part[1:-1] if part[0] in '\'"' and part[0] == part[-1] else _scalar(part))


def make_console(**options) -> Console:
    """rich's console, to which brackets and colons are text: ``[red] fox`` and ``:cat:`` are shown as written.

    Tables and progress bars that are printed to it take their strings the same way; ``options`` are its class's.
    """
    from rich.console import Console

    return Console(**{'markup': False, 'emoji': False, 'highlight': False, **options})


def print_table(
    title: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    words: int = 1,
    console: Console | None = None,
) -> None:
    """Print a table: the first columns, of ``words``, to the left, numbers behind them to the right."""
    from rich.table import Table

    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify='left' if number < words else 'right')
    for row in rows:
        table.add_row(*map(str, row))
    (console or make_console()).print(table)


def with_progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """``items`` behind a bar on a terminal, which goes when they are through; elsewhere nothing is shown of it.

    Args:
        total: how many there are, where they don't say themselves.
    """
    from rich.progress import track

    console = make_console(stderr=True)
    return track(items, description, total, console=console, transient=True, disable=not console.is_terminal)


class Markdown(str):
    """Text that is Markdown already: :func:`as_markdown` leaves it as it is."""

    __slots__ = ()


# An underscore between letters is none of Markdown's.
_MARKS = re.compile(r'[\\`*\[\]<>|$~&#]|(?<![^\W_])_|_(?![^\W_])')


def as_markdown(text: object) -> Markdown:
    """``text`` on a line of Markdown, shown as it is written: also ``|`` in a table, ``<`` and ``*``."""
    return text if isinstance(text, Markdown) else Markdown(_MARKS.sub(r'\\\g<0>', _line(text)))


def code(text: object) -> Markdown:
    """``text`` as code in a line of Markdown, or in a table's cell."""
    line = _line(text)
    fence = '`' * (1 + max(map(len, re.findall('`+', line)), default=0))
    space = ' ' if len(fence) > 1 else ''
    return Markdown(f'{fence}{space}{line}{space}{fence}'.replace('|', r'\|'))


def _line(text: object) -> str:
    return printable(' '.join(str(text).splitlines()))


def markdown_table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; cells are taken as written, but for those that are :class:`Markdown`."""
    return '\n'.join([_row(headings), '|---' * len(headings) + '|', *map(_row, rows)])


def _row(cells: Iterable[object]) -> str:
    return '|' + ''.join(f' {cell} |' if cell else ' |' for cell in map(as_markdown, cells))
