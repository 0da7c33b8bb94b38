"""Predictions of checkpoints and exported files, and what they are written to."""

import copy
import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmpretrain.datasets.categories import IMAGENET_CATEGORIES
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.data.pixels import Preprocessing, in_batches
from mobileone_ext.deploy import export, fuse, predict
from mobileone_ext.deploy.classifier import open_classifier
from mobileone_ext.deploy.compare_files import compare_files
from mobileone_ext.deploy.described import describe
from mobileone_ext.deploy.formats import FORMATS
from mobileone_ext.metadata import Metadata
from mobileone_ext.models import create_model

S0 = 'configs/mobileone_s0_8xb32.py'
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A checkpoint, its ONNX file that takes pixels, one that takes normalized ones, and a folder of images."""
    folder = tmp_path_factory.mktemp('predict')
    config = cli.load_config(S0)
    torch.manual_seed(0)
    model = fuse.build_model(config, 'fused')
    for module in model.modules():  # or the image is lost on the way to the head
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
            torch.nn.init.zeros_(module.bias)
    with torch.no_grad():
        features = model.backbone(torch.randn(1, 3, 224, 224))[-1].mean((2, 3))
        model.head.fc.weight.normal_().div_(features.norm())
    torch.save(model.state_dict(), folder / 'net.pth')
    for name, inside in (('normalized', False), ('pixels', True)):
        said = describe(Preprocessing(config), None, str(folder / 'net.pth'))
        export.export(model, folder / f'{name}.onnx', normalize=inside, softmax=inside, metadata=said)
    (folder / 'images').mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(rng.integers(0, 256, (240, 300, 3), np.uint8)).save(folder / 'images' / f'{number}.jpg')
    (folder / 'images' / 'broken.jpg').write_bytes(b'\xff\xd8nothing')
    return folder, model


def test_every_kind_of_file_predicts_the_same(files, run_tool, tmp_path):
    folder, model = files
    results = []
    for name in ('net.pth', 'normalized.onnx', 'pixels.onnx'):
        out = tmp_path / f'{name}.json'
        code, text = run_tool('predict', S0, folder / name, folder / 'images', '--out', out)
        assert code == 0, text
        assert 'broken.jpg: not a readable image' in text
        assert '1 of 3 files' in text
        results.append(json.loads(out.read_text()))
    config = cli.load_config(S0)
    ((_, pixels),) = Preprocessing(config).read([folder / 'images' / '0.jpg'], [])
    mean, std = (torch.tensor(config.model.data_preprocessor[key])[:, None, None] for key in ('mean', 'std'))
    with torch.no_grad():
        best = int(model((pixels[None] - mean) / std).argmax())
    assert results[0][0]['predictions'][0]['label'] == IMAGENET_CATEGORIES[best]
    for result in results[1:]:
        for one, other in zip(results[0], result):
            assert one['image'] == other['image']
            for a, b in zip(one['predictions'], other['predictions']):
                assert (a['label'], a['index']) == (b['label'], b['index'])
                assert a['score'] == pytest.approx(b['score'], rel=1e-3)


@pytest.fixture
def in_a_fresh_process(tmp_path):
    """``in_a_fresh_process(network, photos)``: the results of the tool, and which packages were loaded on the way."""

    def run(network, photos):
        code = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as end:
    heavy = 'torch', 'torch._dynamo', 'mmengine', 'mmcv', 'mmpretrain', 'cv2', 'matplotlib', 'onnxruntime'
    print(end.code, [name for name in heavy if name in sys.modules])
"""
        out = tmp_path / f'{network.stem}.json'
        arguments = [str(ROOT / 'tools' / 'predict.py'), str(network), str(photos), '--out', str(out)]
        child = subprocess.run(
            [sys.executable, '-c', f'import sys; sys.argv = {arguments!r}\n{code}'], capture_output=True, text=True
        )
        code, _, loaded = child.stdout.splitlines()[-1].partition(' ')
        assert code == '0', child.stdout + child.stderr
        assert child.stdout.startswith(f'{network}: described by its metadata\n') and '1 of 3 files' in child.stdout
        return json.loads(out.read_text()), loaded

    return run


