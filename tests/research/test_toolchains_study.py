"""The study of other quantizers: what is run, what is kept, what a missing one says, and the simulated ones."""

import copy
import sys

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT, TINY, data_options, only_line
from onnx import numpy_helper
from PIL import Image

sys.path.insert(0, str(ROOT / 'tests' / 'deploy'))

from test_prepare import tiny_checkpoint
from test_quantization import images, small_classifier

from mobileone_ext.data.pixels import Normalize
from mobileone_ext.deploy.quantization.chain import layers_of
from mobileone_ext.deploy.quantization.qdq import insert_qdq
from mobileone_ext.metadata import IMAGENET_MEAN, IMAGENET_STD
from research.integers import study as integers
from research.paired import estimate, losses
from research.toolchains import advanced, layers, quantizers, study
from research.training import read_rows


def test_every_network_meets_every_quantizer():
    arms = study.arms()
    assert len(set(arms)) == len(arms) == 3 * sum(len(item.scales) for item in study.QUANTIZERS.values())
    assert study.arms(['raw'], ['openvino']) == [('raw', 'OpenVINO NNCF', scales) for scales in ('channel', 'tensor')]
    with pytest.raises(ValueError, match='--quantizers tensorrt: part of none of these names'):
        study.arms(None, ['tensorrt'])
    with pytest.raises(ValueError, match='--networks cooked: allowed are raw, prepared, snapped'):
        study.arms(['cooked'])


def test_missing_quantizer_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'nncf', None)
    quantizer = quantizers.QUANTIZERS['OpenVINO NNCF']
    with pytest.raises(ValueError, match=r'NNCF is not installed .*: pip install nncf$'):
        study.build(quantizer, 'OpenVINO NNCF', small_classifier(), images(2), 'channel', tmp_path)


@pytest.mark.parametrize('per_channel', [True, False])
def test_simulated_weights_have_127_steps(per_channel, tmp_path):
    model = small_classifier()
    rounded = quantizers.coreml_weights(model, images(2), per_channel, tmp_path)
    weight = np.asarray(model.head.fc.weight.detach())
    steps = np.abs(weight).max(1, keepdims=True) / 127 if per_channel else np.abs(weight).max() / 127
    np.testing.assert_allclose(rounded.fc.weight.numpy(), np.round(weight / steps) * steps, rtol=1e-5, atol=1e-7)


def test_activations_alone_leave_the_weights(tmp_path):
    model = small_classifier()
    simulated = quantizers.activations_alone('minmax')(model, images(4), True, tmp_path)
    for ours, theirs in zip(layers_of(simulated.model), layers_of(model)):
        torch.testing.assert_close(ours.linear.weight, theirs.linear.weight, rtol=0, atol=0)
    assert len(simulated.qparams) == len(layers_of(model)) + 1  # the image, each map, the pooled one
    assert 0 < (simulated(images(4)) - model(images(4))).abs().max() < 0.3 * model(images(4)).abs().max()


def test_other_ranges_of_onnxruntime(tmp_path):
    """Percentiles leave out the one value that is far beyond all others, which min-max takes for the end."""
    model, photos = small_classifier(), images(20)
    photos[7, 0, 3, 3] = 200
    scales = []
    for build in (quantizers.onnxruntime_static, advanced.onnxruntime_options('Percentile')):
        build(model, photos, True, tmp_path)
        stored = {item.name: item for item in onnx.load(tmp_path / 'int8.onnx').graph.initializer}
        scales.append(float(numpy_helper.to_array(stored['image_scale'])))
    assert scales[0] == pytest.approx(float(photos.max() - photos.min()) / 255, rel=0.01)
    assert scales[1] < 0.5 * scales[0]


def test_onnxruntime_equalizes_with_another_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'neural_compressor', None)
    name = 'onnxruntime: SmoothQuant 0.5'
    with pytest.raises(ValueError, match='not installed .*: pip install onnxruntime neural-compressor$'):
        study.build(study.QUANTIZERS[name], name, small_classifier(), images(2), 'channel', tmp_path)


@torch.no_grad()
def test_what_is_nearly_nothing_becomes_nothing():
    """A channel of which only the bias is left, as Apple's S0 has some; what the network computes stays."""
    model = small_classifier()
    layer = layers_of(model)[1].linear
    layer.weight[0] = 1e-24 * layer.weight[0].sign()
    kept, expected = copy.deepcopy(model), model(images(4))
    dropped = advanced.without_tiny_weights(model)
    weight = layers_of(dropped)[1].linear.weight
    assert not weight[0].any() and weight[1:].equal(layer.weight[1:]) and layer.weight[0].all()
    torch.testing.assert_close(dropped(images(4)), expected, rtol=0, atol=0)
    assert all(one.equal(other) for one, other in zip(model.state_dict().values(), kept.state_dict().values()))


