"""tools/test.py and tools/predict.py on exported files: the same numbers as the checkpoint's, or one line."""

import json

import onnx
import pytest
import torch
from conftest import data_options, only_line
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import export
from mobileone_ext.deploy.described import describe
from mobileone_ext.deploy.exported import ExportedClassifier
from mobileone_ext.deploy.formats.base import FORMATS, quiet
from mobileone_ext.deploy.formats.onnx import write_ort

TINY = 'tests/configs/tiny_digits.py'
SIZE = 32
PACKAGES = dict(litert='litert_torch', executorch='executorch', ncnn='pnnx', mnn='MNN')
FORMS = [name for name in FORMATS if name != 'coreml']
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def trained(tiny_run, digits, tmp_path_factory):
    """The checkpoint of the tiny run, the options that find its data, and its metrics."""
    # Not the averaged weights, which lag behind in so short a run.
    return (
        tiny_run / 'epoch_4.pth',
        ['--ema', 'off', '--cfg-options', *data_options(digits)],
        tmp_path_factory.mktemp('exported'),
    )


def write(trained, form, out, inside=False, metadata=True, **options):
    if form in PACKAGES:
        pytest.importorskip(PACKAGES[form], reason=f'format {form} is not installed')
    config = cli.load_config(TINY)
    model = export.load_fused(config, str(trained[0]), 'off')
    preprocessing = Preprocessing(config)
    net = export.DeployNet(model, preprocessing.normalize if inside else None, softmax=inside)
    request = export.Request(form, SIZE, normalize=inside, softmax=inside, **options)
    told = export.described(request, describe(preprocessing, model.classes, str(trained[0]))) if metadata else request
    export.write(net, out, told)
    return out


@pytest.fixture(scope='module')
def checkpoint_metrics(trained):
    return {}


def metrics_of(run_tool, trained, file, *arguments):
    out = trained[2] / 'metrics.json'
    out.unlink(missing_ok=True)
    code, text = run_tool('test', TINY, file, '--out', out, '--work-dir', trained[2] / 'log', *arguments, *trained[1])
    assert code == 0, text
    return json.loads(out.read_text()), text


@pytest.mark.parametrize('form', FORMS)
def test_every_file_has_the_checkpoints_metrics(trained, checkpoint_metrics, form, run_tool, tmp_path):
    file = write(trained, form, tmp_path / f'net{FORMATS[form].suffixes[0]}', inside=form in ('onnx', 'ncnn'))
    if not checkpoint_metrics:
        checkpoint_metrics.update(metrics_of(run_tool, trained, trained[0])[0])
    assert 0 < checkpoint_metrics['accuracy/top1'] < 100  # a figure that a wrong file would miss
    found, text = metrics_of(run_tool, trained, file, '--against', trained[0])
    assert {key: found[key] for key in checkpoint_metrics} == checkpoint_metrics
    assert found['changed_predictions'] == 0
    assert 0 <= found['max_rel_logit_diff'] < 1e-4
    assert f'against {trained[0]}: 0 predictions changed' in text


@pytest.mark.parametrize('form', FORMS)
def test_predict_takes_every_file(trained, form, run_tool, tmp_path):
    file = write(trained, form, tmp_path / f'net{FORMATS[form].suffixes[0]}', inside=form == 'openvino')
    Image.radial_gradient('L').convert('RGB').save(tmp_path / 'photo.png')
    found = []
    for name in (trained[0], file):
        out = tmp_path / 'out.json'
        code, text = run_tool('predict', TINY, name, tmp_path / 'photo.png', '--out', out, '--ema', 'off')
        assert code == 0, text
        found.append(
            [(best['index'], round(best['score'], 4)) for best in json.loads(out.read_text())[0]['predictions']]
        )
    assert found[0] == found[1]


def test_changed_predictions_are_counted(trained, run_tool, tmp_path):
    """Against weights whose last class wins always, every other prediction has changed."""
    file = write(trained, 'onnx', tmp_path / 'net.onnx')
    model = export.load_fused(cli.load_config(TINY), str(trained[0]), 'off')
    with torch.no_grad():
        model.head.fc.bias[9] += 1e3
    torch.save(model.state_dict(), tmp_path / 'nine.pth')
    found, _ = metrics_of(run_tool, trained, file, '--against', tmp_path / 'nine.pth')
    assert found['changed_predictions'] > 0.8 * found['num_images']
    assert found['max_abs_logit_diff'] == pytest.approx(1e3, rel=1e-3)


def test_what_a_silent_file_takes_can_be_told(trained, checkpoint_metrics, run_tool, tmp_path):
    file = write(trained, 'onnx', tmp_path / 'net.onnx', metadata=False)
    found, text = metrics_of(run_tool, trained, file)
    assert 'takes normalized images (assumed' in text
    told, text = metrics_of(run_tool, trained, file, '--input', 'normalized')
    assert 'assumed' not in text
    assert told == found
    assert metrics_of(run_tool, trained, file, '--input', 'pixels')[0] != found


