"""report.html and its like: what is in the page, and in Chromium what a person sees and clicks."""

import base64
import io
import json
import re
import tomllib
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import HOSTILE, open_browser, wait
from conftest import ROOT, TINY, data_options, only_line
from PIL import Image

from mobileone_ext import cli, pages
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.deploy import fuse
from mobileone_ext.deploy.explain import class_maps, gray_levels, lay_over, seen_part
from mobileone_ext.engine.features import look
from mobileone_ext.engine.finetuning import suspects
from mobileone_ext.engine.finetuning.scores import Scores, score_photos
from mobileone_ext.engine.finetuning.suspects import Pair, doubtful, near_duplicates
from mobileone_ext.engine.photo_page import Looks, write_photo_list, write_photo_page
from mobileone_ext.engine.runner import Runner
from mobileone_ext.metadata import Metadata
from mobileone_ext.pages.thumbnails import thumbnails

TEXTS = dict(title='A page', figure='50.0 %', sentence='of 4 photos')


def write_photos(folder: Path, count: int) -> list[str]:
    draw = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (3, 4, 3), np.uint8)).resize((60, 40)).save(folder / f'{number}.jpg')
    return [str(folder / f'{number}.jpg') for number in range(count)]


def scores_of(paths: list[str], labels: list[int], scores, classes) -> Scores:
    scores = np.array(scores, float)
    return Scores(list(paths), np.eye(scores.shape[1], dtype=bool)[labels], scores, tuple(classes), False)


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.S)[1])


@pytest.fixture
def four(tmp_path):
    """Four photos of two classes, two of them mistaken, with near-duplicates and where the network looked."""
    paths = write_photos(tmp_path / 'photos', 6)
    result = scores_of(paths[:4], [0, 0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], ['cat', 'dog'])
    levels = np.zeros((4, 2, 2), np.uint8)
    levels[:, 0, 1] = 255
    view = dict(size=[32, 32], fit='crop', crop=1.0)
    trained = [(path, [1]) for path in paths[4:]]
    looks = Looks(levels, view, [Pair(0, 5, 0.99), Pair(1, 2, 0.98)], trained)
    return result, looks


# ---- what is in the page ----


def test_every_measured_photo_is_in_the_page_and_in_the_list(four, tmp_path):
    result, looks = four
    write_photo_page(tmp_path / 'page.html', result, TEXTS, looks)
    data = data_of(tmp_path / 'page.html')
    said = [(one['path'], one['label'], one['guess'], one['score'], one['wrong']) for one in data['photos'][:4]]
    assert said == [
        ('0.jpg', [0], [0], 0.9, False), ('1.jpg', [0], [1], 0.8, True),
        ('2.jpg', [1], [0], 0.6, True), ('3.jpg', [1], [1], 0.7, False),
    ]  # fmt: skip
    assert data['root'] == f'{tmp_path}/photos/' and data['measured'] == 4
    assert [one['path'] for one in data['photos'][4:]] == ['5.jpg']  # of those to train on the one in a pair
    assert data['pairs'] == [[0, 4, 0.99], [1, 2, 0.98]]
    write_photo_list(result, tmp_path / 'photos.csv')
    assert (tmp_path / 'photos.csv').read_text().splitlines()[:2] == [
        'file,label,guess,score',
        f'{result.paths[0]},cat,cat,0.9',
    ]


def test_names_are_text_whatever_they_hold(tmp_path):
    names = [*HOSTILE, '{{ 7 * 7 }}']
    paths = write_photos(tmp_path / 'photos', len(names))
    result = scores_of(paths, range(len(names)), np.eye(len(names))[::-1], names)
    write_photo_page(tmp_path / 'page.html', result, TEXTS | dict(title=names[1], notes=names), Looks())
    text = (tmp_path / 'page.html').read_text()
    assert data_of(tmp_path / 'page.html')['classes'] == names
    assert len(re.findall('<script', text)) == len(re.findall('</script', text)) == 2 and '<img src=x' not in text
    assert names[1] in unescape(re.search('<title>(.*?)</title>', text)[1]) and '49' not in unescape(text[-99:])


