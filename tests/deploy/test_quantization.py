"""Int8: each formula against an independent truth, the ONNX file against the simulation, Apple's S0 against itself."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from conftest import data_options, only_line
from mmengine.config import Config
from PIL import Image

from mobileone_ext import (
    backbone,  # noqa: F401  registers it
    cli,
)
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy import export, fuse
from mobileone_ext.deploy.formats import FORMAT_OF_SUFFIX
from mobileone_ext.deploy.formats.base import Request, load_format
from mobileone_ext.deploy.quantization import Options, photos, rounding
from mobileone_ext.deploy.quantization import quantize as pipeline
from mobileone_ext.deploy.quantization.agreement import SUMS_FIT
from mobileone_ext.deploy.quantization.calibrate import Int8, quantize, sensitivity
from mobileone_ext.deploy.quantization.chain import (
    absorb_bias,
    channel_scales,
    equalize,
    largest_activations,
    layers_of,
)
from mobileone_ext.deploy.quantization.qdq import insert_qdq
from mobileone_ext.deploy.quantization.ranges import METHODS, choose_qparams, divergence, qparams_between
from mobileone_ext.deploy.runtime import open_network

SE_BLOCKS = [0, 1, 0, 1]


def small_classifier(se_blocks=(0, 0, 0, 0)):
    config = Config(
        dict(
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='mobileone_ext.MobileOne',
                    arch=dict(
                        num_blocks=[1, 2, 1, 1],
                        width_factor=[0.25, 0.25, 0.125, 0.125],
                        num_se_blocks=list(se_blocks),
                    ),
                ),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=10, in_channels=64),
            )
        )
    )
    model = fuse.build_model(config, 'fused')
    torch.manual_seed(0)
    for layer in layers_of(model):
        torch.nn.init.kaiming_normal_(layer.linear.weight)
        torch.nn.init.uniform_(layer.linear.bias, -0.3, 0.3)
    return model


def images(count=16, dtype=torch.float32):
    """Colored squares: unlike noise, they still differ after pooling."""
    squares = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return torch.nn.functional.interpolate(3 * squares, scale_factor=16)


def unevenness(model, x):
    """The largest channel over the median one that is ever active, for each layer."""
    return [float(a.max() / a[a > 0].median()) for a in largest_activations(layers_of(model), x)]


@torch.no_grad()
@pytest.mark.parametrize('balance', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('se_blocks', [[0] * 4, SE_BLOCKS])
def test_equalization_keeps_the_function(se_blocks, balance):
    model = small_classifier(se_blocks).double()
    x = images(dtype=torch.float64)
    before = model(x)
    unequal = unevenness(model, x)
    equalize(model, x, balance, floor=0.5)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    if balance == 1:
        assert max(unevenness(model, x)) < 1 + 1e-6 < min(unequal)


def test_scales_of_channels():
    uneven, even = torch.tensor([0.0, 0.1, 2.0, 2.0, 8.0]), torch.ones(5)
    # What is quiet on the calibration images may be loud on others: no activation counts as less than the median.
    torch.testing.assert_close(
        channel_scales(uneven, even, even, 1.0, floor=1.0), torch.tensor([1.0, 1.0, 1.0, 1.0, 4.0])
    )
    expected = torch.tensor([0.5, 0.5, 1.0, 1.0, 4.0])
    torch.testing.assert_close(channel_scales(uneven, even, even, 1.0, floor=0.5), expected)
    torch.testing.assert_close(channel_scales(uneven, even, even, 0.5, floor=0.5), expected.sqrt())
    torch.testing.assert_close(channel_scales(even, uneven, even, 0.0, floor=1.0), expected.sqrt())
    torch.testing.assert_close(channel_scales(even, even, uneven, 0.0, floor=1.0), 1 / expected.sqrt())


@torch.no_grad()
def test_quiet_channels_stay_quiet():
    """A quarter of the channels are: none of them is made as loud as the others, unless the floor is low."""
    model = small_classifier()
    for layer in layers_of(model)[:-1]:
        layer.linear.weight[::4] *= 0.1
        layer.linear.bias[::4] *= 0.1

    def quiet(floor):
        int8 = quantize(model, images(), Options(balance=1.0, floor=floor))
        loudest = largest_activations(layers_of(int8.model), images())[2]
        return float(loudest[::4].max() / loudest.median())

    assert quiet(1.0) < 0.5 < 0.8 < quiet(0.01)


@torch.no_grad()
def test_absorbing_bias_keeps_the_function_and_lowers_activations():
    model = small_classifier().double()
    depthwise = layers_of(model)[1].linear
    depthwise.bias += 1000
    x = images(dtype=torch.float64)
    before = model(x)
    absorb_bias(model, x)
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
    assert float(largest_activations(layers_of(model), x)[1].max()) < 900


def samples(inputs=5, outputs=3, groups=2, count=400):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(groups, count, inputs, generator=generator, dtype=torch.float64) @ mixing + 3
    weight = torch.randn(groups, outputs, inputs, generator=generator, dtype=torch.float64)
    y = x @ weight.transpose(1, 2) + torch.randn(groups, count, outputs, generator=generator, dtype=torch.float64)
    return x, y, weight


def test_samples_of_outlying_energy_count_less():
    outputs = torch.tensor([[[1.0], [-1.0], [0.0], [1.0], [8.0]], [[1.0], [1.0], [0.0], [-1.0], [0.0]]])
    expected = torch.tensor([8.0, 8.0, 8.0, 8.0, 1.0]) / 33  # its energy is 32 times the median, 4 are allowed
    torch.testing.assert_close(rounding.sample_weights(outputs), expected[None, :, None])
    silent = torch.zeros(1, 4, 2)
    torch.testing.assert_close(rounding.sample_weights(silent), torch.full((1, 4, 1), 0.25))


def test_least_squares_and_bias_equal_numpys():
    x, y, weight = samples()
    y[:, :3] *= 100
    energy = y.square().mean((0, 2)).numpy()
    root = np.sqrt(np.minimum(1, 4 * np.sort(energy)[199] / energy))[:, None]
    assert (root[3:] > 10 * root[:3].max()).mean() > 0.9
    stats = rounding.moments(x, y)
    actual = rounding.least_squares(torch.zeros_like(weight), stats, ridge=1e-12)
    bias = rounding.fitted_bias(actual, stats).reshape(2, 3)
    for group in range(2):
        with_one = np.concatenate([x[group].numpy(), np.ones((400, 1))], 1)
        expected = np.linalg.lstsq(root * with_one, root * y[group].numpy(), rcond=None)[0]
        np.testing.assert_allclose(actual[group].T, expected[:-1], atol=1e-6)
        np.testing.assert_allclose(bias[group], expected[-1], atol=1e-6)
    held = rounding.least_squares(weight + 1, stats, ridge=1e12)
    torch.testing.assert_close(held, weight + 1, rtol=0, atol=1e-6)


def test_compensated_rounding_beats_rounding_to_nearest():
    x, y, weight = samples(inputs=12, outputs=8)
    moments = rounding.moments(x, y).inputs
    scales = weight.abs().amax(2) / 7
    nearest = rounding.to_steps(weight, scales)
    rounded = rounding.round_with_compensation(weight, moments, scales)
    torch.testing.assert_close(rounded, rounding.to_steps(rounded, scales))

    def error(candidate):
        change = candidate - weight
        return float(((change @ moments) * change).sum())

    assert error(rounded) < 0.8 * error(nearest)
    independent = torch.eye(12, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(rounding.round_with_compensation(weight, independent, scales), nearest)


def chosen_scales(weight, moments, per_channel, offsets=0.0, input_scale=1.0, **options):
    offsets = torch.full(weight.shape[:2], offsets, dtype=torch.float64)
    return rounding.choose_scales(weight, moments, offsets, input_scale, per_channel, **options)


def test_chosen_weight_scales():
    weight = torch.tensor([[[1.0, 127.0], [3.0, -1.0]]], dtype=torch.float64)
    moments = torch.eye(2, dtype=torch.float64)[None]
    torch.testing.assert_close(
        chosen_scales(weight, moments, True, clips=(1.0,)), torch.tensor([[1.0, 3 / 127]]).double()
    )
    torch.testing.assert_close(chosen_scales(weight, moments, False, clips=(1.0,)), torch.tensor([[1.0, 1.0]]).double())
    # 127 lies where no input varies: a scale that cuts it off loses nothing and rounds 1.49 better.
    weight = torch.tensor([[[1.49, 127.0]]], dtype=torch.float64)
    moments = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert float(chosen_scales(weight, moments, True)[0, 0]) < 0.8
    weight = torch.tensor([[[1.49, 127.0], [1.0, 50.0]]], dtype=torch.float64)
    assert chosen_scales(weight, moments, False).unique().numel() == 1


@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize('per_channel', [True, False])
@pytest.mark.parametrize('in_pairs', [True, False])
def test_a_bias_has_at_most_half_of_int32(in_pairs, per_channel, sign):
    """Of three channels one has weights that matter, one next to none, one none; the bias is 4, an input's step 0.5."""
    weight = torch.tensor([[[1.27, 0.0], [1e-20, -1e-20], [0.0, 0.0]]], dtype=torch.float64)
    scales = chosen_scales(
        weight, torch.eye(2, dtype=torch.float64)[None], per_channel, 4.0 * sign, 0.5, in_pairs=in_pairs, clips=(1.0,)
    )
    least = 4 / (0.5 * 2**30) if per_channel else 0.01
    expected = torch.tensor([[0.01, least, least]], dtype=torch.float64)
    torch.testing.assert_close(scales, expected, rtol=1e-12, atol=0)


