"""Two networks on the same photos: literal numbers, classes by name, and what cannot be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, data_options, only_line
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import export, fuse
from mobileone_ext.deploy.classifier import Classifier
from mobileone_ext.deploy.compare_files import compare_files
from mobileone_ext.deploy.compare_files import describe as compare_lines
from mobileone_ext.deploy.described import describe
from mobileone_ext.deploy.predict import predict
from mobileone_ext.metadata import Metadata

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Twenty gray ones; the number of each is its gray level, by tens."""
    folder = tmp_path_factory.mktemp('photos')
    for number in range(20):
        Image.new('RGB', (40, 40), (10 * number,) * 3).save(folder / f'{number:02d}.png')
    (folder / 'broken.png').write_text('nothing')
    return folder


@pytest.fixture(scope='module')
def config():
    return cli.load_config(TINY)


def number_of(pixels):
    return (pixels[:, 0, 0, 0] / 10).round().astype(int)


def compared(config, photos, outputs, classes=(None, None), multi_label=False, kinds=(True, True)):
    classifiers, preprocessing = [], Preprocessing(config)
    for path, table, names, logits in zip(('a.pth', 'b.onnx'), outputs, classes, kinds):
        classifier = Classifier(
            path, preprocessing, lambda pixels, table=table: table[number_of(pixels)].numpy(), names
        )
        classifier.gives_logits, classifier.multi_label = logits, multi_label
        classifiers.append(classifier)
    skipped = []
    report = compare_files(*classifiers, sorted(photos.iterdir()), skipped)
    assert len(skipped) == 1 and 'broken.png' in skipped[0]
    return report


def random_outputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(20, 3, generator=generator), torch.randn(20, 3, generator=generator)]


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


@pytest.mark.parametrize('kinds', [(True, True), (True, False), (False, True)])
def test_numbers_are_literal(config, photos, kinds):
    outputs = random_outputs()
    report = compared(config, photos, outputs, kinds=kinds)
    one, other = (table.double().numpy() for table in outputs)
    compare_probabilities = kinds != (True, True)
    apart = np.abs(softmax(one) - softmax(other) if compare_probabilities else one - other)
    assert report['outputs'] == ('probabilities' if compare_probabilities else 'logits')
    assert (report['num_images'], report['first'], report['second']) == (20, 'a.pth', 'b.onnx')
    assert report['changed_predictions'] == (one.argmax(1) != other.argmax(1)).sum() > 5
    assert report['max_abs_diff'] == pytest.approx(apart.max(), rel=1e-5)
    assert report['mean_abs_diff'] == pytest.approx(apart.mean(), rel=1e-5)
    changed = one.argmax(1) != other.argmax(1)
    worst = np.lexsort((-apart.max(1), ~changed))[:5]
    assert all(entry['changed'] for entry in report['worst'])
    assert [entry['image'] for entry in report['worst']] == [str(photos / f'{number:02d}.png') for number in worst]
    entry, number = report['worst'][0], worst[0]
    assert entry['difference'] == pytest.approx(apart[number].max(), rel=1e-5)
    assert entry['first'] == dict(
        label=str(one[number].argmax()), score=pytest.approx(softmax(one)[number].max(), rel=1e-5)
    )
    assert entry['second']['label'] == str(other[number].argmax())


def test_scores_are_those_of_a_prediction(config, photos):
    table = random_outputs()[0]
    classifiers = [
        Classifier(path, Preprocessing(config), lambda pixels: table[number_of(pixels)].numpy(), None, metadata=said)
        for path, said in (('a.pth', Metadata()), ('b.pth', Metadata(temperature=2.0)))
    ]
    classifiers[1].outputs = lambda pixels: table[number_of(pixels)].numpy() + 0.01 * np.arange(3)
    report = compare_files(*classifiers, sorted(photos.iterdir()), [])
    assert report['outputs'] == 'logits' and report['max_abs_diff'] == pytest.approx(0.02, abs=1e-6)
    entry = report['worst'][0]
    row = table[int(entry['image'][-6:-4])].double().numpy()
    assert entry['first']['score'] == pytest.approx(softmax(row[None]).max(), abs=1e-6)
    assert entry['second']['score'] == pytest.approx(softmax((row + 0.01 * np.arange(3))[None] / 2).max(), abs=1e-6)
    assert predict(classifiers[1], photos / Path(entry['image']).name)[0]['predictions'][0]['score'] == pytest.approx(
        entry['second']['score'], abs=1e-6
    )


