"""The float network for other quantizers: the same function, of even channels, in an ordinary file; bad requests."""

import copy

import numpy as np
import pytest
import torch
from conftest import TINY, data_options, only_line
from PIL import Image
from test_quantization import SE_BLOCKS, images, small_classifier, unevenness

from mobileone_ext import cli
from mobileone_ext.block import MobileOneBlock
from mobileone_ext.deploy import fuse
from mobileone_ext.deploy.quantization import Options
from mobileone_ext.deploy.quantization.calibrate import _at_random_pixels
from mobileone_ext.deploy.quantization.chain import layers_of
from mobileone_ext.deploy.quantization.photos import warnings_about
from mobileone_ext.deploy.quantization.prepare import prepare
from mobileone_ext.deploy.runtime import open_network


@torch.no_grad()
@pytest.mark.parametrize('se_blocks', [[0] * 4, SE_BLOCKS])
def test_prepared_network_is_the_same_function(se_blocks):
    model, x = small_classifier(se_blocks).double(), images(dtype=torch.float64)
    prepared, difference = prepare(model, x, Options(balance=1.0))
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-9, atol=1e-9)
    assert difference.max_rel_diff < 1e-9 and difference.num_images == len(x)
    assert max(unevenness(prepared, x)) < 1.001 < min(unevenness(model, x))


@torch.no_grad()
def test_snapped_weights_survive_a_quantizer_of_symmetric_weights():
    model, x = small_classifier(), images()
    prepared, difference = prepare(model, x, Options(), 127)
    assert 0 < difference.max_rel_diff < 0.1
    changes = {}
    for name, network in (('raw', model), ('prepared', prepared)):
        changes[name] = []
        for layer in layers_of(network):
            weight = layer.linear.weight.flatten(1)
            scale = weight.abs().amax(1, keepdim=True) / 127
            changes[name].append(float(((weight / scale).round() * scale - weight).norm() / weight.norm()))
    # A few channels' largest weight has moved off the grid's end.
    assert sum(changes['prepared']) < 0.1 * sum(changes['raw']), changes


@torch.no_grad()
@pytest.mark.parametrize('per_channel', [True, False])
def test_snapped_weights_survive_torchaos_scale(per_channel):
    """PerChannelMinMaxObserver with -128 .. 127: scale = largest / 127.5."""
    prepared, _ = prepare(small_classifier(), images(), Options(per_channel=per_channel), 127.5)
    for layer in layers_of(prepared):
        weight = layer.linear.weight.flatten(1 if per_channel else 0)
        weight = weight.reshape(-1, weight.shape[-1])
        scale = weight.abs().amax(1, keepdim=True) / 127.5
        off = (weight / scale - (weight / scale).round()).abs() > 0.01
        # All but the largest; a few channels' largest weight has moved off the grid's end.
        assert ((off.sum(1) <= 1).float().mean()) > 0.8, layer.name


@torch.no_grad()
def test_the_floor_reaches_the_prepared_network():
    weights = [
        prepare(small_classifier(), images(4), Options(balance=1.0, floor=floor))[0].head.fc.weight
        for floor in (0.01, 1.0)
    ]
    assert (weights[0] - weights[1]).abs().max() > 0.01 * weights[0].abs().max()


def test_function_that_changes_is_refused(monkeypatch):
    from mobileone_ext.deploy.quantization import prepare as module

    def spoil(model, *rest):
        model = copy.deepcopy(model)
        model.head.fc.bias.data[0] += 1
        return model

    monkeypatch.setattr(module, 'equalized', spoil)
    with pytest.raises(ValueError, match='outputs differ by'):
        prepare(small_classifier(), images(4), Options())


def tiny_checkpoint(path, **backbone):
    config = cli.load_config(TINY)
    config.model.backbone.update(backbone)
    torch.manual_seed(0)
    model = fuse.build_model(config, 'fused')
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(model.state_dict(), path)
    return model


