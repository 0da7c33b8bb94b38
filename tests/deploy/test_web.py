"""The page for browsers: what it says of a photo is what predict.py says, and names are text whatever they hold.

The numbers' truths are Pillow, onnxruntime and tools/predict.py. The tests in Chromium need selenium, chromium and
chromedriver, the page's runtime from npm or the cache, and belong to ``make test-apps``.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from browser import HOSTILE, open_browser, wait
from conftest import ROOT, only_line
from PIL import Image
from server import Server
from torch import nn

from mobileone_ext.data.images import find_images, spread
from mobileone_ext.deploy import web
from mobileone_ext.deploy.web import runtime
from mobileone_ext.metadata import PAD, Metadata

S0 = 'configs/mobileone_s0_8xb32.py'
RAMP = [f'class {index}' for index in range(5)]


class Toy(nn.Module):
    """Logits of a linear layer on the mean of 4 x 4 cells; with ``maps`` the class's part of each cell as well."""

    def __init__(self, classes: int, channels: int = 3, maps: bool = False):
        super().__init__()
        self.fc, self.pool, self.maps = nn.Conv2d(channels, classes, 1), nn.AdaptiveAvgPool2d(4), maps
        nn.init.normal_(self.fc.weight, std=3)

    def forward(self, image):
        maps = self.fc(self.pool(image))
        return (maps.mean((2, 3)), maps) if self.maps else maps.mean((2, 3))


TOLD = dict(
    size=(64, 64),
    fit='crop',
    crop=0.875,
    interpolation='bilinear',
    backend='pillow',
    channels='RGB',
    mean=[120.0, 110.0, 100.0],
    std=[60.0, 50.0, 40.0],
    input='normalized pixels',
    output='logits',
    precision='float32',
)


def write_toy(path: Path, labels=RAMP, maps: bool = False, **told) -> Path:
    """An ONNX file of :class:`Toy` that says ``TOLD`` of itself, but for what ``told`` says."""
    metadata = Metadata(labels=labels, **TOLD | told)
    channels = 1 if metadata.channels == 'gray' else 3
    toy = Toy(len(labels), channels, maps).eval()
    if metadata.takes_pixels:  # of larger numbers
        toy.fc.weight.data /= 50
    names = ['logits', 'maps'][: 1 + maps]
    image = torch.zeros(1, channels, *metadata.size)
    torch.onnx.export(toy, (image,), str(path), input_names=['pixels'], output_names=names, dynamo=False)
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, metadata.write())
    onnx.save(proto, path)
    return path


def expected(run_tool, tmp_path: Path, network: Path, photos: list[Path], *config) -> dict[str, dict[str, float]]:
    """What tools/predict.py says: name of a photo -> its scores by label, first the best."""
    out = tmp_path / 'expected.json'
    code, text = run_tool('predict', *config, network, *photos, '--out', out)
    assert code == 0, text
    results = json.loads(out.read_text(encoding='utf-8'))
    return {Path(one['image']).name: {best['label']: best['score'] for best in one['predictions']} for one in results}


# ---- without a browser ----


@pytest.fixture
def no_archive(monkeypatch, tmp_path):
    """A cache without the runtime, and no npm."""
    monkeypatch.setattr(runtime, 'cache_folder', lambda: tmp_path / 'cache')
    monkeypatch.setenv('PATH', str(tmp_path))
    return tmp_path / 'cache' / 'onnxruntime-web-1.30.0.tgz'


@pytest.fixture
def npm(no_archive, monkeypatch, tmp_path):
    """``npm(script)`` puts a program of that name, in the language of the shell, in the place of npm."""
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')

    def write(script: str) -> None:
        (tmp_path / 'npm').write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path / 'npm').chmod(0o755)

    return write


@pytest.fixture
def any_runtime(monkeypatch):
    monkeypatch.setattr(runtime, 'load', lambda: {name: name.encode() for name in runtime.FILES})


def test_without_npm_a_line_says_which_file_to_put_where(no_archive, tmp_path, run_tool):
    toy = write_toy(tmp_path / 'toy.onnx')
    code, text = run_tool('export', S0, toy, tmp_path / 'page', '--format', 'web')
    line = only_line(text)
    assert code == 1 and 'npm is not installed' in line
    assert f'put the file that "npm pack onnxruntime-web@1.30.0" writes at {no_archive}' in line
    assert not (tmp_path / 'page').exists()


