"""Networks of other libraries, fused where they stand: against their own fusion, and against themselves in float64."""

import copy
import json
import re
from functools import partial

import pytest
import torch
from conftest import only_line, randomize_norms
from mmpretrain.models import MobileOne as MmpretrainMobileOne
from mmpretrain.models import RepVGG as MmpretrainRepVGG
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg, MobileOneBlock
from timm.models.fastvit import FastVit, RepConditionalPosEnc
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mobileone_ext.deploy.anywhere import fuse, relative_difference
from mobileone_ext.network import MobileOneNet

SMALL = dict(num_blocks=[1, 2, 1, 1], width_factor=[0.25] * 4, num_conv_branches=[2] * 4, num_se_blocks=[0, 0, 0, 1])
REPVGG = dict(num_blocks=[1, 1, 2, 1], width_factor=[0.125] * 3 + [0.0625], group_layer_map=None, se_cfg=None)


def byob(block, **options):
    stages = tuple(
        ByoBlockCfg(type=block, d=2, c=width, s=2, gs=group, block_kwargs=options)
        for width, group in ((16, 1), (16, 0), (32, 8))
    )
    return ByobNet(ByoModelCfg(blocks=stages, stem_type=block, stem_chs=16), num_classes=5)


def fastvit():
    mixers = ['repmixer', 'repmixer', 'repmixer', 'attention']
    encoding = partial(RepConditionalPosEnc, spatial_shape=(7, 7))
    widths, numbers = dict(embed_dims=(16, 16, 32, 32), mlp_ratios=(2, 2, 2, 2)), dict(layers=(1, 1, 1, 1))
    return FastVit(**widths, **numbers, token_mixers=mixers, pos_embs=(None, None, None, encoding), num_classes=5)


def by_mmpretrain(network):
    network = copy.deepcopy(network)
    network.switch_to_deploy()
    return network


# A network, how its library fuses it, and how many of its blocks there are.
NETWORKS = {
    "mmpretrain's MobileOne": (lambda: MmpretrainMobileOne(SMALL, out_indices=(1, 3)), by_mmpretrain, 11),
    "mmpretrain's RepVGG": (lambda: MmpretrainRepVGG(REPVGG, out_indices=(1, 3)), by_mmpretrain, 6),
    "timm's MobileOne": (lambda: byob('one', num_conv_branches=2), reparameterize_model, 7),
    "timm's RepVGG": (lambda: byob('rep'), reparameterize_model, 7),
    "timm's FastViT": (fastvit, reparameterize_model, 14),
    'ours': (lambda: MobileOneNet(SMALL, out_indices=(1, 3)), by_mmpretrain, 11),
}


def prepared(name):
    build, by_library, count = NETWORKS[name]
    torch.manual_seed(0)
    network = randomize_norms(build())
    network.eval()  # of which mmpretrain's give None
    for parameter in network.parameters():  # layer scales begin near zero, which would hide what they weigh
        if parameter.dim() == 3:
            nn.init.uniform_(parameter, 0.5, 1)
    return network, by_library, count


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_is_fused_as_by_its_own_library(name):
    network, by_library, count = prepared(name)
    images = torch.randn(2, 3, 64, 96)
    source = copy.deepcopy(network).double()
    reference = by_library(copy.deepcopy(source))
    report = fuse(network, images)
    assert len(report.fused) == count and not report.unknown, report
    assert not any(
        isinstance(module, _BatchNorm) for key in report.fused for module in network.get_submodule(key).modules()
    )
    with torch.no_grad():
        out = network.double()(images.double())
        assert relative_difference(source(images.double()), out) < 1e-5
        assert relative_difference(reference(images.double()), out) < 1e-5
    assert network.state_dict().keys() == reference.state_dict().keys()
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert getattr(network, 'deploy', True)
    with pytest.raises(ValueError, match='nothing to fuse: all blocks are fused already'):
        fuse(network.float(), images)


def small():
    """A stem, a block of timm's with two convolutions, and a head that is no block."""
    torch.manual_seed(0)
    block = MobileOneBlock(8, 8, 3, num_conv_branches=2)
    return randomize_norms(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), block, nn.Conv2d(8, 4, 1)))


