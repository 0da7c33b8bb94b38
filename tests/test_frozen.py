"""What checkpoints, optimizer states and seeds rest on: keys, their order, initial weights, order of summation."""

import hashlib
import importlib

import pytest
import torch
from conftest import randomize_norms

from mobileone_ext.backbone import MobileOne
from mobileone_ext.block import MobileOneBlock

NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
BLOCK = dict(in_channels=4, out_channels=4, kernel_size=3, groups=4, num_conv_branches=2)
KEYS = [
    *(f'branch_norm.{name}' for name in NORM),
    *(
        f'{branch}.{name}'
        for branch in ('branch_scale', 'branch_conv_list.0', 'branch_conv_list.1')
        for name in ('conv.weight', *(f'norm.{name}' for name in NORM))
    ),
]
NETWORKS = {
    's0': (1321, '2c40aae1886fdb6a', 643, '1426de4be6f9a0d0'),
    's4': (608, '2913bd030002b8f0', 311, '462fe6bdf023637f'),
}
# With seed 2206: the first two values, and the sum of magnitudes.
INITIAL = {
    'stage0.branch_scale.conv.weight': (-0.0597162, -0.2684712, 22.311333),
    'stage0.branch_conv_list.0.conv.weight': (-0.1049887, -0.0778385, 72.364995),
    'stage1.0.branch_conv_list.0.conv.weight': (0.0600196, -0.1023059, 23.067403),
    'stage3.5.branch_conv_list.0.conv.weight': (0.0130858, 0.0305252, 4623.855102),
    'stage4.1.branch_conv_list.0.conv.weight': (-0.0366165, 0.0585534, 9246.078380),
}


def test_keys_and_parameters_of_a_block_stand_in_this_order():
    block = MobileOneBlock(**BLOCK)
    assert [*block.state_dict()] == KEYS
    assert [name for name, _ in block.named_parameters()] == [key for key in KEYS if key.endswith(('weight', 'bias'))]


@pytest.mark.parametrize('arch', NETWORKS)
def test_keys_and_parameters_of_a_network_stand_in_this_order(arch):
    with torch.device('meta'):
        net = MobileOne(arch)
    names = [[*net.state_dict()], [name for name, _ in net.named_parameters()]]
    digests = [hashlib.sha256('\n'.join(part).encode()).hexdigest()[:16] for part in names]
    assert (len(names[0]), digests[0], len(names[1]), digests[1]) == NETWORKS[arch]


def test_a_seed_gives_these_weights():
    torch.manual_seed(2206)
    net = MobileOne('s0')
    net.init_weights()
    weights = dict(net.named_parameters())
    for name, (first, second, total) in INITIAL.items():
        weight = weights[name].detach().double().flatten()
        torch.testing.assert_close(weight[:2].tolist(), [first, second], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(float(weight.abs().sum()), total, rtol=1e-6, atol=0)


def test_branches_are_summed_in_this_order():
    """Rounding shows the order: skip, scale, convolutions."""
    torch.manual_seed(0)
    block = randomize_norms(MobileOneBlock(**BLOCK)).eval()
    x = 100 * torch.randn(2, 4, 9, 8)
    expected = block.branch_norm(x) + block.branch_scale(x)
    for branch in block.branch_conv_list:
        expected = expected + branch(x)
    assert torch.equal(block(x), block.act(block.se(expected)))


@pytest.mark.parametrize(
    ('module', 'names'),
    [
        ('reparam', ('Kernel', 'Affine', 'norm_affine', 'fold_affine', 'pad_kernel', 'identity_kernel', 'sum_kernels')),
        ('block', ('MobileOneBlock',)),
        ('backbone', ('MobileOne',)),
        ('registry', ('MODELS', 'DATASETS', 'HOOKS', 'TRANSFORMS')),
    ],
)
def test_these_can_be_imported(module, names):
    found = importlib.import_module(f'mobileone_ext.{module}')
    assert all(hasattr(found, name) for name in names)