@pytest.mark.parametrize(
    ('script', 'message'),
    [('echo "npm error ENOTFOUND" >&2; exit 1', 'npm error ENOTFOUND'), ('exit 0', 'No such file')],
)
def test_without_a_network_npm_says_why(script, message, npm, no_archive):
    npm(script)
    with pytest.raises(OSError, match=re.escape(message)) as error:
        runtime.load()
    assert str(no_archive) in str(error.value) and not list(no_archive.parent.glob('*.tgz'))


def test_a_damaged_archive_is_refused(npm, no_archive):
    npm('echo other > onnxruntime-web-1.30.0.tgz')
    with pytest.raises(ValueError, match='as published'):
        runtime.load()
    with pytest.raises(ValueError, match='remove it to download it again'):  # one that lies in the cache as well
        runtime.load()


@pytest.mark.parametrize('single_file', [False, True])
def test_no_label_ends_the_page_s_data(single_file, any_runtime, tmp_path):
    web.page_of(write_toy(tmp_path / 'toy.onnx', HOSTILE), tmp_path / 'page', single_file)
    page = (tmp_path / 'page' / 'index.html').read_text(encoding='utf-8')
    data = re.search(r'<script id="info" type="application/json">(.*?)</script>', page, re.S)[1]
    assert json.loads(data)['labels'] == HOSTILE and '<' not in data
    assert ('hit = 1</script>' in page) is False


def test_what_a_page_is_made_of(any_runtime, tmp_path):
    toy = write_toy(tmp_path / 'toy.onnx')
    for _ in range(2):  # again into its own folder
        web.page_of(toy, tmp_path / 'page', False)
    names = {'index.html', 'page.css', 'pixels.js', 'page.js', 'offline.js', 'network.onnx', *runtime.FILES}
    assert {path.name for path in (tmp_path / 'page').iterdir()} == names
    assert (tmp_path / 'page' / 'network.onnx').read_bytes() == toy.read_bytes()
    web.page_of(toy, tmp_path / 'page.html', True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['page', 'page.html', 'toy.onnx']
    used = set(re.findall(r'(?:src|href)=\"([\w.]+)\"', (tmp_path / 'page' / 'index.html').read_text()))
    assert used == {'page.css', 'pixels.js', 'page.js'}


@pytest.mark.parametrize(
    ('told', 'out', 'message'),
    [
        (dict(mean=None), 'page', 'does not say which images it takes'),
        (dict(interpolation='lanczos'), 'page', 'a page resizes bilinear or bicubic'),
        ({}, 'page.html', '--single-file makes one HTML file'),
        ({}, 'full', 'holds other things than a page'),
        ({}, 'nowhere/page', 'no such folder'),
    ],
)
def test_a_mistake_is_a_line_and_leaves_nothing(told, out, message, any_runtime, tmp_path, run_tool):
    toy = write_toy(tmp_path / 'toy.onnx', **told)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'notes.txt').touch()
    code, text = run_tool('export', S0, toy, tmp_path / out, '--format', 'web')
    assert code == 1 and message in only_line(text)
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['full', 'notes.txt', 'toy.onnx']


def test_what_it_reads_stays(any_runtime, tmp_path, run_tool):
    web.page_of(write_toy(tmp_path / 'toy.onnx'), tmp_path / 'page', False)
    code, text = run_tool('export', S0, tmp_path / 'page' / 'network.onnx', tmp_path / 'page', '--format', 'web')
    assert code == 1 and 'is what is read' in only_line(text)
    code, text = run_tool('export', S0, tmp_path / 'toy.onnx', tmp_path / 'a.onnx', '--single-file')
    assert code == 1 and '--single-file' in only_line(text)
    code, text = run_tool('export', S0, tmp_path / 'toy.tflite', tmp_path / 'page', '--format', 'web')
    assert code == 1 and 'a browser runs' in only_line(text)


