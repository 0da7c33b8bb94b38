"""Int8 files of phones: integers and grids that stand in them are ours, and they compute what the simulation does."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import data_options, only_line
from test_quantization import SE_BLOCKS, images, save_digits_network, small_classifier

from mobileone_ext.deploy.formats import FORMATS, base
from mobileone_ext.deploy.formats.base import Request, load_format
from mobileone_ext.deploy.quantization import Options
from mobileone_ext.deploy.quantization.calibrate import quantize
from mobileone_ext.deploy.quantization.chain import layers_of
from mobileone_ext.deploy.quantization.qdq_torch import qdq_net
from mobileone_ext.deploy.runtime import open_network

PACKAGES = dict(litert='litert_torch', executorch='executorch')
NETWORKS = [([0] * 4, True, ()), ([0] * 4, False, ()), (SE_BLOCKS, True, ()), ([0] * 4, True, ('backbone.stage2.1',))]
pytestmark = pytest.mark.filterwarnings('ignore')


def written(form, int8, folder):
    """The file of ``int8`` in ``form``; skips where its packages are missing."""
    pytest.importorskip(PACKAGES[form], reason=f'format {form} is not installed')
    path = folder / f'int8{FORMATS[form].suffixes[0]}'
    scales = int8.weight_scales['head.fc']
    request = Request(form, 64, metadata=dict(precision='int8'), int8=True, classifier_scales=scales)
    load_format(form).write(qdq_net(int8, None, False, **FORMATS[form].pairs), images(1), path, request)
    return path


def stored_integers(layer, scales):
    """(O, I) int8 of a layer, inputs in the order row, column, channel."""
    weight = layer.linear.weight.movedim(1, -1).flatten(1) / scales[:, None]
    assert (weight - weight.round()).abs().max() < 1e-3
    return weight.round().to(torch.int8).numpy()


@torch.no_grad()
@pytest.mark.parametrize(('se_blocks', 'per_channel', 'keep'), NETWORKS)
@pytest.mark.parametrize('folded', [True, False])
def test_pairs_in_pytorch_compute_what_the_simulation_does(se_blocks, per_channel, keep, folded):
    int8 = quantize(small_classifier(se_blocks), images(), Options(per_channel=per_channel, keep=keep))
    actual, expected = qdq_net(int8, None, False, folded)(images()), int8(images())
    # A value half-way between two steps may go either way, by the last digit of a product: in few images, by one step.
    apart = ((actual - expected).abs().amax(1) / expected.abs().max()).sort().values
    assert apart[len(apart) * 3 // 4] < 1e-5 and apart[-1] < 0.01
    softmax = qdq_net(int8, None, True, folded)(images())
    torch.testing.assert_close(softmax, actual.softmax(1), atol=1e-5, rtol=0)
    own = torch.cat([qdq_net(int8, None, False, own_range=True)(image) for image in images().split(1)])
    assert 1e-5 < (own - expected).abs().max() / expected.abs().max() < 0.03


@pytest.mark.parametrize('form', PACKAGES)
@pytest.mark.parametrize(('se_blocks', 'per_channel', 'keep'), NETWORKS)
def test_file_computes_what_the_simulation_does(form, se_blocks, per_channel, keep, tmp_path):
    calibration = images()
    int8 = quantize(small_classifier(se_blocks), calibration, Options(per_channel=per_channel, keep=keep))
    network = open_network(written(form, int8, tmp_path), threads=1)
    assert network.int8 and network.fixed_batch and network.metadata['precision'] == 'int8'
    actual, expected = network(calibration.numpy()), int8(calibration).numpy()
    assert np.quantile(np.abs(actual - expected) / np.abs(expected).max(), 0.9) < 0.02
    assert (actual.argmax(1) != expected.argmax(1)).sum() <= 1


@pytest.mark.parametrize('per_channel', [True, False])
def test_litert_holds_our_integers_and_grids(per_channel, tmp_path):
    int8 = quantize(small_classifier(), images(), Options(per_channel=per_channel))
    path = written('litert', int8, tmp_path)
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    (graph,) = tree.subgraphs
    kinds = schema.BuiltinOperator
    layers, classifier = [], None
    for operator in graph.operators:
        code = tree.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs)]
        if kind in (kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D):
            layers.append(tensors)
        elif kind == kinds.DEQUANTIZE and tree.buffers[tensors[0].buffer].data is not None:
            classifier = tensors[0]
    *convolutions, head = layers_of(int8.model)
    assert len(layers) == len(convolutions) and classifier is not None

    def integers(tensor, dtype=np.int8):
        return np.asarray(tree.buffers[tensor.buffer].data, np.uint8).view(dtype)

    source = 'input'
    for layer, (image, weight, bias, output) in zip(convolutions, layers):
        scales, grid = int8.weight_scales[layer.name], int8.qparams[layer.name]
        assert {tensor.type for tensor in (image, weight, output)} == {schema.TensorType.INT8}
        assert (output.quantization.scale[0], output.quantization.zeroPoint[0]) == (grid.scale, grid.zero_point - 128)
        assert image.quantization.scale[0] == np.float32(int8.qparams[source].scale)
        assert np.array_equal(np.broadcast_to(weight.quantization.scale, scales.shape), scales.numpy())
        stored = integers(weight).reshape(weight.shape)
        stored = stored.reshape(-1, len(scales)).T if layer.is_depthwise else stored.reshape(len(scales), -1)
        assert np.array_equal(stored, stored_integers(layer, scales)), layer.name
        expected = layer.linear.bias.double() / (np.float64(int8.qparams[source].scale) * scales.double())
        assert np.abs(integers(bias, np.int32) - expected.detach().numpy()).max() <= 0.51
        source = layer.name
    scales = int8.weight_scales[head.name]
    assert np.array_equal(classifier.quantization.scale, scales.numpy())
    assert np.array_equal(integers(classifier).reshape(len(scales), -1), stored_integers(head, scales))
    assert graph.tensors[graph.inputs[0]].type == schema.TensorType.FLOAT32


def xnnpack_graph(path, folder):
    """The graph that XNNPACK is given by an ExecuTorch file, and the bytes of its constants."""
    from executorch.backends.xnnpack.serialization import xnnpack_graph_serialize as serialize
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    content = path.read_bytes()
    start = content.index(serialize.XNNHeader.EXPECTED_MAGIC) - 4
    assert content.count(serialize.XNNHeader.EXPECTED_MAGIC) == 1  # one delegate: all of the network
    header = serialize.XNNHeader.from_bytes(content[start : start + serialize.XNNHeader.EXPECTED_LENGTH])
    (folder / 'graph.fbs').write_bytes(serialize._get_schema_bytes())
    first = start + header.flatbuffer_offset
    (folder / 'graph.bin').write_bytes(content[first : first + header.flatbuffer_size])
    _flatc_decompile(str(folder), str(folder / 'graph.fbs'), str(folder / 'graph.bin'), ['--raw-binary'])
    return json.loads(re.sub(r'\binf\b', 'Infinity', (folder / 'graph.json').read_text())), content


@pytest.mark.parametrize('per_channel', [True, False])
def test_executorch_holds_our_integers_and_grids(per_channel, tmp_path):
    int8 = quantize(small_classifier(), images(), Options(per_channel=per_channel))
    graph, content = xnnpack_graph(written('executorch', int8, tmp_path), tmp_path)
    pairs = [value['xvalue_union'].get('quant_params') or {} for value in graph['xvalues']]
    grids = [(pair['scale'], pair['zero_point']) for pair in pairs if 'zero_point' in pair]
    for layer in layers_of(int8.model):
        scales = int8.weight_scales[layer.name]
        integers = stored_integers(layer, scales)
        integers = integers.T.copy() if layer.is_depthwise else integers
        assert scales.numpy().tobytes() in content and integers.tobytes() in content, layer.name
    for name, grid in int8.qparams.items():
        if name != 'pooled':
            # The graph as text has six places; the four bytes stand in the file.
            assert (round(grid.scale, 6), grid.zero_point - 128) in grids, name
            assert np.float32(grid.scale).tobytes() in content, name


@pytest.mark.parametrize('form', PACKAGES)
def test_tool_writes_it(form, digits, run_tool, tmp_path):
    pytest.importorskip(PACKAGES[form], reason=f'format {form} is not installed')
    save_digits_network(tmp_path / 'net.pth')
    out = tmp_path / f'int8{FORMATS[form].suffixes[0]}'
    calibration = next(path for path in digits.rglob('*') if path.is_dir() and list(path.glob('*/*.png')))
    code, text = run_tool(
        *('quantize', 'tests/configs/tiny_digits.py', tmp_path / 'net.pth', out, '--size', 32, '--calib', calibration),
        *('--num-calib', 20, '--normalize', '--softmax', '--evaluate', '--report', tmp_path / 'report.json'),
        *('--cfg-options', *data_options(digits)),
    )
    assert code == 0 and 'on this machine the file computes what was calibrated' in text, text
    accuracy = json.loads((tmp_path / 'report.json').read_text())['accuracy'][-1]
    assert accuracy['flips'] < 0.05 * accuracy['num_images']
    metadata = open_network(out).metadata
    assert (metadata['precision'], metadata['output']) == ('int8', 'probabilities')
    assert metadata['layout'] == ('NHWC' if form == 'litert' else 'NCHW')
    code, text = run_tool(
        *('test', 'tests/configs/tiny_digits.py', out, '--out', tmp_path / 'metrics.json'),
        *('--cfg-options', *data_options(digits)),
    )
    assert code == 0, text
    top1 = json.loads((tmp_path / 'metrics.json').read_text())['accuracy/top1']
    assert top1 == pytest.approx(accuracy['top1'], abs=1e-3)


@pytest.mark.parametrize(
    ('suffix', 'message'),
    [
        ('.tflite', "(No module named 'litert_torch'): pip install 'mobileone_ext[litert]'"),
        ('.pte', "(No module named 'executorch'): pip install 'mobileone_ext[executorch]'"),
    ],
)
def test_missing_package_is_named_before_the_work(suffix, message, run_tool, tmp_path, monkeypatch):
    find = base.importlib.util.find_spec
    missing = 'litert_torch', 'executorch'
    monkeypatch.setattr(base.importlib.util, 'find_spec', lambda name: None if name in missing else find(name))
    code, text = run_tool(
        *('quantize', 'tests/configs/tiny_digits.py', tmp_path / 'none.pth', tmp_path / f'out{suffix}'),
        *('--calib', tmp_path / 'none'),
    )
    assert code == 1 and only_line(text).endswith(message), text
    assert not list(tmp_path.iterdir())