@pytest.mark.filterwarnings('ignore')
def test_tool_writes_an_ordinary_checkpoint_and_onnx(digits, run_tool, tmp_path):
    tiny_checkpoint(tmp_path / 'net.pth')
    folder = next(path for path in digits.rglob('*') if path.is_dir() and list(path.glob('*/*.png')))
    arguments = ('--calib', folder, '--num-calib', 20, '--size', 32)
    options = ('--cfg-options', *data_options(digits))
    for name in ('prepared.pth', 'prepared.onnx'):
        code, text = run_tool(
            'quantize', TINY, tmp_path / 'net.pth', '--prepare', tmp_path / name, *arguments, *options
        )
        assert code == 0, text
        assert 'on the calibration images 0 of 20 predictions change' in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'net.pth',
        'prepared.onnx',
        'prepared.onnx.labels.txt',
        'prepared.pth',
    ]
    assert 'channels equalized' in open_network(tmp_path / 'prepared.onnx').metadata['prepared']
    actual = []
    for name in ('net.pth', 'prepared.pth', 'prepared.onnx'):
        out = tmp_path / 'out.csv'
        code, text = run_tool('predict', TINY, tmp_path / name, folder, '--top', 1, '--out', out, *options)
        assert code == 0, text
        actual.append([line.split(',')[:3] for line in out.read_text().splitlines()])
    assert actual[0] == actual[1] == actual[2] and len(actual[0]) > 20


@pytest.mark.parametrize(
    ('arguments', 'backbone', 'message'),
    [
        (['--prepare', 'out.xml'], {}, r'out.xml: a float network is written to .pth or .onnx'),
        (['--prepare', 'no/out.pth'], {}, 'no such folder'),
        ([], {}, 'nothing to write'),
        (['out.onnx', '--prepare', 'out.onnx'], {}, 'each file needs a name of its own'),
        (['out.onnx', '--snap'], {}, '--preround belongs to --prepare'),
        (['--prepare', 'out.pth', '--evaluate'], {}, 'name the int8 file behind the network'),
        (['--prepare', 'out.pth', '--num-images', '100000'], {}, '--num-images asks for 100000'),
        (['--prepare', 'out.pth', '--size', '64'], {}, 'images of 32 x 32 pixels'),
        (['out.onnx', '--keep', 'stage9'], {}, "keep: no layer 'stage9'"),
        (['out.onnx', '--weight-bits', '4'], {}, '--weight-bits: invalid choice: 4'),
        (['out.onnx', '--ranges', 'kl'], {}, "invalid choice: 'kl'"),
        (['out.onnx', '--balance', '2'], {}, "'2': a number from 0 to 1 is needed"),
        (['--prepare', 'net.pth'], {}, 'is what is read'),
        (['--prepare', 'out.pth', '--snap', '--snap-steps', '128'], {}, 'invalid choice: 128'),
        (['--prepare', 'out.pt'], {}, 'out.pt: a float network is written to .pth or .onnx'),
        (['--prepare', 'out.pth'], dict(act_cfg=dict(type='GELU')), 'has the activation GELU; int8 knows ReLU'),
    ],
)
def test_bad_requests_take_one_line_and_write_nothing(
    arguments, backbone, message, digits, run_tool, tmp_path, monkeypatch
):
    tiny_checkpoint(tmp_path / 'net.pth', **backbone)
    arguments = [str(tmp_path / word) if word.endswith(('.pth', '.onnx', '.xml')) else word for word in arguments]
    folder = next(path for path in digits.rglob('*') if path.is_dir() and list(path.glob('*/*.png')))
    defaults = ['--num-calib', 4, '--size', 32]
    options = [f'model.backbone.{key}.{k}={v}' for key, value in backbone.items() for k, v in value.items()]
    code, text = run_tool(
        *('quantize', TINY, tmp_path / 'net.pth', '--calib', folder, *defaults),
        *(*arguments, '--cfg-options', *data_options(digits), *options),
    )
    assert code == 1 and message in only_line(text), text
    assert [path.name for path in tmp_path.iterdir()] == ['net.pth']