def test_a_photo_that_is_gone_is_in_the_page_without_a_picture(four, tmp_path):
    result, looks = four
    Path(result.paths[1]).unlink()
    Path(result.paths[2]).write_bytes(b'no photo')
    write_photo_page(tmp_path / 'page.html', result, TEXTS, looks)
    assert [bool(one['thumb']) for one in data_of(tmp_path / 'page.html')['photos']] == [True, False, False, True, True]


def test_many_photos_have_no_picture_but_mistakes_have(tmp_path, monkeypatch):
    monkeypatch.setattr('mobileone_ext.engine.photo_page.PICTURES', 2)
    paths = write_photos(tmp_path / 'photos', 5)
    scores = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.1, 0.9]]
    write_photo_page(tmp_path / 'page.html', scores_of(paths, [0, 0, 0, 0, 0], scores, 'ab'), TEXTS, Looks())
    photos = data_of(tmp_path / 'page.html')['photos']
    assert ['thumb' in one for one in photos] == [False, False, False, True, True]


def test_many_classes_have_a_list_of_confusions(tmp_path):
    names = [f'class {number}' for number in range(50)]
    paths = write_photos(tmp_path / 'photos', 3)
    write_photo_page(tmp_path / 'page.html', scores_of(paths, [7, 7, 9], np.eye(50)[[8, 8, 9]], names), TEXTS, Looks())
    text = (tmp_path / 'page.html').read_text()
    assert 'class="matrix"' not in text
    assert re.search(r'data-label="7" data-guess="8">2</button> class 7 → class 8', text)


def test_thumbnails_are_upright_and_whole(tmp_path):
    photo = Image.new('RGB', (400, 200), 'red')
    exif = photo.getexif()
    exif[0x0112] = 6
    photo.save(tmp_path / 'turned.jpg', exif=exif)
    [found] = thumbnails([str(tmp_path / 'turned.jpg')])
    with Image.open(io.BytesIO(base64.b64decode(found))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ('JPEG', (64, 128))


def test_the_page_of_a_test_run_is_what_the_run_measured(run_tool, tiny_run, digits, tmp_path):
    checkpoint, out = next(tiny_run.glob('epoch_*.pth')), tmp_path / 'm.json'
    options = '--work-dir', tmp_path, '--cfg-options', *data_options(digits)
    page = tmp_path / 'page.html'
    code, text = run_tool('test', TINY, checkpoint, '--html', page, '--out', out, *options)
    assert code == 0, text
    data, metrics = data_of(page), json.loads(out.read_text())
    assert data['measured'] == len(data['photos']) == metrics['num_images']
    right = 100 * sum(not photo['wrong'] for photo in data['photos']) / data['measured']
    assert right == pytest.approx(metrics['accuracy/top1'])
    assert f'<strong data-part="figure">{right:.1f} %</strong>' in page.read_text()
    config = cli.load_config(TINY, dict(option.split('=') for option in data_options(digits)))
    expected = score_photos(config, str(checkpoint))
    assert [data['root'] + photo['path'] for photo in data['photos']] == expected.paths
    found = [photo['score'] for photo in data['photos']]
    np.testing.assert_allclose(found, expected.scores.max(1), atol=1e-4)
    model = fuse.load_model(config, load_weights(str(checkpoint)))
    _, levels = look(model, Runner.build_dataloader(config.test_dataloader))
    for photo, own in zip(data['photos'], levels):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(photo['map']), np.uint8), own.ravel())
    code, text = run_tool('test', TINY, checkpoint, '--html', page, '--launcher', 'pytorch', *options)
    assert code == 1 and '--html with --launcher pytorch: a page is of one process' in only_line(text)


# ---- near-duplicates and labels in doubt ----


def test_near_duplicates_are_the_pairs_that_were_planted():
    """By cosines in float64, photo by photo, across the borders of blocks."""
    draw = np.random.default_rng(0)
    features = draw.standard_normal((2100, 32)).astype(np.float32)
    for first, second in [(3, 2000), (1500, 1501), (0, 1)]:
        features[second] = 2 * features[first] + 0.01 * draw.standard_normal(32)
    found = near_duplicates(features)
    assert {pair[:2] for pair in found} == {(3, 2000), (1500, 1501), (0, 1)}
    for first, second, similarity in found:
        a, b = features[[first, second]].astype(np.float64)
        assert similarity == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)