def test_scale_and_zero_point_of_an_activation():
    grid = qparams_between(-1.0, 4.1)
    assert (round(grid.scale, 6), grid.zero_point) == (0.02, 50)
    x = torch.tensor([-9.0, -1.0, 0.0, 0.011, 4.1, 9.0])
    torch.testing.assert_close(grid.apply(x), torch.tensor([-1.0, -1.0, 0.0, 0.02, 4.1, 4.1]))
    assert qparams_between(0.5, 2.55) == (np.float32(0.01), 0)


def test_range_methods():
    x = torch.rand(100, 2, 50, 50, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = 2.0
    importance = torch.ones(2)
    highest = {name: method(x, importance).scale * 255 for name, method in METHODS.items()}
    assert highest['minmax'] == pytest.approx(2)
    assert 0.99 < highest['percentile'] < 1.01
    assert highest['mse'] < 1.4
    assert highest['entropy'] < 1.05


def test_zeros_do_not_narrow_the_range_of_entropy():
    x = torch.randn(50, 4, 30, 30, generator=torch.Generator().manual_seed(0))
    grids = [METHODS['entropy'](values, torch.ones(4)) for values in (x[x > 0].reshape(-1, 1), x.relu())]
    assert grids[0] == grids[1] and grids[0].scale * 255 > 2
    assert choose_qparams(torch.zeros(4, 2), torch.ones(2), 'entropy').scale > 0


def test_divergence_of_rounded_values():
    centers = np.arange(512) + 0.5
    even, grid = np.full(512, 7), qparams_between(0, 510)  # two bins a step
    assert divergence(even, centers, grid) == pytest.approx(0, abs=0.02)
    # Each pair of bins holds 3 and 1 where the step knows of 2 and 2.
    actual = divergence(np.tile([3, 1], 256), centers, qparams_between(0, 511))
    assert actual == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), abs=0.01)
    # 258 of 512 in one bin, which would hold one of 255.
    expected = 258 / 512 * np.log(258 / 512 * 255) + 254 / 512 * np.log(255 / 512)
    assert divergence(even, centers, qparams_between(0, 255)) == pytest.approx(expected, abs=1e-6)


