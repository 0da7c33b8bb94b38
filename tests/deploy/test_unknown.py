"""Temperature and threshold wherever a photo is answered: in checkpoints, exported and int8 files, on the console."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import TINY, data_options
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import fuse, predict, runtime
from mobileone_ext.deploy.classifier import Classifier, by_metadata
from mobileone_ext.deploy.formats.base import Network
from mobileone_ext.metadata import Metadata

TEMPERATURE = 3.0
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def photos(digits):
    return sorted((digits / 'val').glob('*/*.png'))[::30]


@pytest.fixture(scope='module')
def logits(tiny_run, digits, photos):
    """Of the photos, by the network in the run."""
    config = cli.load_config(TINY, dict(option.split('=') for option in data_options(digits)[:3]))
    preprocessing = Preprocessing(config)
    pixels = torch.stack([image for _, image in preprocessing.read(photos, [])])
    with torch.no_grad():
        return fuse.load_model(config, load_weights(tiny_run / 'epoch_4.pth'))(preprocessing.normalize(pixels))


def test_every_file_answers_alike(tiny_run, digits, photos, logits, run_tool, tmp_path):
    """Scores are the softmax of logits / temperature; below the threshold is what is unknown, in every file."""
    scores = (logits / TEMPERATURE).softmax(1)
    threshold = float(scores.amax(1).sort().values[3:5].mean())  # between two photos
    fused, options = tmp_path / 'fused.pth', ('--cfg-options', *data_options(digits))
    code, text = run_tool('reparam', TINY, tiny_run / 'epoch_4.pth', fused, *options)
    assert code == 0, text
    fuse.add_to_meta(fused, temperature=TEMPERATURE, threshold=threshold)
    assert 'labels' in torch.load(fused)['meta'] and not [path for path in tmp_path.iterdir() if path != fused]
    quantize = ('quantize', fused, tmp_path / 'int8.onnx', '--num-images', 10, '--image-size', 32)
    for name, *arguments in (
        ('export', TINY, fused, tmp_path / 'logits.onnx', '--image-size', 32),
        ('export', TINY, fused, tmp_path / 'pixels.onnx', '--image-size', 32, '--normalize', '--softmax'),
        (quantize[0], TINY, *quantize[1:], '--images', digits / 'train'),
    ):
        code, text = run_tool(name, *arguments, *options)
        assert code == 0, text
    converted = [('own.pth', 'mobileone_ext'), ('timm.safetensors', 'timm'), ('own.safetensors', 'mobileone_ext')]
    for name, layout in converted:
        code, text = run_tool('convert_checkpoint', fused, tmp_path / name, '--to', layout)
        assert code == 0, text
    for network, tolerance in ((fused, 1e-5), (tmp_path / 'logits.onnx', 1e-4), (tmp_path / 'pixels.onnx', 1e-4),
                               *((tmp_path / name, 1e-5) for name, _ in converted),
                               (tmp_path / 'int8.onnx', 0.1)):  # fmt: skip
        if network.suffix == '.onnx':
            said = Metadata.read(runtime.open_network(network).metadata)
            assert (said.temperature, said.threshold) == (TEMPERATURE, threshold)
        code, text = run_tool('predict', network, *photos, '--top', 10, '--out', tmp_path / 'out.json')
        assert code == 0, text
        results = json.loads((tmp_path / 'out.json').read_text())
        found = [[one['score'] for one in sorted(r['predictions'], key=lambda one: one['index'])] for r in results]
        np.testing.assert_allclose(found, scores.numpy(), atol=tolerance)
        unknown = [result['unknown'] for result in results]
        assert unknown == [max(row) < threshold for row in found]
        assert text.count('unknown (0.') == sum(unknown)
        if tolerance < 0.1:
            assert sum(unknown) == 4
    code, text = run_tool('predict', fused, *photos, '--all', '--top', 2, '--out', tmp_path / 'out.csv')
    assert code == 0 and 'unknown' not in text and text.count('%  ') == 2 * len(photos)
    rows = list(csv.DictReader((tmp_path / 'out.csv').open()))
    assert [row['unknown'] for row in rows[::2]] == [str(one) for one in unknown_of(scores, threshold)]


def unknown_of(scores, threshold) -> list[bool]:
    return (scores.amax(1) < threshold).tolist()


RESULT = dict(
    unknown=False, predictions=[dict(label='cat', index=1, score=0.41), dict(label='dog', index=0, score=0.3)]
)


def test_what_the_console_says():
    assert predict.answer(RESULT, None) == [' 41.0%  cat', ' 30.0%  dog']
    assert predict.answer(dict(RESULT, unknown=True), 0.5) == ['unknown (0.41 cat)']
    assert predict.answer(dict(RESULT, unknown=True), 0.5, show_all=True) == predict.answer(RESULT, 0.2)
    assert predict.answer(RESULT, [0.2, 0.5]) == [' 30.0%  dog']  # of several labels those that reach theirs


def by_numbers(values: torch.Tensor, **said) -> Classifier:
    """A classifier that has these outputs for any photo."""
    metadata = Metadata(labels=list('abc'), mean=[0.0], std=[1.0], size=[4, 4], input='pixels', **said)
    return by_metadata('x', Network(lambda images: values.numpy(), False, 3, metadata.write()), metadata)


@pytest.mark.parametrize(
    ('threshold', 'expected'),
    [(None, [False] * 3), (0.5, [False, True, True]), ([0.9, 0.2, 0.3], [True, False, False])],
)
def test_an_image_is_unknown_where_no_score_reaches_its_threshold(threshold, expected, tmp_path):
    for name in range(3):
        Image.new('RGB', (8, 8)).save(tmp_path / f'{name}.png')
    scores = torch.tensor([[0.8, 0.1, 0.1], [0.4, 0.1, 0.35], [0.3, 0.25, 0.45]])
    several = 'several' if isinstance(threshold, list) else None
    outputs = scores.logit() if several else scores.log()
    found = predict.predict(by_numbers(outputs, threshold=threshold, labels_of_an_image=several), tmp_path)
    assert [one['unknown'] for one in found] == expected


@pytest.mark.parametrize(('output', 'several'), [('logits', None), ('probabilities', None), ('logits', 'several')])
@pytest.mark.parametrize('temperature', [None, 2.0])
def test_a_file_s_scores(output, several, temperature):
    """Of several labels each by the sigmoid; probabilities as if they were logits' softmax."""
    values = torch.tensor([[2.0, -1.0, 0.5]])
    given = values.softmax(1) if output == 'probabilities' else values
    classify = by_numbers(given, output=output, labels_of_an_image=several, temperature=temperature)
    scaled = values / (temperature or 1)
    expected = scaled.sigmoid() if several else scaled.softmax(1)
    np.testing.assert_allclose(classify(np.zeros((1, 3, 4, 4), np.float32)), expected.numpy(), rtol=1e-5)


def test_unknown_stands_in_the_picture(tmp_path):
    Image.new('RGB', (64, 64), 'red').save(tmp_path / 'red.png')
    heights = [predict.draw(dict(RESULT, image=tmp_path / 'red.png', unknown=one)).height for one in (False, True)]
    assert heights[1] - heights[0] == 24
