"""LiteRT files in MediaPipe's ImageClassifier, without a line of code for them: opened, and photos named."""

import numpy as np
import pytest
import torch

from mobileone_ext import cli
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy.runtime import open_network
from mobileone_ext.metadata import Metadata

S0 = 'configs/mobileone_s0_8xb32.py'
COUNT = 100
pytestmark = [pytest.mark.apps, pytest.mark.filterwarnings('ignore')]


@pytest.fixture(scope='module')
def mediapipe():
    pytest.importorskip('litert_torch', reason='format litert is not installed')
    reason = 'mediapipe is not installed: pip install --no-deps mediapipe==1.2.3 absl-py sounddevice'
    return pytest.importorskip('mediapipe', reason=reason)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return tmp_path_factory.mktemp('mediapipe')


@pytest.fixture
def photos(shared):
    """Path and class of photos that the network has not seen, spread over the list."""
    root = shared('data', 'ilsvrc_val_1300')
    lines = (root / 'meta' / 'val.txt').read_text().splitlines()
    pairs = [line.split() for line in lines[:: len(lines) // COUNT][:COUNT]]
    return [(root / 'val' / name, int(label)) for name, label in pairs]


def written(kind, files, shared, run_tool):
    """Apple's S0 as a file of this kind, and what the tool printed."""
    weights, path = shared('weights', 'apple_mobileone_s0_fused.pth'), files / f'{kind}.tflite'
    if path.exists():
        return path
    tool, *options = dict(
        float=('export', '--format', 'litert'),
        int8=('quantize', '--images', shared('data', 'imagenette_4k'), '--num-images', 60, '--round-to-nearest'),
    )[kind]
    code, text = run_tool(tool, S0, weights, path, *options, '--normalize', '--softmax')
    assert code == 0, text
    assert 'MediaPipe' not in text
    return path


def classifier_of(mediapipe, path):
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(path)), max_results=5)
    return vision.ImageClassifier.create_from_options(options)


def named_by(mediapipe, classifier, pixels):
    """The best label and its score, of an image (H, W, 3) of bytes."""
    image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(pixels))
    best = classifier.classify(image).classifications[0].categories[0]
    return best.category_name, best.score


@pytest.mark.parametrize('kind', ['float', 'int8'])
def test_photos_are_named_as_by_our_own_runtime(kind, mediapipe, files, photos, shared, run_tool):
    """Cut to size by our pipeline; then as they come, where MediaPipe squeezes them to a square."""
    from mobileone_ext.data.decode import read_rgb

    path = written(kind, files, shared, run_tool)
    network, preprocessing = open_network(path), Preprocessing(cli.load_config(S0))
    labels = Metadata.read(network.metadata).labels
    same, right, squeezed = 0, 0, 0
    with classifier_of(mediapipe, path) as classifier:
        for (file, label), (_, pixels) in zip(photos, preprocessing.read([file for file, _ in photos], [])):
            scores = network(pixels[None].numpy())[0]
            ours, score = labels[scores.argmax()], scores.max()
            theirs = named_by(mediapipe, classifier, pixels.permute(1, 2, 0).to(torch.uint8).numpy())
            same += theirs[0] == ours and abs(theirs[1] - score) < 5e-3
            right += ours == labels[label]
            squeezed += named_by(mediapipe, classifier, np.asarray(read_rgb(file)))[0] == labels[label]
    print(f'{kind}: {same} of {COUNT} named alike; right: ours {right}, by its own resizing {squeezed}')
    assert same >= 99
    assert right >= 70 and squeezed >= right - 12


def test_a_file_without_normalization_is_said_to_be_none_for_it(mediapipe, files, shared, run_tool):
    weights, path = shared('weights', 'apple_mobileone_s0_fused.pth'), files / 'bare.tflite'
    code, text = run_tool('export', S0, weights, path, '--format', 'litert')
    assert code == 0, text
    said = [line for line in text.splitlines() if 'MediaPipe' in line]
    assert said == ['MediaPipe cannot read this file: that takes --normalize']
    with pytest.raises((NotImplementedError, ValueError), match='image normalization is not available'):
        classifier_of(mediapipe, path)