def test_a_file_that_says_what_it_takes_needs_no_torch(files, in_a_fresh_process):
    folder, _ = files
    results = []
    for network in (folder / 'normalized.onnx', folder / 'pixels.onnx'):
        result, loaded = in_a_fresh_process(network, folder / 'images')
        assert loaded == "['onnxruntime']"
        results.append(result)
    config = cli.load_config(S0)
    expected = predict.predict(folder / 'pixels.onnx', [result['image'] for result in results[0]], config=config)
    for result in results:
        for one, other in zip(result, expected, strict=True):
            for a, b in zip(one['predictions'], other['predictions'], strict=True):
                assert (a['label'], a['index']) == (b['label'], b['index'])
                assert a['score'] == pytest.approx(b['score'], rel=1e-3)


def test_a_fused_checkpoint_that_names_its_network_needs_torch_alone(files, in_a_fresh_process, tmp_path):
    """To the bit what the config's own network computes, in which order the photos' channels stand included."""
    folder, model = files
    config = cli.load_config(S0)
    fuse.save_fused(model, tmp_path / 'fused.pth', config, folder / 'net.pth', 'state_dict')
    result, loaded = in_a_fresh_process(tmp_path / 'fused.pth', folder / 'images')
    assert loaded == "['torch']"
    assert result == predict.predict(tmp_path / 'fused.pth', folder / 'images', skipped=[], config=config)


def swish(model):
    for block in model.backbone.modules():
        if hasattr(block, 'act'):
            block.act = torch.nn.SiLU()


@pytest.mark.parametrize('change', [swish, lambda model: setattr(model, 'neck', torch.nn.BatchNorm2d(1024))])
def test_a_network_with_other_parts_is_not_named(files, change):
    model = copy.deepcopy(files[1])
    assert fuse.plain_name(model) == 'mobileone_s0'
    change(model)
    assert fuse.plain_name(model) is None


def test_a_network_in_memory(files):
    """Whether it trains stays as it is."""
    folder, model = files
    network = create_model('mobileone_s0', folder / 'net.pth')
    found = predict.predict(network, [folder / 'images' / '0.jpg', str(folder / 'images' / '1.jpg')], top=2)
    assert network.training and [len(result['predictions']) for result in found] == [2, 2]
    named = predict.predict(
        network, folder / 'images' / '0.jpg', metadata=Metadata(labels=[f'c{i}' for i in range(1000)])
    )
    expected = predict.predict(folder / 'net.pth', folder / 'images' / '0.jpg', config=S0)
    for best, other, plain in zip(named[0]['predictions'], expected[0]['predictions'], found[0]['predictions']):
        assert best['label'] == f'c{other["index"]}' and plain['label'] == str(other['index'])
        assert best['score'] == pytest.approx(other['score'], rel=1e-5) == plain['score']
    with pytest.raises(ValueError, match='broken.jpg: not a readable image'):
        predict.predict(network, folder / 'images')


def test_a_file_without_names_tells_classes_by_their_numbers(files, tmp_path):
    network = create_model('mobileone_s0', files[0] / 'net.pth')  # which is fused
    export.export(network, tmp_path / 'net.onnx', image_size=224, normalize=True)
    photo = files[0] / 'images' / '0.jpg'
    found, expected = (predict.predict(one, photo)[0]['predictions'][0] for one in (tmp_path / 'net.onnx', network))
    assert found['label'] == str(found['index']) == expected['label']
    assert found['score'] == pytest.approx(expected['score'], rel=1e-3)
    assert compare_files(network, tmp_path / 'net.onnx', photo)['changed_predictions'] == 0


def test_a_path_that_is_not_there_costs_no_other_answer(files, run_tool, tmp_path):
    folder, _ = files
    (tmp_path / 'empty').mkdir()
    photos = (tmp_path / 'nowhere.jpg', folder / 'images' / '0.jpg', tmp_path / 'empty')
    code, text = run_tool('predict', folder / 'pixels.onnx', *photos, '--out', tmp_path / 'out.json')
    assert code == 1 and text.count('%') == 5
    assert 'nowhere.jpg: no such file or folder; ' in text.splitlines()[-1] and 'empty: no images' in text
    assert len(json.loads((tmp_path / 'out.json').read_text())) == 1


