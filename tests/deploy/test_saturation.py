"""16-bit sums of products: the simulation against integers and against a runtime that saturates; files that don't."""

import dataclasses
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_quantization import SE_BLOCKS, chosen_scales, images, int8_file, small_classifier

from mobileone_ext.deploy.quantization import Options, agreement, rounding
from mobileone_ext.deploy.quantization.calibrate import excess, quantize
from mobileone_ext.deploy.quantization.chain import layers_of
from mobileone_ext.deploy.quantization.rounding import neighbors_sum
from mobileone_ext.deploy.runtime import open_network


def saturated_sum(x, weight):
    """What ``pmaddubsw`` and a 32-bit sum make of x (P, I) and weight (O, I), one pair after the other."""
    actual = np.zeros((len(x), len(weight)), np.int64)
    for p in range(len(x)):
        for o in range(len(weight)):
            products = [int(a) * int(b) for a, b in zip(x[p], weight[o])]
            for first in range(0, len(products), 2):
                actual[p, o] += min(max(sum(products[first : first + 2]), -32768), 32767)
    return actual


@pytest.mark.parametrize('inputs', [1, 8, 9])
def test_excess_is_what_saturation_takes_away(inputs):
    generator = np.random.default_rng(inputs)
    x, weight = generator.integers(0, 256, (20, inputs)), generator.integers(-128, 128, (30, inputs))
    x[0], weight[0], weight[1] = 255, 127, -128
    expected = x @ weight.T - saturated_sum(x, weight)
    actual = excess(torch.tensor(x).float(), torch.tensor(weight).float())
    np.testing.assert_array_equal(actual.numpy(), expected)
    assert (expected != 0).any() == (inputs > 1)


def test_what_neighbors_may_be_together():
    weight = torch.tensor([[100.0, 28.0, -90.0, -39.0, 0.0], [127.0, -127.0, 1.0, 5.0, -3.0]])
    assert neighbors_sum(weight).tolist() == [129, 127]
    assert 255 * 128 <= 32767 < 255 * 129


@pytest.mark.parametrize('compensate', [False, True])
@pytest.mark.parametrize('per_channel', [False, True])
def test_weights_in_pairs_cannot_saturate(per_channel, compensate):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 6, 33, generator=generator, dtype=torch.float64) ** 3  # a few are large
    weight[0, 0, 4:6], weight[0, 1, 7:9] = 20, -20
    inputs = torch.randn(1, 500, 33, generator=generator, dtype=torch.float64).abs()
    second = inputs.transpose(1, 2) @ inputs / 500
    scales = chosen_scales(weight, second, per_channel, in_pairs=True)
    if compensate:
        rounded = rounding.round_with_compensation(weight, second, scales, in_pairs=True)
    else:
        rounded = rounding.to_steps(weight, scales, in_pairs=True)
    integers = rounded / scales[..., None]
    torch.testing.assert_close(integers, integers.round())
    assert 100 < neighbors_sum(integers.round()).max() <= 128
    scales = chosen_scales(weight, second, per_channel)
    assert neighbors_sum(rounding.to_steps(weight, scales) / scales[..., None]).max() > 128


