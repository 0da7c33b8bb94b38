"""Text of users on a line, on the console and in Markdown, against literal strings and a reader of Markdown."""

import io
import os

import pytest
from conftest import ROOT
from rich.table import Table

from mobileone_ext.text import (
    Markdown,
    as_markdown,
    code,
    fits_a_line,
    make_console,
    markdown_table,
    one_line,
    option_value,
    printable,
    shorten,
)


@pytest.mark.parametrize(
    'text, shown',
    [
        ('photo.png', 'photo.png'),
        ('Füße 写真.png', 'Füße 写真.png'),
        ('a\x1b[31mred.png', r'a\x1b[31mred.png'),
        ('two\nlines', r'two\nlines'),
        ('\u202egnp.exe', r'\u202egnp.exe'),
        ('\u2028', r'\u2028'),
        (os.fsdecode(b'stray\xff.png'), r'stray\xff.png'),
        (b'bytes\x07', r'bytes\x07'),
        ('می\u200cروم', 'می\u200cروم'),  # Persian: the joiner is part of the word
        ('Wie\u00a0geht\u202f?', 'Wie\u00a0geht\u202f?'),
        ('👩\u200d🌾', '👩\u200d🌾'),
    ],
)
def test_names_on_a_terminal(text, shown):
    assert printable(text) == shown
    printable(text).encode('utf-8')


@pytest.mark.parametrize(
    'text, fits',
    [('می\u200cروم', True), ('a\u00a0b', True), ('a\nb', False), ('a\x85', False), ('\udcff', False), ('\x00', False)],
)
def test_what_fits_a_line_of_a_file(text, fits):
    assert fits_a_line(text) is fits


@pytest.mark.parametrize(
    'message, line',
    [
        (ValueError('a\n  b'), 'a b'),
        (ValueError("'a  b': no such file"), "'a  b': no such file"),
        (ValueError(), 'ValueError'),
        (KeyError('a'), "'a'"),
        ('Caught x\nTraceback (most recent call last):\n  File\nValueError: bad Error: photo', 'bad Error: photo'),
        ('Traceback.jpg\nis missing', 'Traceback.jpg is missing'),
    ],
)
def test_a_message_is_one_line(message, line):
    assert one_line(message) == line


def test_shorten_counts_the_mark():
    assert (shorten('abcde', 5), shorten('abcdef', 5), shorten('a\n', 3)) == ('abcde', 'abcd…', r'a\n')


OPTIONS = {
    '1': 1,
    '-.5e-3': -0.0005,
    'inf': float('inf'),
    'true': True,
    'None': None,
    '': '',
    '007': '007',
    '2024_01': '2024_01',
    '１２': '１２',  # full-width digits
    '[2024] set': '[2024] set',
    'x,y': 'x,y',
    'a  b ': 'a  b ',
    "it's": "it's",
    'dict(': 'dict(',
    '(x) [y)': '(x) [y)',
    '[a] and [b]': '[a] and [b]',
    '[' * 10_000: '[' * 10_000,
    '(' * 10_000 + ')' * 10_000: '(' * 10_000 + ')' * 10_000,
    '{1,2}': '{1,2}',
    '{a}': '{a}',
    '1,2': [1, 2],
    '0.9, 0.99': [0.9, 0.99],
    '[a, b c,1]': ['a', 'b c', 1],
    '[(train,1),(val,1)]': [('train', 1), ('val', 1)],
    '(3)': (3,),
    '()': (),
    '[[]]': [[]],
    "'1'": '1',
    r'"C:\new"': r'C:\new',
    r"['C:\new', d]": [r'C:\new', 'd'],
    "{'type': 'SGD', 'lr': 0.1}": {'type': 'SGD', 'lr': 0.1},
    "[{'type': 'SGD'}, 'b']": [{'type': 'SGD'}, 'b'],
    '[{a},b]': '[{a},b]',
    '[猫,犬]': ['猫', '犬'],
    '[2024_01]': ['2024_01'],
}


@pytest.mark.parametrize('text', OPTIONS, ids=lambda text: text[:30])
def test_the_value_of_an_option(text):
    value = option_value(text)
    assert value == OPTIONS[text] and type(value) is type(OPTIONS[text])


MMENGINE = ['1', '0.1', '1e-3', 'true', 'False', 'None', 'word', '1,2,3', '[a,b,c]', '[(1,2,3),[a,b],c]', '(1,2)']


@pytest.mark.parametrize('text', MMENGINE)
def test_options_of_mmengine_keep_their_meaning(text):
    from mmengine.config import DictAction

    assert option_value(text) == DictAction._parse_iterable(text)


NAMES = ['[red] fox', 'pos[/neg]', '[/]', ':cat:', '[link=x]y', 'a\\', '[bold]', '$x$', '1.5 [kg]']


@pytest.mark.parametrize('name', NAMES)
def test_the_console_shows_names_as_written(name):
    file = io.StringIO()
    console = make_console(file=file, width=60)
    table = Table(name, title=name)
    table.add_row(name)
    console.print(table)
    console.print(name)
    assert file.getvalue().count(name) == 4


def test_there_is_one_console():
    """Elsewhere a console would read users' names as markup."""
    sources = [path for folder in ('mobileone_ext', 'tools', 'research') for path in (ROOT / folder).rglob('*.py')]
    others = {path.name for path in sources if 'rich.console' in path.read_text() or 'from_markup' in path.read_text()}
    assert others == {'text.py'}


@pytest.mark.parametrize(
    'text, marked',
    [
        ('a|b', r'a\|b'),
        ('two\nlines', 'two lines'),
        ('<b>&amp;', r'\<b\>\&amp;'),
        ('*a* `b`', r'\*a\* \`b\`'),
        ('model_int8.onnx', 'model_int8.onnx'),
        ('__init__', r'\_\_init\_\_'),
        ('[a](b)', r'\[a\](b)'),
        ('$x$', r'\$x\$'),
        ('a\\', r'a\\'),
        ('猫', '猫'),
        (3.5, '3.5'),
        (Markdown('**x**'), '**x**'),
    ],
)
def test_markdown_shows_text_as_written(text, marked):
    assert as_markdown(text) == marked


@pytest.mark.parametrize('text, marked', [('a', '`a`'), ('a`b', '`` a`b ``'), ('a|b', r'`a\|b`')])
def test_code_in_markdown(text, marked):
    assert code(text) == marked == as_markdown(code(text))


def test_a_table_has_as_many_cells_as_headings():
    lines = markdown_table(('variant', 'n'), [('a|b\nc', 3), (code('|'), '')]).splitlines()
    assert lines == ['| variant | n |', '|---|---|', r'| a\|b c | 3 |', r'| `\|` | |']


def test_tables_are_made_in_one_place():
    sources = [path for folder in ('mobileone_ext', 'tools', 'research') for path in (ROOT / folder).rglob('*.py')]
    assert {path.name for path in sources if '|---' in path.read_text()} == {'text.py'}