def in_node(expression: str, data: bytes = b'') -> bytes:
    """What ``expression`` writes in node, after pixels.js; ``data`` is its input."""
    if shutil.which('node') is None:
        pytest.skip('node is not installed')
    script = Path(web.__file__).with_name('pixels.js').read_text(encoding='utf-8') + expression
    done = subprocess.run(['node', '-e', script], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def resized(noise: np.ndarray, width: int, height: int, **how) -> np.ndarray:
    """``noise`` (H, W, 3) as the page resizes it."""
    found = in_node(
        f"""const image = fromPixels(require('fs').readFileSync(0), ...{list(noise.shape[1::-1])});
        process.stdout.write(resize(image, {width}, {height}, {json.dumps(how)}).rows(0, {height}));""",
        np.dstack([noise, np.zeros(noise.shape[:2], np.uint8)]).tobytes(),
    )
    return np.frombuffer(found, np.uint8).reshape(height, width, 4)[..., :3]


@pytest.mark.parametrize(('interpolation', 'number'), [('bilinear', 2), ('bicubic', 3)])
@pytest.mark.parametrize(
    ('source', 'target'), [((37, 53), (16, 23)), ((20, 20), (64, 48)), ((300, 7), (224, 224)), ((50, 600), (9, 90))]
)
def test_resizing_is_pillow_s_to_the_bit(source, target, interpolation, number):
    noise = np.random.default_rng(0).choice([0, 7, 128, 255], (*source[::-1], 3)).astype(np.uint8)
    found = resized(noise, *target, interpolation=interpolation, backend='pillow')
    np.testing.assert_array_equal(found, np.array(Image.fromarray(noise).resize(target, number)))


def test_bilinear_is_opencv_s_to_a_gray_level():
    noise = np.random.default_rng(0).integers(0, 256, (75, 100, 3), np.uint8)
    found = resized(noise, 41, 56, interpolation='bilinear', backend='cv2')
    np.testing.assert_allclose(found.astype(int), cv2.resize(noise, (41, 56)), atol=1)


HOW = dict(backend='pillow', interpolation='bilinear')


@pytest.mark.parametrize('size', [(341, 256), (257, 256), (300, 511)])
@pytest.mark.parametrize(
    'steps',
    [
        [dict(type='ResizeEdge', scale=73, **HOW), dict(type='CenterCrop', crop_size=64)],
        [dict(type='ResizeEdge', scale=74, **HOW), dict(type='CenterCrop', crop_size=[63, 48])],
        [dict(type='Resize', scale=[48, 63], backend='pillow', interpolation='bicubic')],
        [dict(type='mobileone_ext.ResizePad', scale=[48, 63], **HOW)],
    ],
)
def test_steps_are_those_of_the_pipeline(steps, size):
    from mmengine.dataset import Compose
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    filled = [dict(step, fill=PAD) for step in steps]
    found = in_node(
        f"""const pixels = require('fs').readFileSync(0);
        const {{image}} = prepare(fromPixels(pixels, ...{list(size)}), {json.dumps(filled)});
        process.stdout.write(Buffer.from(planes(image, {{channels: 'BGR', input: 'pixels'}}).buffer));""",
        np.dstack([noise, np.zeros(noise.shape[:2], np.uint8)]).tobytes(),
    )
    tuples = [{key: tuple(value) if isinstance(value, list) else value for key, value in one.items()} for one in steps]
    image = Compose(tuples)(dict(img=noise[..., ::-1].copy()))['img']
    np.testing.assert_array_equal(
        np.frombuffer(found, np.float32).reshape(3, *image.shape[:2]).transpose(1, 2, 0), image
    )


def test_a_padded_photo_is_seen_beyond_its_edges():
    """So the heat map of 64 x 64 pixels lies over a photo of 64 x 32, a quarter of it above and below."""
    step = json.dumps(dict(type='mobileone_ext.ResizePad', scale=64, fill=PAD, **HOW))
    seen = f'prepare(fromPixels(Buffer.alloc(4 * 100 * 50), 100, 50), [{step}]).seen'
    assert json.loads(in_node(f'process.stdout.write(JSON.stringify({seen}))')) == dict(
        left=0, top=-0.5, width=1, height=2
    )


# ---- in Chromium ----


@pytest.fixture(scope='module')
def browser():
    """Chromium with a camera that is none."""
    chromium = open_browser('--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream')
    yield chromium
    chromium.quit()


@pytest.fixture(scope='module')
def has_runtime():
    try:
        runtime.load()
    except OSError as error:
        pytest.skip(str(error))


TYPES = {'.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript'}


@pytest.fixture
def host():
    """``host(folder)`` is the address of a host with its files; ``host.server`` is that host."""
    with Server() as server:

        def serve(folder: Path) -> str:
            for path in folder.iterdir():
                kind = TYPES.get(path.suffix, 'application/octet-stream')
                server.add(f'/{path.name}', path.read_bytes(), Content_Type=kind)
            server.answers['/'] = server.answers['/index.html']
            return f'{server.url}/'

        serve.server = server
        yield serve


def open_page(browser, address: str) -> None:
    browser.get(address)
    assert wait(browser, "const {state} = document.body.dataset; return state !== 'loading' && state") == 'ready'


# The results that stand there, each with the scores of its rows by label.
RESULTS = """const cards = [...document.querySelectorAll('[data-photo]')];
    return document.body.dataset.state === 'ready' && cards.map((card) => ({
    ...card.dataset, title: card.querySelector('h2').textContent,
    scores: Object.fromEntries([...card.querySelectorAll('li')].map((row) =>
        [row.firstChild.textContent, +row.style.getPropertyValue('--share')]))}))"""


def classify(browser, photos: list[Path]) -> dict[str, dict]:
    """Choose ``photos``; the results by photo."""
    browser.find_element('id', 'photos').send_keys('\n'.join(map(str, photos)))
    return {result['photo']: result for result in wait(browser, RESULTS, 400)}


def agreement(found: dict, truth: dict) -> tuple[int, np.ndarray]:
    """Photos with the same best class, and the differences of probabilities where both have a class among the best."""
    assert found.keys() == truth.keys()
    same = sum(found[name]['label'] == next(iter(scores)) for name, scores in truth.items())
    pairs = [
        (found[name]['scores'][label], score)
        for name, scores in truth.items()
        for label, score in scores.items()
        if label in found[name]['scores']
    ]
    return same, np.abs(np.subtract(*np.transpose(pairs)))


@pytest.fixture(scope='module')
def photos_100():
    root = Path(os.environ.get('MOBILEONE_TEST_DATA', ROOT.parent / 'shared'), 'data')
    if not root.is_dir():
        pytest.skip(f'{root} is not there')
    folders = [folder for folder in (root / 'ilsvrc_val_1300', root / 'imagenette_4k') if folder.is_dir()]
    return [photo for folder in folders for photo in spread(find_images([folder]), 100 // len(folders))]


@pytest.mark.apps
@pytest.mark.parametrize(('form', 'at_least', 'within'), [('float32', 99, 1e-2), ('int8', 99, 3e-2)])
def test_it_says_what_predict_says(
    form, at_least, within, browser, has_runtime, host, photos_100, shared, run_tool, tmp_path
):
    weights = shared('weights', 'apple_mobileone_s0_fused.pth')
    if form == 'int8':
        calibration = shared('data', 'imagenette_4k')
        options = '--calib', calibration, '--num-calib', 32
        code, text = run_tool('quantize', S0, weights, tmp_path / 'int8.onnx', *options)
        assert code == 0, text
        weights = tmp_path / 'int8.onnx'
    code, text = run_tool('export', S0, weights, tmp_path / 'page', '--format', 'web')
    assert code == 0, text
    truth = expected(run_tool, tmp_path, weights, photos_100, S0)
    open_page(browser, host(tmp_path / 'page'))
    found = classify(browser, photos_100)
    same, differences = agreement(found, truth)
    means = f'{differences.mean():.1e} in the mean, {differences.max():.1e} at most'
    print(f'{form}: {same} of {len(truth)} best classes, {len(differences)} probabilities differ by {means}')
    milliseconds = sorted(float(result['ms']) for result in found.values())
    print(f'{milliseconds[len(milliseconds) // 2]:.0f} ms in the network, median')
    assert same >= at_least / 100 * len(truth) and differences.mean() <= within


def write_pictures(folder: Path) -> list[Path]:
    """Without loss, with alpha, with an EXIF turn, with a profile of colors, and tiny ones."""
    from PIL import ImageCms

    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((200, 150), Image.Resampling.BICUBIC)
    smooth.save(folder / 'plain.png')
    smooth.resize((1, 1)).save(folder / 'pixel.png')
    smooth.resize((3000, 2000)).save(folder / 'large.png')
    clear = smooth.copy()
    clear.putalpha(Image.fromarray(rng.integers(0, 256, (6, 8), np.uint8)).resize(smooth.size))
    clear.save(folder / 'clear.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth.save(folder / 'turned.jpg', quality=95, exif=exif)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('LAB'))
    smooth.save(folder / 'profile.png', icc_profile=profile.tobytes())
    smooth.convert('L').save(folder / 'gray.png')
    return sorted(folder.iterdir())


@pytest.mark.apps
@pytest.mark.parametrize('single_file', [True, False])
@pytest.mark.parametrize(
    'told',
    [
        {},
        dict(size=[48, 52], interpolation='bicubic', channels='BGR', input='pixels 0..255', mean=[0.0], std=[300.0]),
        dict(channels='gray', mean=[110.0], std=[50.0], fit='squash', labels_of_an_image='several'),
    ],
    ids=['usual', 'other', 'gray'],
)
def test_photos_of_many_kinds(told, single_file, browser, has_runtime, host, run_tool, tmp_path):
    """Probabilities are predict.py's, to five digits where every browser decodes the same pixels."""
    (tmp_path / 'photos').mkdir()
    photos, toy = write_pictures(tmp_path / 'photos'), write_toy(tmp_path / 'toy.onnx', **told)
    web.page_of(toy, tmp_path / 'page', single_file)
    truth = expected(run_tool, tmp_path, toy, photos)
    page = tmp_path / 'page'
    open_page(browser, (page / 'index.html').as_uri() if single_file else host(page))
    found = classify(browser, photos)
    assert found.keys() == truth.keys()
    for name, scores in truth.items():
        within = 2e-2 if name == 'clear.png' else 1e-5 if name.endswith('.png') else 5e-3  # blended, exact, decoded
        difference = max(abs(found[name]['scores'][label] - score) for label, score in scores.items())
        print(name, difference)
        assert difference < within, name
        assert found[name]['label'] == found[name]['title'] == next(iter(scores))
        assert float(found[name]['score']) == pytest.approx(max(scores.values()), abs=within)


@pytest.mark.apps
@pytest.mark.parametrize('single_file', [True, False])
def test_labels_are_text(single_file, browser, has_runtime, host, tmp_path):
    Image.new('RGB', (80, 70), 'teal').save(tmp_path / 'photo.png')
    web.page_of(write_toy(tmp_path / 'toy.onnx', HOSTILE), tmp_path / 'page', single_file)
    page = tmp_path / 'page'
    open_page(browser, (page / 'index.html').as_uri() if single_file else host(page))
    [result] = classify(browser, [tmp_path / 'photo.png']).values()
    assert set(result['scores']) == set(HOSTILE) and result['label'] == result['title']
    assert browser.execute_script('return window.hit') is None
    refused = """const tag = document.createElement('script');
        tag.textContent = 'window.hit = 1';
        document.body.append(tag);
        return fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => [error.message, window.hit])"""
    message, hit = browser.execute_script(refused)
    assert hit is None and 'Failed to fetch' in message
    log = ' '.join(entry['message'] for entry in browser.get_log('browser'))
    assert 'Content Security Policy' in log  # nothing is sent, though something asked for it


@pytest.mark.apps
def test_a_photo_that_is_none_and_ten_thousand_classes(browser, has_runtime, host, run_tool, tmp_path):
    (tmp_path / 'broken <b>.jpg').write_bytes(b'\xff\xd8 no photo')
    Image.effect_noise((90, 70), 90).convert('RGB').save(tmp_path / 'photo.png')
    toy = write_toy(tmp_path / 'toy.onnx', [f'class {index}' for index in range(10_000)], size=(160, 160))
    web.page_of(toy, tmp_path / 'page', False)
    open_page(browser, host(tmp_path / 'page'))
    photos = [tmp_path / 'broken <b>.jpg', tmp_path / 'photo.png']
    found = classify(browser, photos)
    truth = expected(run_tool, tmp_path, toy, photos[1:])
    assert list(found) == ['photo.png'] and found['photo.png']['scores'] == pytest.approx(truth['photo.png'], abs=1e-6)
    said = browser.execute_script("return document.querySelector('[data-unreadable]').innerText")
    assert 'Not a photo that this browser can read' in said and 'broken <b>.jpg' in said
    assert '10,000 classes' in browser.find_element('tag name', 'header').text


@pytest.mark.apps
def test_temperature_threshold_and_where_it_looked(browser, has_runtime, host, tmp_path):
    image = Image.new('RGB', (200, 100), 'white')
    image.paste('navy', (0, 0, 100, 100))
    image.save(tmp_path / 'photo.png')
    toy = write_toy(tmp_path / 'toy.onnx', maps=True, temperature=20.0, threshold=0.9, input='pixels 0..255')
    web.page_of(toy, tmp_path / 'page', False)
    open_page(browser, host(tmp_path / 'page'))
    [result] = classify(browser, [tmp_path / 'photo.png']).values()
    half = np.full((1, 3, 64, 64), 255, np.float32)
    half[..., :32] = np.array([0, 0, 128], np.float32)[:, None, None]
    logits, maps = onnxruntime.InferenceSession(toy).run(None, {'pixels': half})
    truth = torch.from_numpy(logits / 20)[0].softmax(0)
    best = int(truth.argmax())
    assert result['label'] == result['title'] == 'unknown' and truth.max() < 0.9
    assert result['scores'][RAMP[best]] == pytest.approx(truth.max().item(), abs=2e-3)
    alpha = browser.execute_script("""const canvas = document.querySelector('.heat');
        const {data} = canvas.getContext('2d').getImageData(0, 0, 4, 4);
        return [...data].filter((_, i) => i % 4 === 3)""")
    wanted = 190 * np.clip(maps[0, best] / maps[0, best].max(), 0, None)
    np.testing.assert_allclose(np.reshape(alpha, (4, 4)), wanted, atol=3)
    place = browser.execute_script(
        "const {left, top, width, height} = document.querySelector('.heat').style;"
        'return [left, top, width, height].map(parseFloat)'
    )  # 146 x 73, of which 64 x 64 in the middle
    np.testing.assert_allclose(place, [100 * 41 / 146, 100 * 4 / 73, 100 * 64 / 146, 100 * 64 / 73], atol=1e-3)


@pytest.mark.apps
def test_the_camera(browser, has_runtime, host, tmp_path):
    web.page_of(write_toy(tmp_path / 'toy.onnx'), tmp_path / 'page', False)
    open_page(browser, host(tmp_path / 'page'))
    browser.find_element('id', 'camera').click()
    first = wait(browser, """return document.querySelector("[data-photo='camera']")?.dataset.score""")
    assert 0 < float(first) <= 1
    wait(browser, f"""return document.querySelector("[data-photo='camera']").dataset.score !== '{first}'""")
    browser.find_element('id', 'camera').click()
    wait(browser, """return !document.querySelector("[data-photo='camera']")""")


@pytest.mark.apps
def test_no_camera(has_runtime, host, tmp_path):
    web.page_of(write_toy(tmp_path / 'toy.onnx'), tmp_path / 'page', False)
    with open_browser('--use-fake-ui-for-media-stream') as browser:
        open_page(browser, host(tmp_path / 'page'))
        browser.find_element('id', 'camera').click()
        assert wait(browser, "return document.getElementById('status').textContent") == 'No camera was found.'


@pytest.mark.apps
def test_once_seen_it_opens_without_its_host(browser, has_runtime, host, tmp_path):
    Image.new('RGB', (80, 70), 'teal').save(tmp_path / 'photo.png')
    web.page_of(write_toy(tmp_path / 'toy.onnx'), tmp_path / 'page', False)
    address = host(tmp_path / 'page')
    for _ in range(2):  # the worker that keeps the files begins after the first
        open_page(browser, address)
        wait(browser, 'return navigator.serviceWorker.ready.then(() => navigator.serviceWorker.controller !== null)')
    host.server.answers.clear()
    host.server.shutdown()
    host.server.server_close()
    open_page(browser, address)
    assert classify(browser, [tmp_path / 'photo.png'])


@pytest.mark.apps
def test_a_folder_that_is_opened_as_a_file_says_so(browser, has_runtime, tmp_path):
    web.page_of(write_toy(tmp_path / 'toy.onnx'), tmp_path / 'page', False)
    browser.get((tmp_path / 'page' / 'index.html').as_uri())
    wait(browser, "return document.body.dataset.state === 'failed'")
    assert '--single-file' in browser.find_element('id', 'status').text
