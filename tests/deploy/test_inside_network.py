"""Equalization inside any network: the same outputs, evened weights, and whose map keeps its scale."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randomize_norms
from PIL import Image
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import mobileone_ext as m1
from mobileone_ext.deploy.quantization import chain
from mobileone_ext.metadata import IMAGENET_MEAN, IMAGENET_STD


class Segmentor(nn.Module):
    """An encoder of three maps, of which a head reads two."""

    def __init__(self):
        super().__init__()
        self.encoder = m1.create_model('mobileone_mu0', num_classes=0, features_only=True, out_indices=(1, 2, 4))
        widths = self.encoder.feature_info.channels()[1:]
        self.skip, self.deep = (nn.Conv2d(width, 3, 1) for width in widths)

    def forward(self, images):
        _, middle, last = self.encoder(images)
        deep = F.interpolate(self.deep(last), size=middle.shape[2:])
        return dict(masks=self.skip(middle) + deep, score=last.mean((1, 2, 3)))


def uneven(network):
    """``network`` in eval mode, its weights of other ranges for each output channel, within e^-3 .. e^3."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and 'weight' in module._parameters:
            factors = torch.randn(len(module.weight), generator=generator).clamp(-3, 3).exp()
            for parameter in module.parameters():
                parameter.data.mul_(factors.to(parameter).view(-1, *[1] * (parameter.dim() - 1)))
    return network.eval()


@pytest.fixture(scope='module')
def fused():
    torch.manual_seed(0)
    network = randomize_norms(Segmentor()).eval()
    m1.fuse(network)
    return network.double()


