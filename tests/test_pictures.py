"""Users' names in pictures: as written, in a font that has them, or as numbers; never boxes, never a warning."""

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from mobileone_ext import pictures
from mobileone_ext.ablation import report
from mobileone_ext.ablation.study import Study
from mobileone_ext.engine import plot_recipe
from mobileone_ext.engine.finetuning import report as reporting
from mobileone_ext.engine.finetuning.curves import Curve, read_curves
from mobileone_ext.engine.finetuning.pictures import draw_curves, draw_mistakes
from mobileone_ext.engine.finetuning.scores import Scores
from mobileone_ext.engine.metrics import draw_matrix
from mobileone_ext.pictures import Line, drawing, has_font, in_picture, legend, names_in_pictures, write_on

pytestmark = pytest.mark.filterwarnings('error::UserWarning')

# Of no font that comes with matplotlib: a private character, so that a font of the system won't have it by chance.
FOREIGN = '\U000f1234'
NAMES = ['$x$ and $y', '^_{}', '_hidden', r'\frac', '100 %', 'قطة', 'кот', 'a\nb', 'x' * 300, '', '[red]', FOREIGN]
NAMES.append('\ue000')  # of fonts for formulas alone


@pytest.fixture
def fonts(monkeypatch):
    """The fonts of matplotlib alone; ``fonts(path, ...)`` adds others."""

    def add(*paths):
        actual = [font_manager.ttfFontProperty(font_manager.get_font(str(path))) for path in paths]
        own = [font for font in font_manager.fontManager.ttflist if 'mpl-data' in font.fname]
        monkeypatch.setattr(font_manager.fontManager, 'ttflist', own + actual)
        has_font.cache_clear()
        font_manager.fontManager._findfont_cached.cache_clear()

    add()
    yield add
    monkeypatch.undo()
    has_font.cache_clear()
    font_manager.fontManager._findfont_cached.cache_clear()