def int8_file(model, int8, path):
    form = FORMAT_OF_SUFFIX[path.suffix]
    request = Request(form, metadata={'precision': 'int8'}, rewrite=lambda proto: insert_qdq(proto, int8))
    load_format(form).write(export.DeployNet(int8.model), torch.zeros(2, 3, 64, 64), path, request)
    return onnx.load(path) if form == 'onnx' else None


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('per_channel', [True, False])
@pytest.mark.parametrize(('se_blocks', 'keep'), [([0] * 4, ()), (SE_BLOCKS, ()), ([0] * 4, ('backbone.stage2.1',))])
def test_onnx_file_computes_what_the_simulation_does(se_blocks, keep, per_channel, tmp_path):
    model = small_classifier(se_blocks)
    calibration = images()
    int8 = quantize(model, calibration, Options(per_channel=per_channel, keep=keep))
    proto = int8_file(model, int8, tmp_path / 'int8.onnx')

    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    weights = {name for name in stored if name.endswith('weight_q')}
    assert len(weights) == len(layers_of(model)) - len(keep)
    assert all(stored[name] == 3 for name in weights)  # INT8
    actual = open_network(tmp_path / 'int8.onnx')(calibration.numpy())
    expected = int8(calibration).numpy()
    scale = np.abs(expected).max()
    # A value half-way between two steps may fall to either side, and what follows moves with it.
    assert np.quantile(np.abs(actual - expected) / scale, 0.9) < 0.02
    with torch.no_grad():
        assert np.abs(actual - model(calibration).numpy()).mean() / scale < 0.1


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('se_blocks', 'per_channel'), [([0] * 4, True), ([0] * 4, False), (SE_BLOCKS, True)])
def test_openvino_file_computes_what_the_simulation_does(se_blocks, per_channel, tmp_path):
    openvino = pytest.importorskip('openvino')
    model, calibration = small_classifier(se_blocks), images()
    int8 = quantize(model, calibration, Options(per_channel=per_channel))
    int8_file(model, int8, tmp_path / 'int8.xml')
    network = open_network(tmp_path / 'int8.xml')
    assert network.int8 and network.metadata['precision'] == 'int8'
    actual, expected = network(calibration.numpy()), int8(calibration).numpy()
    assert np.quantile(np.abs(actual - expected) / np.abs(expected).max(), 0.9) < 0.02
    stored = [
        node.get_data()
        for node in openvino.Core().read_model(tmp_path / 'int8.xml').get_ops()
        if node.get_type_name() == 'Constant' and node.get_element_type() == openvino.Type.i8
    ]
    largest = sorted(float(np.abs(values).max()) for values in stored if values.size > 1)
    assert len(largest) >= len(layers_of(model)) and largest[-1] == 127, largest


