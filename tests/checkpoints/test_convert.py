"""Conversion: names against timm's and mmpretrain's own networks, round trips, un-fusing, cards, the tool."""

import pytest
import timm
import torch
from conftest import randomize_norms
from networks import classifier, random_state, spread_norms
from PIL import Image
from timm.utils import reparameterize_model

from mobileone_ext.backbone import MobileOne
from mobileone_ext.checkpoints.convert import backbone_alone, convert, with_branches, write_weights
from mobileone_ext.checkpoints.load import load_weights, to_layout
from mobileone_ext.checkpoints.model_card import num_parameters
from mobileone_ext.checkpoints.unfuse import unfuse
from mobileone_ext.data.calibration import calibration_batches

FORMS = ('branched', 'fused')
NETWORKS = [  # many branches; one branch and squeeze-and-excitation
    ('s0', 'branched'),
    ('s4', 'fused'),
    *(pytest.param(*rest, marks=pytest.mark.slow) for rest in (('s0', 'fused'), ('s4', 'branched'))),
]
LAYOUTS = ('mmpretrain', 'apple', 'timm')
SMALL = dict(  # every kind of branch, SE in stage 3, a second block in stage 2
    num_blocks=[1, 2, 1, 1], width_factor=[0.125] * 4, num_conv_branches=[2, 1, 2, 1], num_se_blocks=[0, 0, 1, 0]
)


def written(tmp_path, state, layout='mmpretrain', name='file.pth'):
    """``state`` through a file: written in ``layout`` and read again."""
    torch.save(state, tmp_path / 'own.pth')
    write_weights(tmp_path / name, load_weights(tmp_path / 'own.pth'), layout)
    return load_weights(tmp_path / name)


def timm_network(variant, form):
    # timm's fused constructor forgets the padding of MobileOne blocks; its conversion of a branched network is right.
    model = timm.create_model(f'mobileone_{variant}').eval()
    return reparameterize_model(model) if form == 'fused' else model


def mmpretrain_network(variant, form):
    return classifier(variant, kind='mmpretrain.MobileOne', deploy=form == 'fused')