@pytest.mark.parametrize('form', FORMS)
def test_file_of_another_class_count_or_size_is_refused(trained, form, tmp_path):
    file = write(trained, form, tmp_path / f'net{FORMATS[form].suffixes[0]}')
    config = cli.load_config(TINY)
    exported = ExportedClassifier(config, file)
    assert exported.logits(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 10)
    if form != 'torchscript':  # which takes any size
        with pytest.raises(
            ValueError, match=r'net\.\w+: the network takes images of 3 x 32 x 32 pixels, these have 3 x 40 x 40'
        ):
            exported.logits(torch.zeros(1, 3, 40, 40))
    config.model.head.num_classes = 7
    with pytest.raises(ValueError, match=r'net\.\w+: has 10 classes, the config has 7'):
        ExportedClassifier(config, file).logits(torch.zeros(1, 3, SIZE, SIZE))


@pytest.mark.parametrize('form', ['ort', 'openvino', 'litert'])
def test_int8_file_of_another_tool_has_to_be_explained(trained, form, tmp_path):
    """Made of an ONNX file, or of a float file of LiteRT, by the tools of these formats."""
    file, config = tmp_path / f'int8{FORMATS[form].suffixes[0]}', cli.load_config(TINY)
    if form == 'litert':
        model = write(trained, form, tmp_path / 'net.tflite', metadata=False).read_bytes()
        from ai_edge_quantizer import quantizer, recipe

        with quiet():
            file.write_bytes(quantizer.Quantizer(model, recipe.dynamic_wi8_afp32()).quantize().quantized_model)
    else:
        with_int8_operators(write(trained, 'onnx', tmp_path / 'net.onnx', metadata=False))
        if form == 'ort':
            write_ort(onnx.load(tmp_path / 'net.onnx'), file, {})
        else:
            import openvino

            openvino.save_model(openvino.convert_model(tmp_path / 'net.onnx'), file)
    with pytest.raises(ValueError, match='an int8 file without metadata; --input normalized or pixels'):
        ExportedClassifier(config, file)
    assert ExportedClassifier(config, file, 'normalized').takes == 'normalized'


def with_int8_operators(path):
    """The file with its input through QuantizeLinear and back, as in one of a quantizer."""
    proto = onnx.load(path)
    graph = proto.graph
    for name, value in (('s', 0.05), ('z', 128)):
        kind = 1 if name == 's' else 2
        graph.initializer.append(onnx.helper.make_tensor(name, kind, [], [value]))
    for node in graph.node:
        node.input[:] = ['dq' if name == 'image' else name for name in node.input]
    graph.node.insert(0, onnx.helper.make_node('DequantizeLinear', ['q', 's', 'z'], ['dq']))
    graph.node.insert(0, onnx.helper.make_node('QuantizeLinear', ['image', 's', 'z'], ['q']))
    onnx.save(proto, path)


def test_mistakes_are_one_line(trained, run_tool, tmp_path):
    good = write(trained, 'onnx', tmp_path / 'good.onnx')
    int8 = write(trained, 'onnx', tmp_path / 'int8.onnx', metadata=False)
    with_int8_operators(int8)
    torch.save(dict(a=1), tmp_path / 'weights.pt')
    (tmp_path / 'text.ort').write_text('no flatbuffer')
    (tmp_path / 'mac.mlpackage').mkdir()
    other = write(trained, 'onnx', tmp_path / 'size.onnx')
    cases = [
        ((int8,), 'int8 file without metadata; --input'),
        ((good, '--input', 'pixels'), 'takes normalized images, as its metadata say, not pixels'),
        ((tmp_path / 'none.pte',), 'none.pte: no such file'),
        ((tmp_path / 'text.ort',), 'text.ort'),
        ((tmp_path / 'mac.mlpackage',), 'CoreML runs on macOS alone'),
        ((good, '--launcher', 'pytorch'), 'exported file is measured in one process'),
        ((trained[0], '--against', trained[0]), 'for exported files'),
        ((good, 'model.head.num_classes=7'), 'has 10 classes, the config has 7'),
        (
            (other, 'test_dataloader.dataset.pipeline.1.scale=(40,40)'),
            'takes images of 3 x 32 x 32 pixels, these',
        ),
    ]
    for (file, *arguments), message in cases:
        options = [*trained[1], *(argument for argument in arguments if '=' in str(argument))]
        flags = [argument for argument in arguments if '=' not in str(argument)]
        code, text = run_tool('test', TINY, file, *flags, '--work-dir', tmp_path / 'log', *options)
        assert code == 1, (file, text)
        assert message in only_line(text), (file, text)


def test_classes_of_another_order_are_refused(trained, run_tool, tmp_path):
    file = write(trained, 'onnx', tmp_path / 'net.onnx')
    proto = onnx.load(file)
    for entry in proto.metadata_props:
        if entry.key == 'labels':
            entry.value = json.dumps(['1', '0', *map(str, range(2, 10))])
    onnx.save(proto, file)
    code, text = run_tool('test', TINY, file, '--work-dir', tmp_path / 'log', *trained[1])
    assert code == 1, text
    assert "class 0 is '1', in the config it is '0'" in only_line(text)