def test_ranges_are_chosen_as_asked():
    x = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = 10
    plain = dict(equalize=False, compensate=False, correct_bias=False)
    grids = [quantize(small_classifier(), x, Options(ranges=name, **plain)).qparams['input'] for name in METHODS]
    highest = dict(zip(METHODS, ((255 - grid.zero_point) * grid.scale for grid in grids)))
    assert highest['minmax'] == pytest.approx(10, abs=0.05)
    assert 5 < highest['mse'] < 9.9
    assert highest['percentile'] < 1.1


@torch.no_grad()
def test_balance_and_absorption_are_used_as_asked():
    model, x = small_classifier(), images()
    plain = dict(compensate=False, correct_bias=False, ranges='minmax')
    uneven = {b: max(unevenness(quantize(model, x, Options(balance=b, **plain)).model, x)) for b in (0.0, 1.0)}
    assert uneven[1.0] < 1.2 < uneven[0.0]

    name = 'backbone.stage1.0'
    layers_of(model)[1].linear.bias += 1000
    scales = [
        quantize(model, x, Options(equalize=False, absorb_bias=absorb, **plain)).qparams[name].scale
        for absorb in (False, True)
    ]
    assert scales[1] < 0.9 * scales[0]


@torch.no_grad()
def test_each_step_helps_a_hard_network():
    """Channels of very unequal range, as in trained depthwise networks: every step brings int8 nearer to float."""
    model = small_classifier()
    for layer, after in zip(layers_of(model), layers_of(model)[1:]):
        spread = torch.logspace(-1.5, 1.5, layer.linear.weight.shape[0])
        layer.linear.weight /= spread.reshape(-1, 1, 1, 1)
        layer.linear.bias /= spread
        axis = (-1, 1, 1, 1) if after.is_depthwise else (1, -1, 1, 1)[: after.linear.weight.dim()]
        after.linear.weight *= spread.reshape(axis)
    x = images(64)
    expected = model(x)
    options = dict(per_channel=False, equalize=False, compensate=False, correct_bias=False, ranges='minmax')
    errors = []
    for step in ('', 'equalize', 'correct_bias', 'compensate'):
        options.update({step: True} if step else {})
        actual = quantize(model, x[:48], Options(**options))(x)
        errors.append(float((actual - expected)[48:].abs().mean() / expected.std(0).mean()))
    assert all(after < 0.8 * before for before, after in zip(errors, errors[1:])), errors


def test_sensitivity_finds_the_layer_that_suffers():
    model = small_classifier()
    victim = 'backbone.stage4.1'
    layer = next(layer for layer in layers_of(model) if layer.name == victim)
    with torch.no_grad():
        layer.linear.weight[0, 0] = 1e4  # leaves the others no step of the grid
        layer.linear.bias[0] = -1e6  # and its own channel silent
    options = Options(per_channel=False, equalize=False, compensate=False)
    losses = sensitivity(model, images(8), options, images(8))
    assert losses[0].layer == victim and losses[0].cause == 'weights'
    assert losses[0].highest == -losses[0].lowest == pytest.approx(1e4, rel=1e-2) and losses[0].channel != 0
    assert {loss.layer for loss in losses} == {layer.name for layer in layers_of(model)}