@pytest.mark.parametrize('name', [name for name in FORMATS if name not in ('torchscript', 'executorch', 'coreml')])
def test_formats_open_without_torch(name):
    """Those of torch's own makers aside, and CoreML, which imports it itself."""
    code = f"""
import sys
from mobileone_ext.deploy.formats.base import load_format
load_format({name!r}).open_file
print('torch' in sys.modules)
"""
    child = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert child.stdout == 'False\n', child.stderr


def test_networks_see_colors_in_their_order(tmp_path):
    Image.new('RGB', (300, 260), (200, 30, 10)).save(tmp_path / 'red.png')
    config = cli.load_config(S0)
    ((_, pixels),) = Preprocessing(config).read([tmp_path / 'red.png'], [])
    assert pixels.shape == (3, 224, 224)
    assert [channel.unique().tolist() for channel in pixels] == [[200], [30], [10]]
    config.model.data_preprocessor.to_rgb = False
    ((_, pixels),) = Preprocessing(config).read([tmp_path / 'red.png'], [])
    assert pixels[:, 0, 0].tolist() == [10, 30, 200]


def test_csv_and_pictures(files, run_tool, tmp_path):
    folder, _ = files
    out, drawn = tmp_path / 'out.csv', tmp_path / 'drawn'
    arguments = ('--top', 2, '--out', out, '--draw', drawn)
    code, text = run_tool('predict', S0, folder / 'net.pth', folder / 'images' / '1.jpg', *arguments)
    assert code == 0, text
    rows = list(csv.DictReader(out.open()))
    assert [row['rank'] for row in rows] == ['1', '2']
    assert float(rows[0]['score']) > float(rows[1]['score'])
    with Image.open(drawn / '0000_1.png') as picture:
        assert picture.width == 320
        assert picture.height > round(240 * 320 / 300)


def test_where_it_looked_is_drawn_and_told(files, run_tool, tmp_path):
    """By the mean of the map, which with the bias is the logit; and it lies over the part that was cropped."""
    folder, model = files
    classify = open_classifier(folder / 'net.pth', S0, explain=True)
    [first, _] = predict.predict(classify, [folder / 'images'], skipped=[])
    pixels = np.stack([pixels for _, pixels in classify.preprocessing.read([folder / 'images' / '0.jpg'], [])])
    classify(pixels)
    best = first['predictions'][0]['index']
    with torch.no_grad():
        maps = model.double().backbone(classify.preprocessing.normalize(torch.as_tensor(pixels)).double())[-1][0]
        own = (model.head.fc.weight[best][:, None, None] * maps).sum(0)
    model.float()
    expected = (255 * own / own.max()).clamp_min(0).round().numpy()
    np.testing.assert_allclose(first['looked'], expected, atol=1)
    np.testing.assert_array_equal(classify.looked(np.array([best])), first['looked'][None])
    arguments = ('--draw', tmp_path / 'plain', '--explain', tmp_path / 'seen', '--top', 1)
    code, text = run_tool('predict', S0, folder / 'net.pth', folder / 'images' / '0.jpg', *arguments)
    assert code == 0, text
    plain, seen = (np.array(Image.open(tmp_path / name / '0000_0.png')).astype(int) for name in ('plain', 'seen'))
    changed = np.flatnonzero((plain != seen).any((0, 2)))
    left = 320 * (1 - 240 * 224 / 256 / 300) / 2  # of the middle of a photo of 300 x 240, 320 pixels wide
    assert left - 4 <= changed.min() and changed.max() <= 320 - left + 4 and len(changed) > 100
    code, text = run_tool('predict', folder / 'pixels.onnx', folder / 'images', '--explain', tmp_path / 'x')
    assert code == 1 and 'a checkpoint tells where it looks' in text.splitlines()[-1]


