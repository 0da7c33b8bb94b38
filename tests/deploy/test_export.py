"""Exported files: what is in the graph, that it computes what PyTorch does, and what is refused."""

import ctypes
import json
import resource
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from conftest import TINY, only_line, randomize_norms
from mmpretrain.registry import MODELS
from PIL import Image

import mobileone_ext as m1
from mobileone_ext import cli
from mobileone_ext.config import load_config
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import export, fuse
from mobileone_ext.deploy.described import describe
from mobileone_ext.deploy.formats import FORMATS
from mobileone_ext.deploy.formats.base import Request
from mobileone_ext.deploy.formats.onnx import onnx_proto
from mobileone_ext.deploy.runtime import open_network
from mobileone_ext.metadata import IMAGENET_MEAN, IMAGENET_STD, Metadata

S0, S4 = 'configs/mobileone_s0_8xb32.py', 'configs/mobileone_s4_8xb32.py'
pytestmark = pytest.mark.filterwarnings('ignore')


def classifier(path, form='fused', **backbone):
    config = cli.load_config(path)
    config.model.backbone.update(backbone)
    torch.manual_seed(0)
    return config, randomize_norms(fuse.build_model(config, form))


@pytest.fixture(scope='module')
def s0(tmp_path_factory):
    """Config, branched model and its checkpoint file."""
    config, model = classifier(S0, 'branched')
    path = tmp_path_factory.mktemp('s0') / 's0.pth'
    torch.save(model.state_dict(), path)
    return config, model, path


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        (S0, dict(Conv=43, Relu=43, GlobalAveragePool=1, Flatten=1, Gemm=1)),
        (S4, dict(Conv=67, Relu=55, GlobalAveragePool=13, Sigmoid=12, Mul=12, Flatten=1, Gemm=1)),
    ],
)
def test_graph_holds_nothing_else(path, expected):
    _, model = classifier(path)  # its biases are equal, which the exporter would make one, and Identity of the others
    proto = onnx_proto(export.DeployNet(model), torch.zeros(2, 3, 64, 64))
    assert Counter(node.op_type for node in proto.graph.node) == expected