def test_sensitivity_says_which_channel_takes_the_range_of_activations():
    """The one whose values are a thousand times those of the others, which the next layer hardly reads."""
    model, victim = small_classifier(), 'backbone.stage3.1'
    layer, after = (layer for name in (victim, 'backbone.stage4.0') for layer in layers_of(model) if layer.name == name)
    with torch.no_grad():
        layer.linear.weight[3] *= 1000
        layer.linear.bias[3] = layer.linear.bias[3].abs() * 1000 + 1000
        layer.linear.weight[5] = 0
        layer.linear.bias[5] = 0
        after.linear.weight[3] /= 1e5
    options = Options(equalize=False, compensate=False, ranges='minmax', weight_bits=8)
    loss = {loss.layer: loss for loss in sensitivity(model, images(8), options, images(8))}[victim]
    largest = largest_activations(layers_of(model), images(8))
    index = [layer.name for layer in layers_of(model)].index(victim)
    assert loss.cause == 'activations' and loss.lowest == 0
    assert loss.highest == pytest.approx(float(largest[index].detach().max()), rel=0.05) and loss.highest > 1000
    assert loss.channel not in (3, 5) and 0 < loss.share < 1


def test_sensitivity_on_one_image_is_refused():
    with pytest.raises(ValueError, match='half of the images .* two are needed'):
        sensitivity(small_classifier(), images(1), Options(), images(1)[1:])


def test_quantizing_leaves_the_model_alone():
    model = small_classifier()
    before = copy.deepcopy(model.state_dict())
    quantize(model, images(4))
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_a_layer_to_keep_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"'backbone\.stage9'.*head\.fc"):
        quantize(small_classifier(), images(1), Options(keep=('backbone.stage9',)))


def test_unrounded_network_simulates_itself():
    model = small_classifier(SE_BLOCKS)
    x = images(2)
    with torch.no_grad():
        torch.testing.assert_close(Int8(model)(x), model(x))


@pytest.mark.parametrize(
    ('flags', 'expected'),
    [
        ((), {}),
        (('--per-tensor',), dict(per_channel=False)),
        (('--no-equalize',), dict(equalize=False)),
        (('--balance', 0.3), dict(balance=0.3)),
        (('--absorb-bias',), dict(absorb_bias=True)),
        (('--no-bias-correction',), dict(correct_bias=False)),
        (('--round-to-nearest',), dict(compensate=False)),
        (('--ranges', 'percentile'), dict(ranges='percentile')),
        (('--weight-bits', 8), dict(weight_bits=8)),
        (('--keep', 'head.fc', 'backbone.stage0'), dict(keep=('head.fc', 'backbone.stage0'))),
    ],
)
def test_switches_of_the_tool(flags, expected, run_tool, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, 'run', lambda job: seen.append(job.options))
    code, text = run_tool('quantize', 'tests/configs/tiny_digits.py', 'in.pth', 'out.onnx', '--calib', '.', *flags)
    assert (code, seen) == (0, [Options(**expected)]), text


def save_digits_network(path):
    """Of tests/configs/tiny_digits.py, fused, not trained, and no map of it is all zeros."""
    model = fuse.build_model(cli.load_config('tests/configs/tiny_digits.py'), 'fused')
    for layer in layers_of(model):
        torch.nn.init.kaiming_normal_(layer.linear.weight)
    torch.save(model.state_dict(), path)


