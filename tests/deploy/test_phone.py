"""What the snippets of docs/phone.md do to a photo, done in Python on written files, against the network in PyTorch."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, randomize_norms
from PIL import Image, ImageOps

from mobileone_ext import cli
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import export, fuse
from mobileone_ext.deploy.described import describe
from mobileone_ext.deploy.formats import OUTPUT_NAME

S0 = 'configs/mobileone_s0_8xb32.py'
ARCH = dict(num_blocks=[1, 1, 1, 1], width_factor=[0.125, 0.125, 0.0625, 0.0625], num_conv_branches=[1, 1, 1, 1])
PAGE = (ROOT / 'docs/phone.md').read_text()
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def phone(tmp_path_factory):
    """Config, the network that takes pixels and returns probabilities, a photo as a camera stores it, a folder."""
    folder = tmp_path_factory.mktemp('phone')
    config = cli.load_config(S0)
    config.model.backbone.arch, config.model.head.in_channels = ARCH, 32
    torch.manual_seed(0)
    model = randomize_norms(fuse.build_model(config, 'branched'))
    with torch.no_grad():
        features = model.backbone(torch.randn(4, 3, 224, 224))[-1].mean((2, 3))
        model.head.fc.weight.normal_(std=6).div_(features.norm(dim=1).max())
    torch.save(model.state_dict(), folder / 'net.pth')
    net = export.DeployNet(fuse.fuse(model), Preprocessing(config).normalize, softmax=True)

    spots = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    upright = Image.fromarray(spots).resize((400, 300), Image.Resampling.BICUBIC)  # so smooth that all scalers agree
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned by 90 degrees
    photo = folder / 'photo.png'
    upright.transpose(Image.Transpose.ROTATE_90).save(photo, exif=exif)
    return config, net, photo, folder


def write(phone, name, form):
    config, net, _, folder = phone
    request = export.Request(form, normalize=True, softmax=True, dynamic_batch=False)
    export.write(
        net, folder / name, export.described(request, describe(Preprocessing(config), None, str(folder / 'net.pth')))
    )
    return folder / name


def upright_pixels(photo: Path) -> Image.Image:
    with Image.open(photo) as image:
        return ImageOps.exif_transpose(image).convert('RGB')


def cropped(photo: Path) -> np.ndarray:
    """Shorter edge 256, the middle 224 x 224: (224, 224, 3) bytes."""
    image = upright_pixels(photo)
    scale = 256 / min(image.size)
    small = image.resize([round(length * scale) for length in image.size], Image.Resampling.BILINEAR)
    left, top = (small.width - 224) // 2, (small.height - 224) // 2
    return np.asarray(small.crop((left, top, left + 224, top + 224)))


def probabilities(phone) -> np.ndarray:
    """By the config's own pipeline, in PyTorch."""
    config, net, photo, _ = phone
    turned = photo.with_name('turned.png')
    upright_pixels(photo).save(turned)
    ((_, pixels),) = Preprocessing(config).read([turned], [])
    with torch.no_grad():
        return net(pixels[None])[0].numpy()


def test_mistakes_of_an_app_would_show(phone):
    """The network tells apart what the snippets have to get right."""
    _, net, photo, _ = phone
    expected = probabilities(phone)
    right = torch.from_numpy(cropped(photo).transpose(2, 0, 1).copy()).float()
    lying = torch.from_numpy(np.asarray(Image.open(photo).convert('RGB').resize((224, 224))).transpose(2, 0, 1).copy())
    mistakes = dict(
        bgr=right.flip(0), lying=lying.float(), unit=right / 255, layout=right.permute(1, 2, 0).reshape(3, 224, 224)
    )
    with torch.no_grad():
        np.testing.assert_allclose(net(right[None])[0].numpy(), expected, atol=1e-5)
        for name, images in mistakes.items():
            assert np.abs(net(images[None])[0].numpy() - expected).max() > 2e-5, name