@pytest.mark.parametrize(('opset', 'dynamic_batch'), [(13, True), pytest.param(21, False, marks=pytest.mark.slow)])
def test_opset_and_batch_are_as_asked(s0, opset, dynamic_batch, tmp_path):
    config, _, checkpoint = s0
    net = export.DeployNet(export.load_fused(config, str(checkpoint)))
    export.write(net, tmp_path / 'net.onnx', Request('onnx', 64, opset, dynamic_batch=dynamic_batch))
    proto = onnx.load(tmp_path / 'net.onnx')
    assert proto.opset_import[0].version == opset
    network = open_network(tmp_path / 'net.onnx')
    assert network.fixed_batch != dynamic_batch
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    for opened in (network, open_network(tmp_path / 'net.onnx', batch=2)):
        np.testing.assert_allclose(opened(images), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_coreml_program(s0, tmp_path):
    import coremltools

    config, _, checkpoint = s0
    net = export.DeployNet(export.load_fused(config, str(checkpoint)))
    export.write(net, tmp_path / 'net.mlpackage', Request('coreml', 64, metadata=dict(output='logits')))
    spec = coremltools.models.MLModel(str(tmp_path / 'net.mlpackage'), skip_model_load=True).get_spec()
    operations = Counter(
        operation.type
        for block in spec.mlProgram.functions['main'].block_specializations.values()
        for operation in block.operations
    )
    assert operations['conv'] == operations['relu'] == 43
    assert operations['linear'] == 1
    assert spec.description.metadata.userDefined['output'] == 'logits'


@pytest.mark.parametrize(
    ('out', 'options', 'message'),
    [
        ('net.onnx', ('--format', 'tflite'), "'tflite' (choose from"),
        ('net.onnx', ('--opset', 9), "'9': a whole number from 10 to 21 is needed"),
        ('net.pt', ('--format', 'onnx'), 'net.pt: a file of format onnx is named *.onnx'),
        (
            'net.onx',
            (),
            'net.onx: the last name is that of the file to write; the suffix says the format, one of .onnx, .pt, ',
        ),
        ('missing/net.onnx', (), 'no such folder'),
        ('net.onnx', ('--input-name', 'two words'), "'two words': a letter, then letters"),
    ],
)
def test_what_cannot_be_done_is_said_first(out, options, message, tmp_path, run_tool):
    code, text = run_tool('export', S0, tmp_path / 'absent.pth', tmp_path / out, *options)
    assert code == 1 and message in only_line(text)


def write_images(folder, count=3):
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (300, 260, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    (folder / 'broken.png').write_bytes(b'not a picture')
    return folder


def test_refused_file_does_not_take_its_place(s0, tmp_path):
    config, _, checkpoint = s0
    net = export.DeployNet(export.load_fused(config, str(checkpoint)))
    other = export.DeployNet(export.load_fused(config, str(checkpoint)))
    with torch.no_grad():
        other.fc.bias[7] = 1e9
    out = tmp_path / 'net.onnx'
    out.write_text('older')
    with pytest.raises(ValueError, match='2 of 2 predictions changed'):
        export.write(net, out, Request(), lambda path: export.prove(other, path, Request()))
    assert out.read_text() == 'older'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['net.onnx']


@pytest.mark.parametrize('leaves', [b'half a file', pytest.param(b'', marks=pytest.mark.slow)])
def test_a_full_disk_is_named_whatever_a_library_says(s0, leaves, tmp_path, monkeypatch):
    def write(net, image, path, request):
        path.write_bytes(leaves)
        raise RuntimeError('basic_ios::clear: iostream error')

    net = export.DeployNet(export.load_fused(s0[0], str(s0[2])))
    monkeypatch.setattr(export, 'load_format', lambda form: SimpleNamespace(write=write))
    with pytest.raises(ValueError, match='^onnx cannot hold this network: basic_ios::clear'):
        export.write(net, tmp_path / 'net.onnx', Request(size=64))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match='net.onnx: cannot be written: File too large'):
            export.write(net, tmp_path / 'net.onnx', Request(size=64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_tool_fuses_exports_and_compares(s0, run_tool, tmp_path):
    _, _, checkpoint = s0
    images = write_images(tmp_path / 'images')
    code, text = run_tool('export', S0, checkpoint, tmp_path / 'net.onnx', '--images', images)
    assert code == 0, text
    assert '3 images: 0 predictions changed' in text
    assert 'broken.png: not a readable image' in text


def test_the_test_pipeline_says_the_size(run_tool, tmp_path):
    """64 px for the digits: a file for 224 would take, and misread, photos of another size than the network learned."""
    config = load_config('configs/mobileone_s0_digits.py')
    torch.save(MODELS.build(config.model).state_dict(), tmp_path / 'net.pth')
    code, text = run_tool('export', 'configs/mobileone_s0_digits.py', tmp_path / 'net.pth', tmp_path / 'net.onnx')
    assert code == 0, text
    shape = onnx.load(tmp_path / 'net.onnx').graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim][1:] == [3, 64, 64]


def test_options_of_the_tool(s0, run_tool, tmp_path):
    _, _, checkpoint = s0
    options = ('--fixed-batch', '--opset', 13, '--size', 64, '--normalize', '--softmax')
    code, text = run_tool('export', S0, checkpoint, tmp_path / 'net.onnx', *options)
    assert code == 0, text
    proto = onnx.load(tmp_path / 'net.onnx')
    assert proto.opset_import[0].version == 13
    assert [axis.dim_value for axis in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 64]
    network = open_network(tmp_path / 'net.onnx')
    assert network.metadata['input'] == 'pixels 0..255'
    assert json.loads(network.metadata['labels'])[:2] == ['tench, Tinca tinca', 'goldfish, Carassius auratus']
    assert network(np.full((1, 3, 64, 64), 100, np.float32)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['onnx', 'torchscript', 'openvino'])
def test_apples_s0_on_1300_images(form, shared, run_tool, tmp_path):
    weights, images = shared('weights', 'apple_mobileone_s0_fused.pth'), shared('data', 'ilsvrc_val_1300', 'val')
    out = tmp_path / f'net{FORMATS[form].suffixes[0]}'
    code, text = run_tool('export', S0, weights, out, '--format', form, '--images', images)
    assert code == 0, text
    assert '1300 images: 0 predictions changed' in text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads the stack for signals as Linux has it')
def test_signals_find_their_stack_after_openvino(s0, tmp_path):
    """Its CPU plug-in leaves one behind that is freed with the network: the next Ctrl-C would be a crash."""

    def signal_stack():
        stack = (ctypes.c_size_t * 3)()
        assert ctypes.CDLL(None).sigaltstack(None, stack) == 0
        return list(stack)

    config, _, checkpoint = s0
    net = export.DeployNet(export.load_fused(config, str(checkpoint)))
    export.write(net, tmp_path / 'net.xml', Request('openvino', 64))
    before = signal_stack()
    network = open_network(tmp_path / 'net.xml')
    network(np.zeros((1, 3, 64, 64), np.float32))
    assert signal_stack() == before


@pytest.mark.parametrize(('form', 'half'), [('onnx', False), ('onnx', True), ('ort', False)])
def test_heat_map_is_where_the_logits_come_from(form, half, tmp_path):
    """Its mean over the places and the layer's bias are the logit; each place by the weights, in float64."""
    import onnxruntime

    _, model = classifier(S0)
    net, path = export.DeployNet(model), tmp_path / f'net.{form}'
    request = Request(form, 96, half=half, heatmap=True)
    export.write(net, path, request, lambda part: None if half else open_network(part))
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    assert [(output.name, output.type, output.shape[1:]) for output in session.get_outputs()] == [
        ('output', 'tensor(float)', [1000]),
        ('heatmap', 'tensor(float)', [1000, 3, 3]),
    ]
    images = torch.randn(2, 3, 96, 96)
    logits, places = map(torch.from_numpy, session.run(None, {'image': images.numpy()}))
    last = model.double().backbone(images.double())[-1]
    weight, bias = model.head.fc.weight, model.head.fc.bias
    expected = torch.einsum('oc,nchw->nohw', weight, last)
    tolerance = (2e-2 if half else 1e-5) * float(expected.abs().max())
    torch.testing.assert_close(places.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(places.double().mean((2, 3)) + bias, logits.double(), rtol=0, atol=tolerance)
    plain = onnx_proto(export.DeployNet(model.float()), images, Request(size=96))
    if form == 'onnx' and not half:  # no weight is there twice
        assert path.stat().st_size < len(plain.SerializeToString()) + 4096


def test_heat_map_of_what_has_none_is_refused(s0, run_tool, tmp_path):
    code, text = run_tool('export', S0, s0[2], tmp_path / 'net.pt', '--format', 'torchscript', '--heatmap')
    assert code == 1 and '--heatmap: a file of format torchscript has one output' in only_line(text)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Flatten(), torch.nn.LazyLinear(4)).eval()
    net(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match='a heat map needs average pooling and a linear layer'):
        export.write(net, tmp_path / 'net.onnx', Request(size=8, heatmap=True))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Config, fused model and its checkpoint file."""
    config, model = classifier(TINY)
    path = tmp_path_factory.mktemp('tiny') / 'tiny.pth'
    torch.save(model.state_dict(), path)
    return config, model, path


@pytest.mark.parametrize('float32', [False, True])
def test_coreml_takes_an_image_and_names_classes(tiny, float32, tmp_path):
    """Of the program: the numbers by which pixels become what the network was trained on, and its precision."""
    import coremltools

    config, model, checkpoint = tiny
    path = tmp_path / 'net.mlpackage'
    said = describe(Preprocessing(config), None, str(checkpoint))
    export.export(model, path, image_size=32, normalize=True, softmax=True, float32=float32, metadata=said)
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    (block,) = spec.mlProgram.functions['main'].block_specializations.values()
    kinds = Counter(operation.type for operation in block.operations)
    assert kinds['conv'] == 9 and kinds['softmax'] == kinds['classify'] == 1
    numbers = {
        operation.outputs[0].name: operation.attributes['val'].immediateValue.tensor
        for operation in block.operations
        if operation.type == 'const'
    }
    first = {kind: next(each for each in block.operations if each.type == kind) for kind in ('add', 'mul')}
    mean, scale = (numbers[each.inputs['y'].arguments[0].name] for each in first.values())
    assert first['add'].inputs['x'].arguments[0].name == 'image'
    np.testing.assert_allclose(mean.floats.values, [-123.675, -116.28, -103.53], rtol=1e-6)  # in float32, in either
    found = scale.floats.values if float32 else np.frombuffer(scale.bytes.values, np.float16)
    np.testing.assert_allclose(found, [1 / 58.395, 1 / 57.12, 1 / 57.375], rtol=1e-6 if float32 else 1e-3)
    assert spec.description.metadata.userDefined['precision'] == ('float32' if float32 else 'float16')
    types = {output.type.tensorType.dataType for operation in block.operations for output in operation.outputs}
    float16 = 10
    assert (float16 in types) is not float32
    assert spec.description.input[0].type.WhichOneof('Type') == 'imageType'
    export.write(export.DeployNet(model), path, Request('coreml', 32))  # as arrays, where nothing is asked
    described = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec().description
    kinds = [entry.type.WhichOneof('Type') for entry in (*described.input, *described.output)]
    assert kinds == ['multiArrayType'] * 2


def test_a_file_that_apps_cannot_read_is_said(tiny, run_tool, tmp_path):
    out = tmp_path / 'net.mlpackage'
    code, text = run_tool('export', TINY, tiny[2], out, '--format', 'coreml', '--softmax')
    assert code == 0, text
    assert "Vision and Xcode's preview cannot read this file: that takes --normalize" in text.splitlines()
    assert (tmp_path / 'net.mlpackage.labels.txt').read_text().splitlines() == [*'0123456789']
    assert export.note('litert', True, False) == export.note('onnx', False, False) == ''
    assert export.note('litert', False, False) == 'MediaPipe cannot read this file: that takes --normalize'
    assert export.note('coreml', False, False).endswith('takes --normalize --softmax')


def test_names_of_another_network_do_not_stay(tmp_path):
    net = export.DeployNet(classifier(TINY)[1])
    for labels, text in ((['a', 'two\nlines'], 'a\ntwo lines\n'), (None, '')):
        metadata = {} if labels is None else dict(labels=json.dumps(labels))
        export.write(net, tmp_path / 'net.onnx', Request(size=32, metadata=metadata))
        assert (tmp_path / 'net.onnx.labels.txt').read_text() == text


def test_coreml_on_macos(tiny, tmp_path, monkeypatch):
    """The file is opened as it is there; in the runtime's place, what it would be given and give."""
    import coremltools

    (config, model, checkpoint), path = tiny, tmp_path / 'net.mlpackage'
    request = Request('coreml', 32, normalize=True, softmax=True, metadata=dict(labels=json.dumps([*'abcdefghia'])))
    net = export.DeployNet(model, Preprocessing(config).normalize, softmax=True)
    export.write(net, path, export.described(request, describe(Preprocessing(config), None, str(checkpoint))))

    def predict(self, given):
        pixels = torch.from_numpy(np.array(given['image'])).permute(2, 0, 1)[None].float()
        names = ['a (0)', *'bcdefghi', 'a (9)']
        return dict(classLabel='', classLabel_probs=dict(sorted(zip(names, net(pixels)[0].tolist()), reverse=True)))

    monkeypatch.setattr(coremltools.models.MLModel, 'predict', predict)
    with monkeypatch.context() as there:
        there.setattr(sys, 'platform', 'darwin')
        network = open_network(path)
    assert network.fixed_batch and network.size == (32, 32) and network.in_channels == 3
    images = torch.randint(0, 256, (2, 3, 32, 32)).float()
    np.testing.assert_allclose(network(images.numpy()), net(images).numpy(), atol=1e-6)


class Heads(torch.nn.Module):
    """A mask and a score for each image, or what ``pick`` makes of them."""

    def __init__(self, pick):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.pick = pick

    def forward(self, images):
        mask = self.body(images)
        return self.pick(mask, mask.mean((2, 3)))


@pytest.mark.parametrize('suffix', ['.onnx', '.pt', '.pt2'])
@pytest.mark.parametrize(
    ('pick', 'names'),
    [
        (lambda mask, score: mask, ['output']),
        (lambda mask, score: dict(mask=mask, score=score), ['mask', 'score']),
        (lambda mask, score: [score, mask], ['output', 'output_1']),
    ],
)
def test_a_network_with_other_outputs(pick, names, suffix, tmp_path):
    """Masks, two heads, maps: all are held against the network; of images that are not square, in other numbers."""
    net, path = Heads(pick), tmp_path / f'net{suffix}'
    m1.export(net, path, image_size=(32, 48), normalize=True)
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 48)).astype(np.float32)
    mean, std = (np.float32(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        outputs = net(torch.from_numpy((pixels - mean) / std))
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    outputs = outputs.values() if isinstance(outputs, dict) else outputs
    expected = torch.cat([output.flatten(1) for output in outputs], 1).numpy()
    np.testing.assert_allclose(open_network(path)(pixels), expected, atol=1e-5)
    if suffix == '.onnx':
        graph = onnx.load(path).graph
        assert [output.name for output in graph.output] == names
        assert [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim[2:]] == [32, 48]


def test_a_wrong_second_output_is_refused(tmp_path, monkeypatch):
    net = Heads(lambda mask, score: (score, mask))
    asked = Request(size=(32, 48), outputs=('output', 'output_1'), gives_classes=False)
    other = export.DeployNet(Heads(lambda mask, score: (score, mask + 1)))
    other.backbone.body.load_state_dict(net.body.state_dict())
    with pytest.raises(ValueError, match='outputs differ by'):
        export.write(export.DeployNet(net), tmp_path / 'n.onnx', asked, lambda part: export.prove(other, part, asked))


def test_formats_of_one_output_say_so(tmp_path):
    with pytest.raises(ValueError, match='a file of format litert has one output here, the network 2'):
        m1.export(Heads(lambda mask, score: (score, mask)), tmp_path / 'net.tflite', image_size=32)


def test_a_file_says_what_was_told(tmp_path):
    """And nothing else; what was told to the network as well."""
    net = Heads(lambda mask, score: score)
    m1.export(net, tmp_path / 'net.onnx', image_size=32)
    said = Metadata.read(open_network(tmp_path / 'net.onnx').metadata)
    assert (said.size, said.output) == ([32, 32], 'logits') and said.mean is said.labels is said.input is None
    net.metadata = Metadata(labels=[*'abcd'], size=(24, 32), mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], channels='RGB')
    m1.export(net, tmp_path / 'net.onnx', softmax=True)
    said = Metadata.read(open_network(tmp_path / 'net.onnx').metadata)
    assert (said.labels, said.size, said.mean, said.output) == ([*'abcd'], [24, 32], [1, 2, 3], 'probabilities')
    assert said.takes_pixels is False and said.is_enough


def test_images_that_are_not_square_by_the_tool(tiny, run_tool, tmp_path):
    code, text = run_tool('export', TINY, tiny[2], tmp_path / 'net.onnx', '--image-size', '32x64')
    assert code == 0 and 'at 32 x 64' in text, text
    assert open_network(tmp_path / 'net.onnx').size == (32, 64)
    code, text = run_tool('export', TINY, tiny[2], tmp_path / 'net.onnx', '--image-size', '32x')
    assert code == 1 and "'32x': 224, or height and width as 192x256" in only_line(text)