def test_photos_that_cannot_calibrate_or_hardly():
    draw = torch.Generator().manual_seed(0)
    photos = 255 * torch.rand(10, 3, 8, 8, generator=draw)
    sure = torch.eye(10) * 0.9 + 0.01
    assert warnings_about(photos, sure, 'x') == [] == warnings_about(photos, None, 'x')
    with pytest.raises(ValueError, match='^x: each of 10 photos is of one color'):
        warnings_about(torch.full((10, 3, 8, 8), 128.0) + torch.arange(3).reshape(3, 1, 1), sure, 'x')
    (gray,) = warnings_about(photos.mean(1, keepdim=True).expand(-1, 3, -1, -1), sure, 'x')
    assert gray == 'x: all photos are gray; ranges for color need photos in color'
    (unsure,) = warnings_about(photos, torch.eye(10) * 0.1 + 0.09, 'x')
    assert unsure.startswith('x: the network is unsure of these photos (mean probability of the best class 0.19)')
    (one_sided,) = warnings_about(photos, sure[[0] * 6 + [1, 2, 3, 4]], 'x')
    assert one_sided.startswith('x: 60% of the photos are predicted as one class')
    assert warnings_about(photos, sure[[0] * 5 + [1, 2, 3, 4, 5]], 'x') == []
    assert warnings_about(photos, torch.tensor([[0.9, 0.1]] * 10), 'x') == []  # of two classes


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('value', 'code', 'message'),
    [(128, 1, 'each of 4 photos is of one color'), (None, 0, 'WARNING: ')],
    ids=['flat', 'another size, gray'],
)
def test_tool_looks_at_the_photos(value, code, message, digits, run_tool, tmp_path):
    tiny_checkpoint(tmp_path / 'net.pth')
    (tmp_path / 'photos').mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 70), np.uint8)
        pixels = pixels if value is None else np.full_like(pixels, value + number)
        Image.fromarray(pixels).save(tmp_path / 'photos' / f'{number}.png')
    arguments = ('--calib', tmp_path / 'photos', '--num-calib', 4, '--size', 32)
    out = tmp_path / 'out.pth'
    actual, text = run_tool(
        *('quantize', TINY, tmp_path / 'net.pth', '--prepare', out, *arguments),
        *('--cfg-options', *data_options(digits)),
    )
    assert actual == code and message in (only_line(text) if code else text), text
    assert sorted(path.name for path in tmp_path.iterdir()) == ['net.pth', *['out.pth'] * (1 - code), 'photos']


@pytest.mark.parametrize(('groups', 'channels'), [(2, 16), (16, 32)])
def test_groups_are_refused_by_name(groups, channels):
    model = small_classifier()
    model.backbone.stage1[0] = MobileOneBlock(16, channels, 3, groups=groups, deploy=True)
    with pytest.raises(ValueError, match=f'backbone.stage1.0 has {groups} groups of 16 -> {channels} channels'):
        prepare(model, images(2), Options())


@torch.no_grad()
def test_dilation_is_prepared_and_snapped():
    model, x = small_classifier(), images()
    for layer in layers_of(model)[1:3]:
        if layer.is_depthwise:
            layer.linear.dilation = layer.linear.padding = (2, 2)
            # What the weights are fitted at is what the layer sees.
            seen = torch.randn(4, layer.linear.in_channels, 9, 9)
            inputs, outputs = _at_random_pixels(layer, seen, layer.linear(seen))
            actual = inputs @ layer.grouped_weight.transpose(1, 2) + layer.linear.bias[:, None, None]
            torch.testing.assert_close(actual, outputs, rtol=1e-4, atol=1e-4)
    assert prepare(model, x, Options())[1].max_rel_diff < 1e-4
    assert prepare(model, x, Options(), 127)[1].max_rel_diff < 0.1


@pytest.mark.filterwarnings('ignore')
def test_a_file_of_another_form_is_refused_and_networks_of_ones_own_are_taken(digits, run_tool, tmp_path):
    folder = next(path for path in digits.rglob('*') if path.is_dir() and list(path.glob('*/*.png')))
    arguments = ('--calib', folder, '--num-calib', 20, '--size', 32, '--cfg-options', *data_options(digits))
    for name, content in (('net.onnx', b'onnx'), ('net.tflite', b'TFL3'), ('empty.pth', b'')):
        (tmp_path / name).write_bytes(content)
        code, text = run_tool('quantize', TINY, tmp_path / name, '--prepare', tmp_path / 'out.pth', *arguments)
        assert code == 1 and name in only_line(text), text
    arch = {'num_blocks': [1, 1, 2, 1], 'width_factor': [0.25] * 4, 'num_se_blocks': [0, 0, 1, 1]}
    options = [f'model.backbone.arch={arch}']
    config = cli.load_config(TINY, {'model.head.in_channels': 128})
    config.model.backbone.arch = arch
    model = fuse.build_model(config, 'fused')
    torch.save(model.state_dict(), tmp_path / 'net.pth')
    code, text = run_tool(
        *('quantize', TINY, tmp_path / 'net.pth', tmp_path / 'int8.onnx', '--prepare', tmp_path / 'out.pth'),
        *('--snap', *arguments, *options, 'model.head.in_channels=128'),
    )
    assert code == 0, text
    assert not {'int8.onnx', 'out.pth'} - {path.name for path in tmp_path.iterdir()}