def make_font(path, characters, name='Test Font'):
    """A font in which each of ``characters`` is a filled square."""
    pen = TTGlyphPen(None)
    for method, *points in (('moveTo', (100, 0)), ('lineTo', (100, 700)), ('lineTo', (800, 700)), ('lineTo', (800, 0))):
        getattr(pen, method)(*points)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(['.notdef', 'square'])
    builder.setupCharacterMap(dict.fromkeys(map(ord, characters), 'square'))
    builder.setupGlyf({'.notdef': empty, 'square': square})
    builder.setupHorizontalMetrics({'.notdef': (900, 0), 'square': (900, 100)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(dict(familyName=name, styleName='Regular'))
    builder.setupOS2(sTypoAscender=800)
    builder.setupPost()
    builder.save(path)
    return path


def ink(text):
    """How many pixels of a white picture a line of text colors."""
    image = write_on(Image.new('RGB', (400, 40), 'white'), [Line(text, 5, 5, 390)], 20)
    return int((np.asarray(image).min(2) < 128).sum())


@pytest.mark.parametrize('text', ['cat', 'Füße', 'кот', 'γάτα', 'قطة', 'بیلی\u200cها', 'חתול', '$x$', r'\ue000'])
def test_what_comes_with_matplotlib_draws_these(fonts, text):
    assert has_font(text) and in_picture(text) == text and ink(text)


def test_without_a_font_a_name_is_a_number_and_a_title_an_escape(fonts):
    names = ['cat', FOREIGN, 'a' + FOREIGN, '猫' if not has_font('猫') else FOREIGN]
    assert names_in_pictures(names) == ['cat', '1', '2', '3']
    assert legend(names) == f'1: {names[1]}, 2: {names[2]}, 3: {names[3]}' and legend(['cat']) == ''
    assert in_picture('a' + FOREIGN) == r'a\U000f1234'


def test_a_font_of_the_system_is_found_by_its_characters(fonts, tmp_path):
    other, own = make_font(tmp_path / 'other.ttf', 'ab', 'Other'), make_font(tmp_path / 'own.ttf', FOREIGN, 'Own')
    boxes = make_font(tmp_path / 'boxes.ttf', FOREIGN + 'ab', 'Some LastResort')
    fonts(boxes, other, own)
    text = f'a{FOREIGN}'
    assert pictures.families([text]) == ['DejaVu Sans', 'Own'] and pictures.families(['a']) == ['DejaVu Sans']
    assert names_in_pictures([text]) == [text] and legend([text]) == ''
    # A square of 0.7 em: 14 x 14 pixels at 20.
    assert ink(FOREIGN) == pytest.approx(14 * 14, rel=0.15)


def test_a_font_that_cannot_be_read_is_passed_over(fonts, tmp_path):
    good = make_font(tmp_path / 'good.ttf', FOREIGN)
    fonts(make_font(tmp_path / 'bad.ttf', FOREIGN, 'Bad'), good)
    (tmp_path / 'bad.ttf').write_bytes(b'no font')
    pictures._characters.cache_clear()
    font_manager._get_font.cache_clear()
    assert pictures.families([FOREIGN]) == ['DejaVu Sans', 'Test Font']


def texts(figure):
    """All that a figure shows, legends as well."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, 'get_text'))]


@pytest.fixture
def shown(monkeypatch):
    """The texts of every figure that is saved."""
    actual, save = [], Figure.savefig

    def saved(figure, *arguments, **options):
        actual.extend(texts(figure))
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, 'savefig', saved)
    return actual


def test_matrix(fonts, shown, tmp_path):
    draw_matrix(np.eye(len(NAMES)), NAMES, tmp_path / 'm.png')
    assert {'$x$ and $y', '^_{}', '_hidden', r'\frac', '100 %', r'a\nb', '[red]', '11', '12'} <= set(shown)
    assert Image.open(tmp_path / 'm.png').width > 400


def test_study(fonts, shown, tmp_path):
    variants = {name: {} for name in NAMES if name}
    title, source = f'What $x$ costs {FOREIGN}', 'arXiv, Table $5'
    study = Study('s', title, '', variants, source, {'_hidden': 71.4})
    rows = [dict(variant=name, seed=0, status='done', top1_after=50.0, num_images=3) for name in variants]
    report.write_results(study, 'base', rows, tmp_path)
    assert {r'What $x$ costs \U000f1234', '$x$ and $y', '_hidden (paper: 71.4)'} <= set(shown)
    text = (tmp_path / 'results.md').read_text()
    assert f'In the picture, 10: {FOREIGN}, 11: \ue000.' in text
    table = [line for line in text.splitlines() if line.startswith('| ')]
    assert len(table) == 2 - 1 + len(variants) and all(line.count('|') - line.count(r'\|') == 10 for line in table)


def test_recipe(fonts, shown, tmp_path):
    image = np.zeros((8, 8, 3), np.uint8)
    epochs = [plot_recipe.Epoch(None, 8, None)] * 2
    decay = {'_norm': [0.0, 0.0], 'b$': [1.0, 2.0]}
    actual = plot_recipe.Preview(epochs, [plot_recipe.Span(0, 1, '$8$ px', [image])], '', 1, [0.1, 0.2], decay)
    plot_recipe.draw(actual, f'a/$x$_{FOREIGN}/{{b}}.py', tmp_path / 'r.png')
    assert {'_norm', 'b$', r'a/$x$_\U000f1234/{b}.py', 'epochs 0-1: $8$ px'} <= set(shown)


def test_curves_and_mistakes(fonts, shown, tmp_path):
    draw_curves({'$loss$': Curve([1, 2], [0.5, 0.25])}, tmp_path / 'c.png')
    photo = tmp_path / f'$x$ {FOREIGN}.png'
    Image.new('RGB', (50, 40), 'green').save(photo)
    scores = np.full((1, len(NAMES)), 0.5)
    scores[0, 11] = 0.75
    truth = np.arange(len(NAMES))[None] == 2
    actual = Scores([str(photo)], truth, scores, tuple(NAMES), multi_label=False)
    draw_mistakes(actual, tmp_path / 'm.png')
    assert {'$loss$', 'is _hidden 50%', 'taken for 11 75%', r'$x$ \U000f1234.png'} <= set(shown)


def test_the_report_of_photos_tells_what_numbers_mean(fonts):
    text = reporting.markdown(
        dict(
            classes=['cat', FOREIGN],
            multi_label=False,
            num_train=3,
            num_images=2,
            right_before=50.0,
            right_after=50.0,
            chance=50.0,
            changed_predictions=0,
            trained_fused=True,
            checkpoint='epoch_1.pth',
            deployed=dict(params_after=1, multiply_adds_after=1, latency_ms_after=1.0),
            megabytes=1.0,
            size=32,
            machine='Core|2',
            license='Apache|2.0',
            notes=['<b>.jpg: not readable'],
            per_class=[dict(name='a|b', count=1, recall=100.0, precision=None)],
            confusion=[[1, 0], [1, 0]],
            folder='a`b',
            commands=[('Again', 'mobileone test a')],
        ),
        ['confusion', 'curves'],
    )
    assert f'numbers stand for names that no font here has: 1: {FOREIGN}.' in text
    assert r'| a\|b | 1 | 100.0 % | - |' in text and r'| machine | Core\|2 |' in text
    assert r'License: Apache\|2.0.' in text
    assert r'- \<b\>.jpg: not readable' in text and '`tensorboard --logdir run`' in text


def test_curves_are_means_of_quarters_of_an_epoch():
    logged = {'train/loss': [float(step) for step in range(1, 17)], 'train/lr': [0.5] * 16, 'val/top1': [40.0, 60.0]}
    scalars = {name: dict(history_buffer=torch.tensor(values)) for name, values in logged.items()}
    checkpoint = dict(meta=dict(run=dict(steps_per_epoch=8)), message_hub=dict(log_scalars=scalars))
    quarters = [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert read_curves(checkpoint, 'top1') == {
        'loss': (quarters, [1.5, 3.5, 5.5, 7.5, 9.5, 11.5, 13.5, 15.5]),
        'lr': (quarters, [0.5] * 8),
        'top1': ([1.0, 2.0], [40.0, 60.0]),
    }
    assert list(read_curves(checkpoint, 'top5')) == ['loss', 'lr']


def test_a_line_is_cut_where_its_width_ends():
    def right_edge(text):
        image = write_on(Image.new('RGB', (400, 40), 'white'), [Line(text, 10, 5, 100)], 13)
        columns = np.asarray(image).min((0, 2))
        return int(np.flatnonzero(columns < 200).max())

    assert right_edge('word') < 60 and 90 < right_edge('word ' * 30) <= 110


def test_the_picture_below_the_text_stays():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = write_on(Image.fromarray(pixels), [Line('i', 0, 0, 20)], 10)
    np.testing.assert_array_equal(np.asarray(image)[20:], pixels[20:])


def test_settings_come_back():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with drawing(['猫']):
        assert matplotlib.rcParams['text.parse_math'] is False
    assert dict(matplotlib.rcParams) == before