@pytest.mark.apps
def test_kotlin_with_litert(phone):
    pytest.importorskip('litert_torch', reason='format litert is not installed')
    from ai_edge_litert.interpreter import Interpreter

    path = write(phone, 'net.tflite', 'litert')
    argb = [(255 << 24) | (int(r) << 16) | (int(g) << 8) | int(b) for r, g, b in cropped(phone[2]).reshape(-1, 3)]
    floats = [float(pixel >> shift & 0xFF) for pixel in argb for shift in (16, 8, 0)]
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (image,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(image['index'], np.array(floats, np.float32).reshape(image['shape']))
    interpreter.invoke()
    np.testing.assert_allclose(interpreter.get_tensor(output['index'])[0], probabilities(phone), atol=1e-5)
    with zipfile.ZipFile(path) as files:
        assert len(files.read('labels.txt').decode().splitlines()) == 1000


def test_swift_with_coreml(phone):
    """The file's own description, which Vision and Xcode go by: an image in, the best label and all of them out."""
    coremltools = pytest.importorskip('coremltools')
    path = write(phone, 'net.mlpackage', 'coreml')
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    described = spec.description
    (image,) = described.input
    picture = image.type.imageType
    assert (image.name, picture.width, picture.height) == ('image', 224, 224)
    assert picture.colorSpace == picture.ColorSpace.Value('RGB')
    kinds = {entry.name: entry.type.WhichOneof('Type') for entry in described.output}
    assert kinds == dict(classLabel='stringType', classLabel_probs='dictionaryType')
    assert (described.predictedFeatureName, described.predictedProbabilitiesName) == (
        'classLabel',
        'classLabel_probs',
    )
    (block,) = spec.mlProgram.functions['main'].block_specializations.values()
    assert block.operations[-1].type == 'classify'
    (given,) = (argument.value for argument in block.operations[-1].inputs['classes'].arguments)
    names = [name for value in given.immediateValue.list.values for name in value.immediateValue.tensor.strings.values]
    assert len(names) == len(set(names)) == 1000
    assert names[:2] == ['tench, Tinca tinca', 'goldfish, Carassius auratus']
    assert [name for name in names if name.startswith('crane')] == ['crane (134)', 'crane (517)']
    assert len(json.loads(described.metadata.userDefined['labels'])) == 1000


@pytest.mark.apps
def test_cpp_with_ncnn(phone):
    pytest.importorskip('pnnx', reason='format ncnn is not installed')
    import ncnn

    path = write(phone, 'net.param', 'ncnn')
    rgb = np.ascontiguousarray(upright_pixels(phone[2]))
    height, width = rgb.shape[:2]
    side = min(width, height) * 224 // 256
    image = ncnn.Mat.from_pixels_roi_resize(
        rgb,
        ncnn.Mat.PixelType.PIXEL_RGB,
        width,
        height,
        (width - side) // 2,
        (height - side) // 2,
        side,
        side,
        224,
        224,
    )
    net = ncnn.Net()
    net.load_param(str(path))
    net.load_model(str(path.with_suffix('.bin')))
    with net.create_extractor() as extractor:
        extractor.input('image', image)
        found = np.array(extractor.extract('output')[1])
    expected = probabilities(phone)
    assert found.argmax() == expected.argmax()
    np.testing.assert_allclose(found, expected, atol=0.02 * expected.max())  # it scales in its own way
    assert len(json.loads(json.loads(path.with_suffix('.json').read_text())['labels'])) == 1000


def snippet(language):
    """The page's first piece of this language that is whole by itself."""
    return re.search(rf'```{language}\n(.*?)```', PAGE, re.S)[1]


def test_javascript_is_javascript(tmp_path):
    if not shutil.which('node'):
        pytest.skip('node is not installed')
    (tmp_path / 'page.mjs').write_text(snippet('js'))
    done = subprocess.run(['node', '--check', tmp_path / 'page.mjs'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NCNN = """// What the snippet calls, as ncnn's net.h and mat.h declare it.
namespace ncnn {
class Mat {
public:
    enum PixelType { PIXEL_RGB = 1 };
    static Mat from_pixels_roi_resize(const unsigned char* pixels, int type, int w, int h, int roix, int roiy, int roiw,
                                      int roih, int target_width, int target_height);
    operator float*();
    float& operator[](unsigned long i);
    int w;
};
class Extractor {
public:
    int input(const char* blob_name, const Mat& in);
    int extract(const char* blob_name, Mat& feat, int type = 0);
};
class Net {
public:
    int load_param(const char* protopath);
    int load_model(const char* modelpath);
    Extractor create_extractor() const;
};
}
"""


def test_cpp_compiles(tmp_path):
    """With ncnn's own headers where NCNN_INCLUDE names their folder; its package for Python leaves them out."""
    if not shutil.which('g++'):
        pytest.skip('g++ is not installed')
    (tmp_path / 'net.h').write_text(NCNN)
    headers = os.environ.get('NCNN_INCLUDE', tmp_path)
    (tmp_path / 'page.cpp').write_text(snippet('cpp'))
    command = ['g++', '-std=c++11', '-Wall', '-Werror', '-fsyntax-only', '-isystem', headers]
    done = subprocess.run([*command, tmp_path / 'page.cpp'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_page_uses_the_names_and_numbers_of_the_files():
    assert f'extract("{OUTPUT_NAME}"' in PAGE
    assert 'setModelAssetPath("s0.tflite")' in PAGE and 'VNCoreMLRequest(model: model)' in PAGE
    assert 'extractor.input("image"' in PAGE
    settings = cli.load_config(S0).model.data_preprocessor
    for values in (settings.mean, settings.std):
        assert ', '.join(map(str, values)) in PAGE