def test_what_is_no_block_stays_the_same_object_and_what_trains_still_does():
    network = small().train()
    network[1].conv_kxk.requires_grad_(False)
    kept = network[0], network[1], network[2].weight
    fuse(network)
    assert (network[0], network[1], network[2].weight) == kept and all(m.training for m in network.modules())
    assert network[1].reparam_conv.weight.requires_grad  # by the scale branch
    frozen = small().requires_grad_(False)
    fuse(frozen)
    own = nn.Sequential(OwnMethod()).requires_grad_(False)
    fuse(own)
    assert not any(parameter.requires_grad for net in (frozen, own) for parameter in net.parameters())


class Two(nn.Module):
    """Takes an image and a number, gives a dict of tuples."""

    def __init__(self):
        super().__init__()
        self.net = small()

    def forward(self, image, *, times):
        return dict(a=(self.net(image) * times, times), b=image.mean())


def test_other_inputs_and_outputs_than_tensors():
    network = Two()
    source = copy.deepcopy(network)
    arguments = dict(image=torch.randn(1, 3, 9, 7), times=torch.tensor(2.0))
    with pytest.raises(
        ValueError, match='does not take noise of 64 x 64 pixels: .*times.*; images gives what it takes'
    ):
        fuse(network)
    report = fuse(network, arguments)
    assert [*report.fused] == ['net.1'] and report.inputs == 'the images' and report.difference < 1e-5
    network.eval(), source.eval()
    torch.testing.assert_close(network(**arguments), source(**arguments), rtol=1e-4, atol=1e-4)


class OwnMethod(nn.Module):
    """A convolution and a norm with a fuse method of their own, right or wrong."""

    def __init__(self, wrong=0.0):
        super().__init__()
        self.conv, self.bn, self.wrong = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), wrong

    def forward(self, x):
        return self.bn(self.conv(x))

    def fuse(self):
        fused = nn.utils.fuse_conv_bn_eval(self.conv.eval(), self.bn.eval())
        fused.bias.data += self.wrong
        return fused


def test_a_method_of_its_own_is_used_and_held_to_the_same_proof():
    torch.manual_seed(0)
    network = randomize_norms(nn.Sequential(OwnMethod(), nn.ReLU())).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = network(x)
    report = fuse(network)
    assert report.fused == {'0': 'its own fuse()'} and type(network[0]) is nn.Conv2d
    torch.testing.assert_close(network(x), expected)