def test_classes_are_compared_by_name(config, photos):
    """In another order nothing changes."""
    table = random_outputs()[0]
    report = compared(config, photos, [table, table[:, [2, 0, 1]]], [('a', '猫', 'c'), ('c', 'a', '猫')])
    assert (report['changed_predictions'], report['max_abs_diff']) == (0, 0)
    assert {entry[side]['label'] for entry in report['worst'] for side in ('first', 'second')} <= {'a', '猫', 'c'}
    report = compared(config, photos, [table, table], [('a', '猫', 'c'), None])
    assert report['changed_predictions'] == 0


def test_several_labels_change_one_by_one(config, photos):
    table = random_outputs()[0].abs()
    other = table.clone()
    other[3, 1] *= -1
    other[5, 0] += 9  # differs more, and changes nothing
    report = compared(config, photos, [table, other], multi_label=True)
    assert report['changed_predictions'] == 1
    assert [(entry['image'][-6:-4], entry['changed']) for entry in report['worst'][:2]] == [('03', True), ('05', False)]
    lines = compare_lines(report).splitlines()
    assert [line.endswith(' (changed)') for line in lines] == [False, True, False, False, False, False]


def test_other_classes_are_one_line(config, photos):
    table = random_outputs()[0]
    with pytest.raises(ValueError, match="^b.onnx: 'd' not among the classes of a.pth"):
        compared(config, photos, [table, table], [('a', 'b', 'c'), ('a', 'b', 'd')])
    with pytest.raises(ValueError, match=r"^a.pth: has 3 classes \('a', 'b', 'c'\), b.onnx has 2$"):
        compared(config, photos, [table, table[:, :2]], [('a', 'b', 'c'), None])
    with pytest.raises(ValueError, match='b.onnx has outputs that are not finite'):
        compared(config, photos, [table, table / 0])


@pytest.fixture(scope='module')
def files(tiny_run, digits, tmp_path_factory):
    """A run, its fused form, and ONNX files of it of pixels and probabilities, and of images of another size."""
    folder = tmp_path_factory.mktemp('files')
    config = cli.load_config(TINY, dict(option.split('=') for option in data_options(digits)[:3]))
    shutil.copytree(tiny_run, folder / 'run')
    checkpoint = str(folder / 'run' / 'epoch_4.pth')
    weights = fuse.read_weights(config, checkpoint)
    model = fuse.fuse(fuse.load_model(config, weights))
    fuse.save_fused(model, folder / 'fused.pth', config, checkpoint, weights.source)
    torch.save(model.state_dict(), folder / 'bare.pth')
    for size in (32, 64):
        said = describe(Preprocessing(config), model.classes, checkpoint)
        export.export(model, folder / f'{size}.onnx', image_size=size, normalize=True, softmax=True, metadata=said)
    return folder


@pytest.mark.parametrize(
    ('one', 'other', 'outputs'),
    [
        ('run', 'fused.pth', 'logits'),
        ('fused.pth', '32.onnx', 'probabilities'),
        ('32.onnx', 'bare.pth', 'probabilities'),
    ],
)
def test_tool(one, other, outputs, files, digits, run_tool, tmp_path):
    arguments = (files / one, files / other, '--images', digits / 'val', '--num-images', 30, '--config', TINY)
    code, text = run_tool('compare', *arguments, '--out', tmp_path / 'out.json')
    assert code == 0, text
    report = json.loads((tmp_path / 'out.json').read_text())
    assert f'30 images: 0 predictions changed; {outputs} differ by ' in text
    assert (report['num_images'], report['changed_predictions'], len(report['worst'])) == (30, 0, 5)
    assert 0 < report['mean_abs_diff'] < report['max_abs_diff'] and report['max_rel_diff'] < 1e-3
    assert all(entry['image'] in text for entry in report['worst'])


def test_tools_mistakes_are_one_line(files, digits, run_tool, tmp_path):
    images = ('--images', digits / 'val')
    for arguments, message in (
        ((files / '32.onnx', files / '64.onnx', *images), '32.onnx: takes images of 32 x 32 pixels, '),
        ((files / '32.onnx', files / 'bare.pth', *images), 'bare.pth: does not say which images it takes'),
        ((files / '32.onnx', files / 'none.pth', *images), 'none.pth: no such run or file'),
        ((files / '32.onnx', files / 'run', '--images', tmp_path), 'no images in this folder'),
        (
            (files / 'run', files / 'run', *images, '--out', files / 'run' / 'best_accuracy_top1_epoch_4.pth'),
            'is what is read',
        ),
    ):
        code, text = run_tool('compare', *arguments)
        assert code == 1 and message in only_line(text), text