@torch.no_grad()
@pytest.mark.parametrize('with_images', [True, False])
def test_the_whole_network_computes_the_same_and_maps_that_a_head_reads_keep_their_scale(fused, with_images):
    network, images = copy.deepcopy(fused).train(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    report = m1.prepare(network, images if with_images else None)
    assert network.training and report['difference'] < 1e-9
    network.eval()
    torch.testing.assert_close(network(images), fused(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network.encoder(images), fused.encoder(images), rtol=1e-9, atol=1e-9)

    convs = [name for name, module in fused.named_modules() if isinstance(module, nn.Conv2d) and 'encoder' in name]
    kept = [[name for name in convs if f'.stage{stage}.' in name][-1] for stage in (1, 2, 4)]
    assert report['pairs'] == [pair for pair in zip(convs, convs[1:]) if pair[0] not in kept]
    for name, before in fused.named_parameters():
        module, _, kind = name.rpartition('.')
        same = torch.equal(network.get_parameter(name), before)
        assert same == (module not in convs or (module in kept and kind == 'bias')), name
    assert all(parameter.requires_grad for parameter in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize('groups', [1, 6])
def test_channels_of_a_pair_have_one_range(groups):
    """Nagel et al. 2019, section 4.1: without images the largest weight on either side of a channel is in one ratio."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=groups)).double()
    for channel in range(6):  # within what counts: half of the median and more
        network[0].weight[channel] *= (1 + channel / 5) / network[0].weight[channel].abs().max()
        reads = network[2].weight[:, channel] if groups == 1 else network[2].weight[channel]
        reads *= (2 - channel / 5) / reads.abs().max()
    assert m1.prepare(network)['pairs'] == [('0', '2')]
    ratios = []
    for channel in range(6):
        reads = network[2].weight[:, channel] if groups == 1 else network[2].weight[channel]
        ratios.append(float(network[0].weight[channel].abs().max() / reads.abs().max()))
    assert max(ratios) / min(ratios) < 1 + 1e-9


@torch.no_grad()
def test_images_even_out_what_they_make():
    """Two channels whose largest values are 1 and 4, of weights alike: half of that, as of the square root, is left."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))
    images = torch.tensor([[[[1.0, -4.0]]]])
    network[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    network[2].weight.fill_(1)
    m1.prepare(network, images)
    first, second = network[:2](images).amax((0, 2, 3)).tolist()
    assert second / first == pytest.approx(2)
    assert network(images).flatten().tolist() == pytest.approx([1, 4])


class Net(nn.Module):
    """Three convolutions, and what ``forward`` makes of them."""

    def __init__(self, forward, second=None):
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 4, 3, padding=1),
            second or nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 1),
        )
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


def plain(net, x):
    return net.c(F.relu(net.b(F.relu(net.a(x)))))


def residual(net, x):
    y = F.relu(net.a(x))
    return net.c(F.relu(net.b(y)) + y)


def before_relu(net, x):
    y = net.a(x)
    total = y.sum()
    return net.c(net.b(F.relu_(y))) + total


def twice(net, x):
    return net.c(F.relu(net.b(F.relu(net.b(F.relu(net.a(x)))))))


def two_readers(net, x):
    y = F.relu(net.a(x))
    return net.b(y) + net.c(y)


def siamese(net, x):
    return plain(net, x) * plain(net, -x)


def two_sources(net, x):
    return net.c(F.relu(net.b(F.relu(net.a(x))))) + net.c(x[:, :1].expand(-1, 4, -1, -1))


def as_weight(net, x):
    y = F.relu(net.a(x))
    return net.b(y) + F.conv2d(net.c(x[:, :1].expand(-1, 4, -1, -1)), y[:1, :, :1, :1])


STRUCTURES = {
    'a chain': (Net(plain), ['ab', 'bc']),
    'an identity between': (Net(lambda net, x: net.c(F.dropout(net.b(net.a(x)), training=False))), ['ab', 'bc']),
    'two images': (Net(siamese), ['ab', 'bc']),
    'depthwise': (Net(plain, nn.Conv2d(4, 4, 3, padding=1, groups=4)), ['ab', 'bc']),
    'groups of two': (Net(plain, nn.Conv2d(4, 4, 3, padding=1, groups=2)), ['bc']),
    'a sum': (Net(residual), []),
    'a map read before ReLU': (Net(before_relu), ['bc']),
    'called twice': (Net(twice), []),
    'two readers': (Net(two_readers), []),
    'two sources': (Net(two_sources), ['ab']),
    'a map as a weight': (Net(as_weight), []),
    'a map that is returned': (Net(lambda net, x: [y := F.relu(net.a(x)), net.c(F.relu(net.b(y)))]), ['bc']),
    'another activation': (Net(lambda net, x: net.c(F.gelu(net.b(F.relu(net.a(x)))))), ['ab']),
    'pooling': (Net(lambda net, x: net.c(F.max_pool2d(net.b(F.relu(net.a(x))), 2))), ['ab']),
    'reflected borders': (Net(plain, nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect')), ['bc']),
    'a norm of weights': (Net(plain, weight_norm(nn.Conv2d(4, 4, 3, padding=1))), []),
    'transposed': (Net(plain, nn.ConvTranspose2d(4, 4, 3)), []),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize('name', STRUCTURES)
def test_only_what_one_convolution_reads_is_scaled(name):
    network, pairs = STRUCTURES[name]
    network = uneven(network)
    before, images = copy.deepcopy(network), torch.randn(2, 3, 8, 9)
    if not pairs:
        with pytest.raises(ValueError, match='nothing to equalize: no convolution reads the map of another alone'):
            m1.prepare(network, images)
    else:
        report = m1.prepare(network, images)
        assert report['pairs'] == [tuple(pair) for pair in pairs]
        assert 1e-10 < report['difference'] < 1e-5  # rounded to float32
        assert any(not torch.equal(*both) for both in zip(network.parameters(), before.parameters()))
    torch.testing.assert_close(network(images), before(images), rtol=1e-4, atol=1e-4)


def unchanged_but(message, network, images=None):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=message):
        m1.prepare(network, images)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_wrong_scaling_is_noticed_and_changes_nothing(monkeypatch):
    right = chain.channel_scales
    monkeypatch.setattr(chain, 'channel_scales', lambda *given: -right(*given))
    unchanged_but('equalization changes the network: outputs differ by', Net(plain))


def test_what_cannot_be_prepared():
    branched = randomize_norms(Segmentor())
    unchanged_but('nothing to equalize: .*; m1.fuse comes first', branched)
    unchanged_but('a.weight is torch.float16', Net(plain).half())
    unchanged_but('does not take the images: .*; images gives what it takes', Net(plain), torch.zeros(1, 1, 8, 8))
    network = Net(plain)
    network.c.bias.data[0] = float('inf')
    unchanged_but('the network as it was given has outputs that are not finite', network.requires_grad_(False))


@torch.no_grad()
def min_max_int8(network, images, per_channel):
    """A copy in simulated int8 of the plainest kind: weights symmetric, what leaves ReLU between 0 and its largest."""
    network, largest = copy.deepcopy(network), {}
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    watching = [relu.register_forward_hook(lambda relu, _, out: largest.update({relu: out.max()})) for relu in relus]
    network(images)
    for relu, watch in zip(relus, watching):
        watch.remove()
        relu.register_forward_hook(
            lambda relu, _, out: (out / largest[relu] * 255).round().clamp(0, 255) / 255 * largest[relu]
        )
    for conv in (module for module in network.modules() if isinstance(module, nn.Conv2d)):
        ends = conv.weight.abs().amax((1, 2, 3) if per_channel else (0, 1, 2, 3), keepdim=True)
        conv.weight.copy_((conv.weight / ends * 127).round() / 127 * ends)
    return network


@pytest.mark.slow
@torch.no_grad()
def test_plain_int8_of_apples_encoder_loses_less_once_prepared(shared):
    weights, photos = shared('weights', 'apple_mobileone_s0_fused.pth'), shared('data', 'ilsvrc_val_1300', 'val')
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    files = sorted(photos.glob('*.JPEG'))[:200:5]
    pixels = [np.asarray(Image.open(file).convert('RGB').resize((224, 224))).transpose(2, 0, 1) for file in files]
    images = (torch.from_numpy(np.stack(pixels)) - mean) / std
    for_ranges, measured = images[::2], images[1::2]
    encoder = m1.create_model('mobileone_s0', weights, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    prepared = copy.deepcopy(encoder)
    assert len(m1.prepare(prepared, for_ranges)['pairs']) == 39
    expected = encoder(measured)
    for per_channel in (True, False):
        raw, evened = (
            [float((found - map_).norm() / map_.norm()) for found, map_ in zip(int8(measured), expected, strict=True)]
            for int8 in (min_max_int8(network, for_ranges, per_channel) for network in (encoder, prepared))
        )
        assert all(after < 0.8 * before for after, before in zip(evened, raw)), (per_channel, raw, evened)