class Unknown(nn.Module):
    """Parallel convolutions under names that nobody knows."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.right = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x):
        return self.left(x) + self.right(x)


def test_what_looks_like_a_block_is_reported():
    network = nn.Sequential(Unknown(), nn.Conv2d(4, 3, 1), small(), nn.Conv2d(4, 4, 1))
    network[1].unused = MobileOneBlock(4, 4, 3)
    report = fuse(network)
    assert [*report.fused] == ['2.1']
    assert report.unknown == {
        '0': 'Unknown has parallel convolutions, by names that are not known',
        '1.unused': 'MobileOneBlock: no image gets there',
    }
    assert "1 fused: 1 x timm's MobileOne, 4 branches" in str(report) and 'left as it is: 0: Unknown' in str(report)


def spoiled(**change):
    network = small()
    block = network[1]
    if 'between' in change:
        pair = block.conv_kxk[0]
        block.conv_kxk[0] = nn.Sequential(pair.conv, change['between'], pair.bn)
    if 'hook' in change:
        block.conv_kxk[0].conv.register_forward_hook(change['hook'])
    if 'norm' in change:
        block.conv_kxk[1].bn = change['norm']
    return network


def shared():
    network = small()
    return nn.Sequential(network, nn.Conv2d(4, 8, 1), network[1])


def meta():
    with torch.device('meta'):
        return small()


def overflowing():
    network = small()
    network[2].weight.data[0] = float('nan')
    return network


BAD = {
    'no block': (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 'nothing to fuse: no block that is known'),
    'an unknown block': (Unknown, r'no block that is known; left as it is: .*Unknown has parallel convolutions'),
    'two places': (shared, '^0.1 and 2 are one block, which stands in 2 places: copy it first'),
    'without running statistics': (
        lambda: spoiled(norm=nn.BatchNorm2d(8, track_running_stats=False)),
        '^1: BatchNorm2d cannot be fused: only batch norm with running statistics',
    ),
    'another norm': (lambda: spoiled(norm=nn.GroupNorm(2, 8)), '^1: GroupNorm cannot be fused'),
    'half precision': (lambda: small().half(), '^0.weight is torch.float16: fuse in float32'),
    'meta': (meta, '^0.weight is on meta, it has no values'),
    'a module between': (
        lambda: spoiled(between=nn.Dropout()),
        '^1: conv_kxk.0: holds Conv2d, Dropout, BatchNormAct2d, where a convolution and its norm are known',
    ),
    'a hook between': (lambda: spoiled(hook=lambda module, args, out: 2 * out), '^1: cannot be fused: it computes'),
    'a wrong method': (
        lambda: randomize_norms(nn.Sequential(OwnMethod(1.0))),
        r'^0: cannot be fused: its own fuse\(\) changes what it computes \(by',
    ),
    'not finite': (overflowing, 'the network as it was given has outputs that are not finite'),
    'no image': (lambda: nn.Linear(3, 3), 'Linear has no convolution'),
}


@pytest.mark.parametrize('name', BAD)
def test_what_cannot_be_fused_is_named_and_stays_as_it_is(name):
    build, message = BAD[name]
    network = build()
    before = [*network.modules()], {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        fuse(network)
    assert [*network.modules()] == before[0] and [*network.state_dict()] == [*before[1]]
    for key, tensor in network.state_dict().items():
        assert tensor.is_meta or torch.equal(tensor.nan_to_num(), before[1][key].nan_to_num()), key


def twice():
    """Arguments of what takes an image and a number."""
    return dict(image=torch.randn(1, 3, 9, 7), times=torch.tensor(2.0))


def test_the_tool_fuses_any_network(run_tool, digits, tmp_path):
    source, out, report = tmp_path / 'net.pth', tmp_path / 'fused.pth', tmp_path / 'report.json'
    expected = small().eval()
    torch.save(expected.state_dict(), source)
    code, printed = run_tool(
        'reparam', '--model', f'{__name__}:small', source, '--images', digits, '--num-images', 2, out,
        '--image-size', 32, '--report', report,
    )  # fmt: skip
    assert code == 0 and "1 fused: 1 x timm's MobileOne, 4 branches\non the images outputs differ by" in printed
    assert json.loads(report.read_text())['difference'] < 1e-5
    fused = small().eval()
    fuse(fused)
    held = torch.load(out, weights_only=True)
    fused.load_state_dict(held['state_dict'])
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(fused(x), expected(x), rtol=1e-4, atol=1e-4)
    assert held['meta']['model'] == f'{__name__}:small' and len(held['meta']['source_sha256']) == 64

    code, printed = run_tool(
        'reparam', '--model', f'{__name__}:small', source, tmp_path / 'even.pth', '--prepare', '--report', report
    )
    assert code == 0 and '2 maps evened out, outputs within' in printed
    assert json.loads(report.read_text())['prepared']['pairs'][1] == ['1.reparam_conv', '2']
    even = torch.load(tmp_path / 'even.pth', weights_only=True)['state_dict']
    assert even.keys() == held['state_dict'].keys() and not torch.equal(
        even['2.weight'], held['state_dict']['2.weight']
    )
    fused.load_state_dict(even)
    torch.testing.assert_close(fused(x), expected(x), rtol=1e-4, atol=1e-4)

    torch.save(Two().state_dict(), source)
    arguments = '--model', f'{__name__}:Two', source, tmp_path / 'two.pth'
    assert run_tool('reparam', *arguments, '--inputs', f'{__name__}:twice')[0] == 0
    for options, message in (
        (arguments, 'error: the network does not take noise of 64 x 64 pixels'),
        ((*arguments[:1], f'{__name__}:small', *arguments[2:]), 'net.pth: does not fit the network of the config: '),
        ((*arguments[:1], f'{__name__}:twice', *arguments[2:]), 'gives a dict, where a network is needed'),
        ((*arguments[:1], f'{__name__}:absent', *arguments[2:]), 'has no attribute'),
        ((*arguments[:1], 'small', *arguments[2:]), "error: small: No module named 'small'; PYTHONPATH"),
        (arguments[2:], 'does not say which images it takes; name its config'),
        (('net.py', *arguments), '--model PACKAGE.MODULE:FUNCTION CHECKPOINT OUT takes no config'),
        (('net.py', *arguments[2:], '--prepare'), '--prepare belongs to --model'),
    ):
        code, printed = run_tool('reparam', *options)
        assert code == 1 and message in only_line(printed)


@pytest.mark.parametrize(
    'name, message', [('os.path:join', "'a'; a function without arguments"), ('os:none', 'PYTHONPATH=.')]
)
def test_what_gives_no_network_is_one_line(name, message):
    from mobileone_ext.deploy.reparam import called

    with pytest.raises(ValueError, match=re.escape(message)):
        called(name)