@pytest.mark.parametrize('other, layout', [(timm_network, 'timm'), (mmpretrain_network, 'mmpretrain')])
@pytest.mark.parametrize('variant, form', NETWORKS)
def test_outputs_of_other_networks(variant, form, other, layout):
    own = classifier(variant, deploy=form == 'fused')
    own.load_state_dict(random_state(variant, form))
    network = other(variant, form)
    network.load_state_dict(to_layout(random_state(variant, form), layout), strict=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        expected = network.to(dtype)(images.to(dtype))
        actual = own.to(dtype)(images.to(dtype))
        assert actual.shape == (2, 1000)
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize('form', FORMS)
def test_from_another_network(tmp_path, form):
    torch.manual_seed(1)
    network = spread_norms(timm.create_model('mobileone_s1', num_classes=7), torch.randn(4, 3, 64, 64))
    network = reparameterize_model(network) if form == 'fused' else network
    torch.save(network.state_dict(), tmp_path / 'timm.pth')
    own = classifier('s1', 7, deploy=form == 'fused')
    load_weights(tmp_path / 'timm.pth').load_into(own)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(own.double()(images), network.double()(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('variant, form', NETWORKS)
def test_round_trip(tmp_path, variant, form, layout):
    state = random_state(variant, form)
    for name in ('file.pth', 'file.safetensors'):
        weights = written(tmp_path, state, layout, name)
        assert (weights.layout, weights.form, weights.structure.variant) == (layout, form, variant)
        assert set(weights.state) == set(state)
        assert all(torch.equal(weights.state[key], state[key]) for key in state)
        assert all(weights.state[key].dtype == state[key].dtype for key in state)


@pytest.mark.parametrize(
    'variant, parameters', [('s0', 2078504), ('s1', 4764840), ('s2', 7808168), ('s3', 10078312), ('s4', 14838352)]
)
def test_parameters(variant, parameters):
    assert num_parameters(random_state(variant, 'fused')) == parameters


@pytest.mark.parametrize('layout', LAYOUTS)
def test_published_weights(tmp_path, shared, layout):
    source = shared('weights', 'apple_mobileone_s0_fused.pth')
    write_weights(tmp_path / 'there.pth', load_weights(source), layout)
    write_weights(tmp_path / 'back.pth', load_weights(tmp_path / 'there.pth'), 'apple')
    original, back = (torch.load(path, weights_only=True) for path in (source, tmp_path / 'back.pth'))
    assert list(back) == list(original)
    assert all(torch.equal(back[key], original[key]) for key in original)


@torch.no_grad()
@pytest.mark.parametrize('arch', [SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in ('s0', 's4'))])
def test_unfuse(arch):
    torch.manual_seed(0)
    fused = randomize_norms(MobileOne(arch)).eval()
    fused.switch_to_deploy()
    branched = MobileOne(arch)
    fused, branched = fused.double(), branched.double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    unfuse(fused, branched, images.split(2))
    expected = fused(images)[0]
    torch.testing.assert_close(branched(images)[0], expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    again = branched
    again.switch_to_deploy()
    for key, tensor in fused.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], tensor, rtol=1e-9, atol=1e-9)


def test_statistics_are_the_images():
    torch.manual_seed(0)
    options = dict(arch=SMALL, num_conv_branches=2)
    fused, branched = MobileOne(**options, deploy=True).double(), MobileOne(**options).double()
    images = torch.randn(6, 3, 64, 64, dtype=torch.float64)
    unfuse(fused, branched, images.split(3))
    for branch in (branched.stage0.branch_conv_list[0], branched.stage0.branch_scale):
        source = images if branch.conv.kernel_size == (3, 3) else images[:, :, ::2, ::2]
        z = branch.conv(source).detach().transpose(0, 1).flatten(1)
        torch.testing.assert_close(branch.norm.running_mean, z.mean(1))
        halves = torch.stack([half.var(1) for half in z.chunk(2, dim=1)]).mean(0)
        torch.testing.assert_close(branch.norm.running_var, halves)
    assert branched.stage0.branch_scale.norm.momentum == 0.1


def test_unfused_branches_learn():
    torch.manual_seed(0)
    fused, branched = MobileOne(SMALL, deploy=True).double(), MobileOne(SMALL).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    unfuse(fused, branched, [images])
    optimizer = torch.optim.SGD(branched.parameters(), 0.1)
    branched.train()
    for _ in range(2):  # a branch that adds nothing moves its gamma first, and then its kernel
        optimizer.zero_grad()
        branched(images)[0].square().mean().backward()
        optimizer.step()
    assert [name for name, parameter in branched.named_parameters() if not parameter.grad.any()] == []


def test_unfuse_what_cannot_be(tmp_path):
    images = [torch.zeros(1, 3, 32, 32)]
    with pytest.raises(ValueError, match='has branches already: MobileOne-s0'):
        with_branches(written(tmp_path, random_state('s0', 'branched')), images)
    with pytest.raises(ValueError, match='no images to calibrate with'):
        with_branches(written(tmp_path, random_state('s0', 'fused')), [])


def test_backbone_alone(tmp_path):
    weights = backbone_alone(written(tmp_path, random_state('s0', 'fused')))
    assert weights.num_classes is None
    assert len(weights.state) == 86


def test_tool(tmp_path, run_tool):
    torch.save({'state_dict': random_state('s4', 'fused')}, tmp_path / 'own.pth')
    code, output = run_tool('convert_checkpoint', tmp_path / 'own.pth', tmp_path / 'timm.safetensors', '--to', 'timm')
    assert code == 0, output
    assert 'MobileOne-s4, fused, 1000 classes, timm layout, 136 tensors' in output
    card = (tmp_path / 'timm.safetensors.md').read_text()
    for row in ('| variant | s4 |', '| parameters | 14,838,352 |', '| layout | timm |', '| source | own.pth |'):
        assert row in card
    weights = load_weights(tmp_path / 'timm.safetensors')
    assert torch.equal(weights.state['head.fc.weight'], random_state('s4', 'fused')['head.fc.weight'])
    assert sorted(path.name for path in tmp_path.iterdir()) == ['own.pth', 'timm.safetensors', 'timm.safetensors.md']


def test_tool_branched(tmp_path, shared, run_tool):
    images = shared('data', 'imagenette_4k', 'val')
    source = shared('weights', 'apple_mobileone_s0_fused.pth')
    options = ('--branched', '--images', images, '--num-images', 4, '--image-size', 64)
    code, output = run_tool('convert_checkpoint', source, tmp_path / 'dst.pth', '--to', 'mobileone_ext', *options)
    assert code == 0, output
    weights = load_weights(tmp_path / 'dst.pth')
    assert (weights.form, len(weights.state), weights.layout) == ('branched', 1323, 'mmpretrain')
    assert 'un-fused, calibrated with 4 images of 64 px' in (tmp_path / 'dst.pth.md').read_text()


@pytest.mark.parametrize(
    'options, message',
    [
        (['--to', 'timm', '--branched'], '--branched: needs --images DIR'),
        (['--to', 'timm', '--ema', 'on'], 'holds no averaged (EMA) weights'),
        (['--to', 'timm'], 'a backbone without a head; --backbone-only accepts it'),
        (['--to', 'timm', '--backbone-only', '--branched', '--images', 'tools'], 'tools: no images in this folder'),
    ],
)
def test_tool_says_what_is_wrong(tmp_path, run_tool, options, message):
    state = random_state('s0', 'fused')
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith('head')}, tmp_path / 'src.pth')
    code, output = run_tool('convert_checkpoint', tmp_path / 'src.pth', tmp_path / 'dst.pth', *options)
    assert code == 1
    assert output.startswith('error: ') and output.count('\n') == 1
    assert message in output
    assert [path.name for path in tmp_path.iterdir()] == ['src.pth']


def test_suffix(tmp_path):
    with pytest.raises(ValueError, match='ends in .pth, .pt, .safetensors'):
        written(tmp_path, random_state('s0', 'fused'), name='file.onnx')


@pytest.mark.parametrize('channels', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_unfuse_calibrates_with_images_of_the_networks_channels(channels, tmp_path):
    torch.manual_seed(0)
    model = spread_norms(classifier('s0', 4, in_channels=channels), torch.randn(4, channels, 64, 64))
    model.backbone.switch_to_deploy()
    torch.save(model.state_dict(), tmp_path / 'fused.pth')
    for index in range(3):
        pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f'{index}.png')
    convert(tmp_path / 'fused.pth', tmp_path / 'branched.pth', 'mmpretrain', images=tmp_path, image_size=64)
    branched = classifier('s0', 4, in_channels=channels)
    load_weights(tmp_path / 'branched.pth').load_into(branched)
    images = torch.randn(2, channels, 64, 64)
    expected = model(images)
    torch.testing.assert_close(branched(images), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_images_of_other_channels_are_refused(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'image.png')
    with pytest.raises(ValueError, match='2 channels'):
        next(calibration_batches(tmp_path, 1, channels=2))