def test_tool_on_digits(digits, run_tool, tmp_path):
    """The table of steps, the file, the report; calibration images are the test set's, for want of others."""
    save_digits_network(tmp_path / 'net.pth')
    arguments = ('tests/configs/tiny_digits.py', tmp_path / 'net.pth', tmp_path / 'int8.onnx', '--size', 32)
    options = ('--cfg-options', *data_options(digits))
    calibration = next(path for path in digits.rglob('*') if path.is_dir() and list(path.glob('*/*.png')))
    code, text = run_tool(
        *('quantize', *arguments, '--calib', calibration, '--num-calib', 40, '--steps', '--sensitivity'),
        *('--keep', 'head.fc', '--softmax', '--normalize', '--report', tmp_path / 'report.json', *options),
    )
    assert code == 0, text
    report = json.loads((tmp_path / 'report.json').read_text())
    names = ['float', 'naive', '+ equalize', '+ ranges', '+ correct_bias', 'int8']
    assert [row['name'] for row in report['accuracy']] == names
    assert report['accuracy'][-1]['flips'] < 0.05 * report['accuracy'][-1]['num_images']
    assert 'head.fc' not in {loss['layer'] for loss in report['sensitivity']}
    metadata = open_network(tmp_path / 'int8.onnx').metadata
    assert (metadata['precision'], metadata['sums']) == ('int8', SUMS_FIT)
    assert 'on this machine the file computes what was calibrated' in text and SUMS_FIT in text
    assert report['agreement']['num_images'] == 40 and report['agreement']['fits_16_bits']

    code, text = run_tool(
        *('quantize', *arguments[:2], tmp_path / 'int8.xml', '--size', 32, '--calib', calibration),
        *('--num-calib', 20, *options),
    )
    assert code == 0 and 'on this machine the file computes what was calibrated' in text, text
    assert open_network(tmp_path / 'int8.xml').metadata['sums'] == SUMS_FIT
    code, text = run_tool('quantize', *arguments[:2], tmp_path / 'int8.bin', '--calib', calibration, *options)
    assert code == 1 and only_line(text).endswith(
        'int8.bin: an int8 file is named *.onnx or *.xml or *.tflite or *.pte'
    )
    code, text = run_tool('quantize', *arguments[:2], tmp_path / 'int8.param', '--calib', calibration, *options)
    assert code == 1 and "*.pte; ncnn's integers have no zero point" in only_line(text)

    code, text = run_tool(
        'quantize', *arguments[:3], '--calib', calibration, '--num-calib', 4, *options, '--image-size', 224
    )
    assert code == 1 and only_line(text).endswith(
        "--image-size 224: the config's test pipeline gives images of 32 x 32 pixels"
    )
    code, text = run_tool('quantize', *arguments, '--calib', calibration, '--num-calib', 10**6, *options)
    assert (code, text.count('\n')) == (1, 1)
    assert '--num-images asks for 1000000' in text


def test_other_photos_stand_in_for_unreadable_ones(tmp_path):
    config = cli.load_config('tests/configs/tiny_digits.py')
    for number in range(6):
        Image.new('RGB', (32, 32), (number, 0, 0)).save(tmp_path / f'{number}.png')
    for number in (0, 5):  # the ends are taken first
        (tmp_path / f'{number}.png').write_text('no picture')
    skipped = []
    preprocessing, actual = Preprocessing(config), photos.find(config, str(tmp_path))
    pixels = photos.read(*actual, preprocessing, 3, skipped)
    assert len(pixels) == 3 and len({float(image[0, 0, 0]) for image in pixels}) == 3
    assert [message.split(':')[0][-5:] for message in skipped] == ['0.png', '5.png']
    with pytest.raises(ValueError, match='4 of 6 files are readable images, --num-images asks for 5'):
        photos.read(*actual, preprocessing, 5)


@pytest.mark.slow
@pytest.mark.parametrize(('flags', 'allowed_loss', 'allowed_flips'), [([], 1.6, 50), (['--per-tensor'], 3.0, 75)])
def test_apples_s0_survives_int8(flags, allowed_loss, allowed_flips, shared, run_tool, tmp_path):
    code, text = run_tool(
        'quantize',
        'configs/mobileone_s0_8xb32.py',
        shared('weights', 'apple_mobileone_s0_fused.pth'),
        tmp_path / 'int8.onnx',
        *('--calib', shared('data', 'imagenette_4k', 'train'), *flags),
        *('--evaluate', '--report', tmp_path / 'report.json', '--cfg-options'),
        f'test_dataloader.dataset.data_root={shared("data", "ilsvrc_val_1300")}',
        'test_dataloader.dataset.ann_file=meta/val.txt',
        'test_dataloader.dataset.data_prefix=val',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    )
    assert code == 0, text
    report = json.loads((tmp_path / 'report.json').read_text())
    before, after = report['accuracy']
    assert (before['name'], before['num_images']) == ('float', 1300)
    assert before['top1'] == pytest.approx(80.77, abs=0.01)
    assert after['flips'] <= allowed_flips
    # The aim is 0.8 per channel. Which of some forty flips were right before is chance, 0.4 points of it (one is 13
    # images), and differs between processors: twice that is allowed on top.
    assert after['top1'] >= before['top1'] - allowed_loss