def test_mistakes_are_one_line(files, run_tool, tmp_path):
    folder, _ = files
    (tmp_path / 'empty').mkdir()
    cases = [
        ((S0, folder / 'net.pth', tmp_path / 'empty'), 'no images in this folder'),
        ((S0, folder / 'net.pth', tmp_path / 'nowhere.jpg'), 'nowhere.jpg: no such file'),
        ((S0, folder / 'net.pth', folder / 'images' / 'broken.jpg'), 'none of the files is a readable image'),
        ((S0, folder / 'net.pth', folder / 'images', '--out', 'x.txt'), '*.json or *.csv'),
        ((S0, folder / 'pixels.onnx', folder / 'images', '--cfg-options', 'model.head.num_classes=10'), '1000 classes'),
        ((S0, tmp_path / 'none.onnx', folder / 'images'), 'none.onnx: no such file'),
    ]
    for arguments, message in cases:
        code, text = run_tool('predict', *arguments)
        assert code == 1, arguments
        assert message in text.splitlines()[-1], arguments


def test_one_image_is_probabilities(files):
    folder, model = files
    config = cli.load_config(S0)
    pixels = torch.rand(1, 3, 224, 224) * 255
    assert open_classifier(folder / 'net.pth', config)(pixels.numpy()).sum() == pytest.approx(1)


def test_odd_photos_cost_no_other_result(files, run_tool, tmp_path):
    """Named and skipped, or predicted: names that are no text or too long, a pipe, sizes that fill the memory."""
    folder, odd = files[0], tmp_path / 'odd'
    odd.mkdir()
    photo = (folder / 'images' / '0.jpg').read_bytes()
    for name in (b'a.jpg', b'caf\xe9.jpg', b'esc\x1b[31m\n.jpg', b'n' * 236 + b'.jpg', 'ü'.encode() * 118 + b'.jpg'):
        with open(os.fsencode(odd) + b'/' + name, 'wb') as file:
            file.write(photo)
    os.mkfifo(odd / 'pipe.jpg')
    start = photo.index(b'\xff\xc0') + 5
    for name, (width, height) in dict(huge=(16000, 16000), long=(1, 5000), cut=(300, 240)).items():
        data = photo[:start] + height.to_bytes(2, 'big') + width.to_bytes(2, 'big') + photo[start + 4 :]
        (odd / f'{name}.jpg').write_bytes(data[: len(data) // 2] if name == 'cut' else data)
    Image.new('I;16', (300, 240), 40000).save(odd / 'sixteen.png')
    Image.new('F', (300, 240)).save(odd / 'float.tif')
    for suffix in ('json', 'csv'):
        out = tmp_path / f'out.{suffix}'
        arguments = ('--out', out, '--draw', tmp_path / suffix, '--top', 1)
        code, text = run_tool('predict', S0, folder / 'net.pth', odd, odd / 'pipe.jpg', *arguments)
        assert code == 0, text
        for name in ('huge', 'long', 'cut', 'float'):
            assert f'{name}.jpg: not a readable image' in text or f'{name}.tif: not a readable image' in text
        assert '\x1b' not in text and r'esc\x1b[31m\n.jpg' in text and r'caf\xe9.jpg' in text
        assert 'left out: 2 pipes' in text and '4 of 10 files' in text
        assert len(list((tmp_path / suffix).glob('*.png'))) == 6
    results = json.loads((tmp_path / 'out.json').read_text())
    rows = list(csv.DictReader((tmp_path / 'out.csv').open(newline='')))
    assert len(results) == len(rows) == 6
    assert [result['image'] for result in results] == [row['image'] for row in rows]


def test_sizes_of_images_may_differ(tmp_path):
    """A pipeline without a crop."""
    for number, size in enumerate([(30, 40), (40, 30), (30, 40), (30, 40)]):
        Image.new('RGB', size).save(tmp_path / f'{number}.png')
    config = cli.load_config(S0)
    config.test_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    found = [images.shape for _, images in in_batches(Preprocessing(config).read(sorted(tmp_path.iterdir()), []), 16)]
    assert found == [(1, 3, 40, 30), (1, 3, 30, 40), (2, 3, 40, 30)]