def test_near_duplicates_follow_their_definition(monkeypatch):
    """Photo by photo in float64: the distance is at most the ratio of that of either's tenth neighbor."""
    monkeypatch.setattr(suspects, '_BLOCK', 7)
    features = np.random.default_rng(0).standard_normal((31, 4)).astype(np.float32)
    directions = features.astype(np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    distances = np.linalg.norm(directions[:, None] - directions[None], axis=2)
    tenth = np.sort(distances, axis=1)[:, 10]  # the first is the photo itself
    expected = {(i, j) for i in range(31) for j in range(i + 1, 31) if distances[i, j] <= 0.6 * min(tenth[i], tenth[j])}
    assert {pair[:2] for pair in near_duplicates(features, 0.6)} == expected and len(expected) > 10


@pytest.mark.parametrize('count', [2, 5])
def test_a_few_photos_have_near_duplicates_only_if_they_are(count):
    features = np.eye(8, dtype=np.float32)[:count]
    assert near_duplicates(features) == []
    assert [pair[:2] for pair in near_duplicates(np.concatenate([features, features[:1]]))] == [(0, count)]


def test_labels_in_doubt_by_hand():
    """A class's own photos have 0.8, 0.6, 0.1 and 0.45 for it, 0.49 in the mean, and the other's 0.9 and 0.3, 0.6.

    The last one is surer of a dog than of a cat, but not as sure as dogs are.
    """
    scores = [[0.8, 0.2], [0.6, 0.4], [0.1, 0.9], [0.1, 0.9], [0.7, 0.3], [0.45, 0.55]]
    result = scores_of('abcdef', [0, 0, 0, 1, 1, 0], scores, ['cat', 'dog'])
    assert doubtful(result) == [(2, 1), (4, 0)]
    perfect = scores_of('ab', [0, 1], np.eye(3)[:2], ['cat', 'dog', 'none of these'])
    assert doubtful(perfect) == []


# ---- where the network looked ----


def test_the_map_s_mean_and_the_bias_are_the_logit():
    maps, fc = torch.randn(3, 16, 5, 7, dtype=torch.float64), torch.nn.Linear(16, 4).double()
    classes = torch.tensor([2, 0, 3])
    logits = fc(maps.mean((2, 3)))[torch.arange(3), classes]
    torch.testing.assert_close(class_maps(maps, fc.weight, classes).mean((1, 2)) + fc.bias[classes], logits)


def test_gray_levels_by_hand():
    levels = gray_levels(torch.tensor([[[0.5, -1.0], [1.0, 0.0]], [[-1.0, -2.0], [-3.0, -4.0]]]))
    assert levels.tolist() == [[[128, 0], [255, 0]], [[0, 0], [0, 0]]] and levels.dtype == np.uint8


@pytest.mark.parametrize(
    ('told', 'expected'),
    [
        (dict(fit='crop', crop=0.5), (0.375, 0.25, 0.25, 0.5)),  # 40 of the 80 pixels of a shorter edge
        (dict(fit='squash'), (0, 0, 1, 1)),
        (dict(fit='pad'), (0, -0.5, 1, 2)),
    ],
)
def test_which_part_of_a_photo_is_seen(told, expected):
    assert seen_part(Metadata(size=[40, 40], **told), 400, 200) == pytest.approx(expected)
    assert seen_part(Metadata(size=[40, 40]), 400, 200) is None


def test_the_map_lies_over_the_part_that_was_seen():
    picture = lay_over(Image.new('RGB', (80, 40)), np.full((2, 2), 255, np.uint8), (0.25, 0.0, 0.5, 1.0))
    row = np.array(picture)[20].max(1)
    assert (row > 0).tolist() == [20 <= x < 60 for x in range(80)]


# ---- in Chromium ----


@pytest.fixture(scope='module')
def browser():
    chromium = open_browser()
    yield chromium
    chromium.quit()


CARDS = "return [...document.querySelectorAll('#gallery .photo')].map((one) => one.dataset.photo)"


def open_page(browser, page: Path) -> None:
    browser.get(page.as_uri())
    assert wait(browser, 'return document.body.dataset.state') == 'ready'
    assert not [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']


def set_value(browser, name: str, value: str) -> None:
    script = """const one = document.getElementById(arguments[0]);
        one.value = arguments[1];
        one.dispatchEvent(new Event('change'))"""
    browser.execute_script(script, name, value)


@pytest.mark.apps
@pytest.mark.parametrize('width', [390, 1280])
def test_words_of_a_table_are_whole(width, browser, four, tmp_path):
    """On a phone as well; a word that is longer than that breaks, and the page is no wider than the screen."""
    names = ['cardboard', 'plastic bottles', 'hand-made', 'cat' * 30]
    result = scores_of(four[0].paths, [0, 1, 2, 3], np.eye(4) * 0.9 + 0.025, names)
    write_photo_page(tmp_path / 'page.html', result, TEXTS, Looks())
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    open_page(browser, tmp_path / 'page.html')
    lines = """return [...document.querySelectorAll('[data-part=classes] td:first-child')].map((cell) => {
        const [text, range] = [cell.firstChild, document.createRange()];
        return [...text.data.matchAll(/[^\\s-]+/g)].map((word) => {
          range.setStart(text, word.index);
          range.setEnd(text, word.index + word[0].length);
          return range.getClientRects().length;
        });
      })"""
    *words, long = browser.execute_script(lines)
    assert words == [[1], [1, 1], [1, 1]] and long[0] > 1
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


@pytest.mark.apps
def test_what_a_person_clicks(browser, four, tmp_path):
    result, looks = four
    commands = [('Look', "mobileone predict 'a photo.jpg'")]
    texts = TEXTS | dict(pairs='2 pairs', commands=commands)
    write_photo_page(tmp_path / 'page.html', result, texts, looks, curves=dict(loss=[[0.5, 1.0], [2.0, 1.0]]))
    open_page(browser, tmp_path / 'page.html')
    assert browser.execute_script(CARDS) == ['1.jpg', '2.jpg']  # the surest mistake first
    set_value(browser, 'which', 'all')
    set_value(browser, 'order', 'lowest score first')
    assert browser.execute_script(CARDS) == ['2.jpg', '3.jpg', '1.jpg', '0.jpg']
    browser.find_element('css selector', '.matrix [data-label="0"][data-guess="1"]').click()
    assert browser.execute_script(CARDS) == ['1.jpg']
    browser.find_element('css selector', '#heat input').click()
    alpha = """const map = document.querySelector('#gallery .map');
        return !map.hidden && [...map.getContext('2d').getImageData(0, 0, 2, 2).data].filter((_, i) => i % 4 === 3)"""
    assert wait(browser, alpha) == [0, 190, 0, 0]
    place = "const {left, width} = document.querySelector('#gallery .map').style; return [left, width].map(parseFloat)"
    left, width = browser.execute_script(place)
    assert (left, width) == pytest.approx((100 / 6, 200 / 3), abs=0.5)  # 40 of 60 pixels, in a picture of 128 x 85
    pairs = browser.execute_script("return [...document.querySelectorAll('.pair')].map((one) => one.dataset.pair)")
    assert pairs == ['to measure on and to train on', 'to measure on and to measure on']
    assert browser.execute_script("return document.querySelectorAll('[data-chart] circle').length") == 2
    copied = """const done = arguments[0];
        navigator.clipboard.writeText = async (text) => done(text);
        document.querySelector('.copy').click()"""
    assert browser.execute_async_script(copied) == commands[0][1]
    saved = """const done = arguments[0];
        URL.createObjectURL = (blob) => (blob.text().then(done), 'data:,');
        document.getElementById('save').click()"""
    text = browser.execute_async_script(saved)
    assert text.splitlines()[1] == f'"{result.paths[0]}","cat","cat","0.9"' and len(text.splitlines()) == 5
    heading = browser.find_element('css selector', '[data-part=classes] th:nth-child(3) button')
    heading.click()
    assert heading.find_element('xpath', '..').get_attribute('aria-sort') == 'descending'
    for width in (1400, 390):
        browser.set_window_size(width, 900)
        assert browser.execute_script('return document.documentElement.scrollWidth <= innerWidth'), width


@pytest.mark.apps
def test_all_right_none_right_and_several_labels(browser, tmp_path):
    paths, names = write_photos(tmp_path / 'photos', 3), ['cat', 'dog']
    said = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
    calibration = dict(reliability=[(0.8, 0.5, 3)], reject=[(0.9, 1 / 3, 1.0), (0.7, 1.0, 0.5)])
    for labels, order in (([0, 1, 0], ['2.jpg', '1.jpg', '0.jpg']), ([1, 0, 1], ['0.jpg', '1.jpg', '2.jpg'])):
        result = scores_of(paths, labels, said, names)
        write_photo_page(tmp_path / 'page.html', result, TEXTS, Looks(), calibration=calibration)
        open_page(browser, tmp_path / 'page.html')
        assert browser.execute_script(CARDS) == order  # the largest error first
        charts = (
            "return [...document.querySelectorAll('[data-chart]')].map((one) => one.querySelectorAll('circle').length)"
        )
        assert browser.execute_script(charts) == [3, 2]
    truth = np.array([[1, 1], [0, 1], [0, 0]], bool)
    several = Scores(paths, truth, np.array([[0.9, 0.6], [0.2, 0.3], [0.1, 0.2]]), ('cat', 'dog'), True)
    write_photo_page(tmp_path / 'page.html', several, TEXTS, Looks())
    open_page(browser, tmp_path / 'page.html')
    cards = CARDS.replace('one.dataset.photo', '[one.dataset.photo, one.dataset.label, one.dataset.guess]')
    assert browser.execute_script(cards) == [['1.jpg', 'dog', 'nothing']]
    set_value(browser, 'which', 'right')
    set_value(browser, 'label', '1')
    assert browser.execute_script(cards) == [['0.jpg', 'cat, dog', 'cat, dog']]


@pytest.mark.apps
def test_hostile_names_run_nothing(browser, tmp_path):
    paths = write_photos(tmp_path / 'photos', len(HOSTILE))
    result = scores_of(paths, range(len(HOSTILE)), np.eye(len(HOSTILE))[::-1], HOSTILE)
    write_photo_page(tmp_path / 'page.html', result, TEXTS | dict(notes=HOSTILE, title=HOSTILE[1]), Looks())
    open_page(browser, tmp_path / 'page.html')
    assert browser.execute_script('return window.hit') is None
    said = browser.execute_script(
        "return [...document.querySelectorAll('#gallery .photo')].map((one) => one.dataset.label)"
    )
    assert sorted(said) == sorted([*HOSTILE[:2], *HOSTILE[3:]])  # all but the one in the middle, which is right


@pytest.mark.apps
def test_five_thousand_photos_are_below_30_mb(browser, shared, tmp_path):
    """Photos of ImageNet, some of them twice."""
    found = sorted(shared('data', 'imagenette_4k').rglob('*.JPEG'))
    paths = [str(found[number % len(found)]) for number in range(5000)]
    scores = np.random.default_rng(0).dirichlet(np.ones(10), 5000)
    looks = Looks(np.full((5000, 7, 7), 100, np.uint8), dict(size=[32, 32], fit='crop', crop=1.0))
    result = scores_of(paths, [number % 10 for number in range(5000)], scores, 'abcdefghij')
    write_photo_page(tmp_path / 'page.html', result, TEXTS, looks)
    size = (tmp_path / 'page.html').stat().st_size
    open_page(browser, tmp_path / 'page.html')
    seconds = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd / 1000")
    print(f'{size / 1e6:.1f} MB, open after {seconds:.2f} s')
    assert size < 30e6 and len(browser.execute_script(CARDS)) == 60


def test_the_folder_of_pages_is_shipped():
    """Package data are by suffix."""
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']
    package = Path(pages.__file__).parent
    shipped = {path for pattern in settings['package-data']['mobileone_ext'] for path in package.parent.glob(pattern)}
    assert {path for path in package.iterdir() if path.suffix not in ('.py', '')} <= shipped
