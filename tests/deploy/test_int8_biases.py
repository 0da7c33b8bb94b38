"""Int8 of channels whose weights are next to nothing and whose biases are not: they fit int32, in every format."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from test_int8_formats import PACKAGES, written
from test_quantization import SE_BLOCKS, images, int8_file, small_classifier

from mobileone_ext.deploy.formats import FORMATS
from mobileone_ext.deploy.quantization import Options
from mobileone_ext.deploy.quantization.calibrate import INPUT, POOLED, quantize
from mobileone_ext.deploy.quantization.chain import layers_of
from mobileone_ext.deploy.runtime import open_network

pytestmark = pytest.mark.filterwarnings('ignore')

PLAIN = dict(equalize=False, compensate=False, correct_bias=False)
CASES = {
    'next to nothing': (dict(weight=1e-9), {}),
    'nothing': (dict(weight=0.0), {}),
    'the whole stem': (dict(weight=0.0, every=1, layers=(0,)), {}),  # all that follows has one input for every image
    'all of it': (dict(weight=1e-30, bias=100.0, every=1), {}),
    'no inputs': (dict(weight=0.0, bias=0.0, every=1, layers=(0, 1, 2)), {}),  # their grid is as fine as grids get
    'with SE': (dict(weight=1e-9, se_blocks=SE_BLOCKS), {}),
    'classifier': (dict(weight=1e-9, bias=20.0, layers=(-1,)), {}),
    'nothing fitted': (dict(weight=1e-9), PLAIN),
    'bias corrected': (dict(weight=1e-9), dict(PLAIN, correct_bias=True)),
    'by layer': (dict(weight=0.0, every=1, layers=(2, 3)), dict(per_channel=False)),
    '8 bits': (dict(weight=1e-9), dict(weight_bits=8)),
    'one in float': (dict(weight=1e-9), dict(keep=('backbone.stage2.1',))),
}


@torch.no_grad()
def broken_classifier(weight, bias=0.5, every=3, layers=None, se_blocks=(0, 0, 0, 0)):
    """Every third channel's weights are multiplied by ``weight``, its bias is ``bias``, of one sign or the other."""
    model = small_classifier(se_blocks)
    chain = layers_of(model)
    for layer in chain if layers is None else [chain[index] for index in layers]:
        channels = layer.linear.bias[::every]
        layer.linear.weight[::every] *= weight
        channels.copy_(bias * (-1.0) ** torch.arange(len(channels)))
    return model


def opened(form, int8, folder):
    if form in PACKAGES:
        return open_network(written(form, int8, folder), threads=1)
    path = folder / f'int8{FORMATS[form].suffixes[0]}'
    int8_file(None, int8, path)
    return open_network(path)


def sources(int8):
    """Each int8 layer and the scale of the grid that its inputs lie on."""
    *convolutions, head = layers_of(int8.model)
    names = [INPUT, *(layer.name for layer in convolutions[:-1]), POOLED]
    for layer, name in zip([*convolutions, head], names):
        if layer.name in int8.weight_scales:
            yield layer, np.float64(int8.qparams[name].scale)


@torch.no_grad()
@pytest.mark.parametrize(
    ('case', 'form'),
    [
        *((case, 'onnx') for case in CASES),
        *(
            pytest.param(case, 'openvino', marks=[pytest.mark.slow] if case not in ('all of it', 'with SE') else ())
            for case in CASES
        ),
        *((case, form) for case in ('next to nothing', 'by layer') for form in PACKAGES),  # half a minute each
    ],
)
def test_file_computes_what_float64_does(case, form, tmp_path):
    network, options = CASES[case]
    model, x = broken_classifier(**network), images()
    int8 = quantize(model, x, Options(**options))
    actual, expected = opened(form, int8, tmp_path)(x.numpy()), model.double()(x.double()).numpy()
    largest = np.abs(expected).max()
    # With ordinary weights it is off by up to 0.03, by 0.06 where sums saturate; with cut biases by 0.4 and more.
    assert np.abs(actual - expected).max() < 0.07 * largest


@torch.no_grad()
@pytest.mark.parametrize('case', CASES)
def test_no_sum_leaves_int32(case):
    """By Python's integers, whatever the inputs are: the bias, and with it every sum of products."""
    network, options = CASES[case]
    int8 = quantize(broken_classifier(**network), images(), Options(**options))
    for layer, input_scale in sources(int8):
        scales = int8.weight_scales[layer.name].double().numpy()
        weights = layer.linear.weight.double().flatten(1).numpy() / scales[:, None]
        biases = layer.linear.bias.double().numpy() / (input_scale * scales)
        assert np.isfinite(weights).all() and np.abs(weights).max() < 127.5
        for row, bias in zip(np.round(weights).astype(int).tolist(), biases.tolist()):
            assert abs(round(bias)) + 255 * sum(map(abs, row)) < 2**31, layer.name


@torch.no_grad()
def test_stored_biases_are_the_networks(tmp_path):
    """The int32 of a file times its scale, in float64, against the network's bias; without a zero point."""
    int8 = quantize(broken_classifier(1e-9), images())
    graph = int8_file(None, int8, tmp_path / 'int8.onnx').graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    pairs = [node for node in graph.node if node.op_type == 'DequantizeLinear']
    of_biases = [node for node in pairs if node.input[0] in stored and stored[node.input[0]].dtype == np.int32]
    assert len(of_biases) == len(layers_of(int8.model)) and {len(node.input) for node in of_biases} == {2}
    assert {len(node.input) for node in pairs if node not in of_biases} == {3}
    for layer, input_scale in sources(int8):
        name = 'fc.bias' if layer.name == 'head.fc' else f'{layer.name}.branch_reparam.bias'
        step = input_scale * int8.weight_scales[layer.name].double().numpy()
        assert stored[f'{name}_q'].dtype == np.int32
        apart = np.abs(stored[f'{name}_q'].astype(np.float64) * step - layer.linear.bias.double().numpy())
        assert (apart <= 0.51 * step).all(), name


@torch.no_grad()
def test_layers_that_are_equal_have_weights_of_their_own(tmp_path):
    """torch's exporter stores equal tensors once."""
    model = small_classifier()
    for layer in layers_of(model):
        layer.linear.bias.fill_(0.25)
    chain = layers_of(model)
    chain[8].linear.weight.copy_(chain[6].linear.weight)
    int8 = quantize(model, images(), Options(equalize=False, compensate=False, correct_bias=False))
    proto = int8_file(None, int8, tmp_path / 'int8.onnx')
    assert 'Identity' not in {node.op_type for node in proto.graph.node}
    actual, expected = open_network(tmp_path / 'int8.onnx')(images().numpy()), int8(images()).numpy()
    assert np.quantile(np.abs(actual - expected) / np.abs(expected).max(), 0.9) < 0.02