def test_weights_that_fit_are_rounded_to_nearest():
    weight = torch.tensor([[[1.4, -127.0, 100.2, 28.4, 60.0]]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    torch.testing.assert_close(rounding.to_steps(weight, one, in_pairs=True), weight.round())
    crowded = torch.tensor([[[127.0, 100.0, -90.0, -90.0]]], dtype=torch.float64)
    assert rounding.to_steps(crowded, one, in_pairs=True).tolist() == [[[127, 1, -90, -38]]]


@torch.no_grad()
def hard_classifier(se_blocks):
    """Neighboring weights alike: in 8 bits most large pairs saturate; logits far enough apart to tell."""
    model = small_classifier(se_blocks)
    for layer in layers_of(model):
        if not layer.is_depthwise:
            weight = layer.linear.weight
            even = weight.shape[1] // 2 * 2
            weight[:, 1:even:2] = weight[:, 0:even:2]
    model.head.fc.weight *= 10
    return model


@pytest.fixture(scope='module', params=[[0] * 4, SE_BLOCKS], ids=['plain', 'SE'])
def quantized(request):
    """The same classifier in 7 and in 8 bits, and its calibration images."""
    model, x = hard_classifier(request.param), images()
    return model, {bits: quantize(model, x, Options(weight_bits=bits)) for bits in (7, 8)}, x


@torch.no_grad()
def test_a_dense_layer_saturates_as_integers_do(quantized):
    """Padding, stride and kernel of the stem, channels of the rest, against one pair after the other."""
    _, by_bits, x = quantized
    int8 = dataclasses.replace(by_bits[8], saturates=True)
    stem, head = layers_of(int8.model)[0], layers_of(int8.model)[-1]
    grid = int8.qparams['input']
    rounded = grid.apply(x[:1])
    q = (rounded / grid.scale).round() + grid.zero_point
    padded = torch.nn.functional.pad(q, (1, 1, 1, 1), value=grid.zero_point)
    weight = (stem.linear.weight / int8.weight_scales[stem.name].reshape(-1, 1, 1, 1)).round()
    outputs = stem.linear.weight.shape[0]
    actual = int8.sums(stem, rounded, 'input')
    for row, column in ((0, 0), (5, 9), (31, 31)):
        patch = padded[0, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        total = saturated_sum(
            patch.permute(1, 2, 0).reshape(1, -1).numpy(), weight.permute(0, 2, 3, 1).reshape(outputs, -1).numpy()
        )[0]
        expected = total - grid.zero_point * weight.flatten(1).sum(1).numpy()
        expected = expected * grid.scale * int8.weight_scales[stem.name].numpy() + stem.linear.bias.numpy()
        np.testing.assert_allclose(actual[0, :, row, column], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    grid = int8.qparams['pooled']
    features = grid.apply(torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) * grid.scale * 255)
    weight = head.linear.weight / int8.weight_scales['head.fc'][:, None]
    total = saturated_sum((features / grid.scale).round().numpy() + grid.zero_point, weight.round().numpy())
    total = total - grid.zero_point * weight.round().sum(1).numpy()
    expected = total * grid.scale * int8.weight_scales['head.fc'].numpy() + head.linear.bias.numpy()
    np.testing.assert_allclose(int8.sums(head, features, 'pooled'), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_eight_bits_saturate_and_seven_do_not(quantized):
    model, by_bits, x = quantized
    expected = model(x)
    scale = float(expected.abs().max())
    apart = {}
    for bits, int8 in by_bits.items():
        exact, saturated = int8(x), dataclasses.replace(int8, saturates=True)(x)
        apart[bits] = float((exact - saturated).abs().mean()) / scale
        assert float((exact - expected).abs().mean()) / scale < 0.1
        assert int8.fits_16_bits == (bits == 7)
    assert apart[7] == 0 and apart[8] > 0.05, apart


RUN = """
import sys, numpy, openvino
model = openvino.Core().read_model(sys.argv[1])
settings = dict(INFERENCE_PRECISION_HINT='f32', INFERENCE_NUM_THREADS=1)
numpy.save(sys.argv[3], openvino.Core().compile_model(model, 'CPU', settings)(numpy.load(sys.argv[2]))[0])
"""


@pytest.mark.skipif(platform.machine() not in ('x86_64', 'AMD64'), reason='other processors do not add in 16 bits')
@pytest.mark.filterwarnings('ignore')
def test_files_on_kernels_without_vnni(quantized, tmp_path):
    """oneDNN can be told not to use VNNI: the runtime then does on any x86 what an older processor makes it do."""
    _, by_bits, x = quantized
    np.save(tmp_path / 'x.npy', x.numpy())
    apart = {}
    for bits, int8 in by_bits.items():
        int8_file(None, int8, tmp_path / 'int8.onnx')
        arguments = [str(tmp_path / name) for name in ('int8.onnx', 'x.npy', 'y.npy')]
        environment = dict(os.environ, ONEDNN_MAX_CPU_ISA='AVX2')
        subprocess.run([sys.executable, '-c', RUN, *arguments], env=environment, check=True, capture_output=True)
        expected = int8(x).numpy()
        difference = np.abs(np.load(tmp_path / 'y.npy') - expected) / np.abs(expected).max()
        apart[bits] = float(np.quantile(difference, 0.9))
    assert apart[7] < 0.02 and apart[8] > 0.1, apart


@pytest.mark.parametrize(
    ('int8', 'file', 'expected'),
    [
        (0.0018, 0.0019, False),
        (0.0018, 0.0037, True),
        (0, 0.0009, False),
        (0, 0.0011, True),
        (0.01, float('nan'), True),
    ],
)
def test_how_far_a_file_may_be_from_the_simulation(int8, file, expected):
    measured = dict(int8=dict(divergence=int8), file=dict(divergence=file))
    assert agreement.differs(measured, 'file') == expected


@pytest.mark.filterwarnings('ignore')
def test_a_file_that_computes_something_else_is_told(quantized, tmp_path):
    model, by_bits, x = quantized
    saturating = dataclasses.replace(by_bits[8], saturates=True)

    measured = agreement.measure(model, by_bits[8], saturating, x)
    assert measured['file'] == pytest.approx(measured['saturating'])
    text = agreement.describe(measured)
    assert 'WARNING: on this machine the file does not compute' in text and 'it is another network' in text

    int8_file(model, by_bits[7], tmp_path / 'int8.onnx')
    network = open_network(tmp_path / 'int8.onnx')
    measured = agreement.measure(model, by_bits[7], lambda chunk: torch.from_numpy(network(chunk.numpy())), x)
    assert measured['saturating'] == dict(flips=0, divergence=0)
    assert agreement.describe(measured).startswith('on this machine the file computes what was calibrated')
    assert agreement.SUMS_FIT in agreement.describe(measured)