def test_pixels_are_written_as_they_were_read(tmp_path):
    pixels = torch.randint(0, 256, (3, 3, 8, 6)).float()
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    advanced.write_pixels(normalize(pixels), tmp_path / 'photos')
    files = sorted((tmp_path / 'photos').iterdir())
    found = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), pixels.numpy())


@torch.no_grad()
def test_onnxruntime_saturates_on_no_processor(tmp_path):
    """Neighboring weights at the grid's end: without VNNI their products leave 16 bits."""
    model = small_classifier()
    for layer in layers_of(model)[:-1]:
        if not layer.is_depthwise:
            layer.linear.weight.uniform_(0.9, 1).div_(layer.linear.weight[0].numel())
    photos = images(8).abs() + 1
    actual, expected = quantizers.onnxruntime_static(model, photos, True, tmp_path)(photos), model(photos)
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_layer_alone():
    model, x = small_classifier(), images(8)
    rows = layers.costs(model, x, x)
    assert [row['layer'] for row in rows] == [layer.name for layer in layers_of(model)]
    assert all(row['weights'] > 0 for row in rows) and rows[-1]['activations'] == 0  # the logits stay in float
    rounded = copy.deepcopy(model)
    weight = rounded.head.fc.weight.data
    scale = weight.abs().amax(1, keepdim=True) / 127
    weight.copy_((weight / scale).round() * scale)
    actual, expected = (network(x).detach().softmax(1) for network in (rounded, model))
    divergence = float((expected * (expected / actual).log()).sum(1).mean())
    assert rows[-1]['weights'] == pytest.approx(divergence, rel=0.05, abs=1e-7)
    assert layers.table(rows, 2).count('\n') == 4


@pytest.mark.filterwarnings('ignore')
def test_rows_are_kept_and_the_table_has_them(digits, run_tool, tmp_path):
    tiny_checkpoint(tmp_path / 'net.pth')
    folder = next(path for path in digits.rglob('*') if path.is_dir() and list(path.glob('*/*.png')))
    arguments = ('research.toolchains', TINY, tmp_path / 'net.pth', folder, tmp_path / 'out', '--num-photos', 20)
    options = ('--cfg-options', *data_options(digits))
    code, text = run_tool(*arguments, '--quantizers', 'coreml', '--networks', 'raw', 'snapped', *options)
    assert code == 0, text
    rows = read_rows(tmp_path / 'out' / 'rows.csv')
    assert [(row['network'], row['scales']) for row in rows] == [
        ('float', ''),
        *((network, scales) for scales in ('channel', 'tensor') for network in ('raw', 'snapped')),
    ]
    assert rows[0]['flips'] == '0' and rows[0]['num_images'] == rows[-1]['num_images']
    cell = f'{rows[1]["top1"]} ({rows[1]["flips"]}); {estimate(losses(rows[1]))}'
    assert f'| CoreML weights (simulated) | channel | {cell} | |' in text
    (tmp_path / 'net.pth').unlink()  # nothing is computed again
    assert run_tool(*arguments, '--quantizers', 'coreml', '--networks', 'raw', *options)[0] == 0
    code, text = run_tool(*arguments, '--quantizers', 'tensorrt', *options)
    assert code == 1 and '--quantizers tensorrt' in only_line(text)


@pytest.mark.filterwarnings('ignore')
def test_other_integers_are_the_same_numbers():
    from mobileone_ext.deploy.export import DeployNet
    from mobileone_ext.deploy.formats.base import Request
    from mobileone_ext.deploy.formats.onnx import onnx_proto
    from mobileone_ext.deploy.quantization import Options
    from mobileone_ext.deploy.quantization.calibrate import quantize

    int8 = quantize(small_classifier(), images(8), Options())
    net = DeployNet(int8.model)
    proto = insert_qdq(onnx_proto(net, torch.zeros(2, 3, 64, 64), Request(opset=19)), int8)
    unsigned, signed = integers.with_unsigned_weights(proto), integers.with_signed_activations(proto)

    def types(content):
        return {item.data_type for item in content.graph.initializer}

    assert 3 not in types(unsigned) and 2 not in types(signed) and {2, 3} <= types(proto)  # INT8, UINT8
    zero_points = [item for item in unsigned.graph.initializer if item.name.endswith('weight_zero_point')]
    assert {int(value) for item in zero_points for value in numpy_helper.to_array(item).flat} == {128}
    import onnx.reference

    image = images(1).numpy()
    expected, *actual = (
        onnx.reference.ReferenceEvaluator(content).run(None, {'image': image})[0]
        for content in (proto, unsigned, signed)
    )
    for outputs in actual:
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
