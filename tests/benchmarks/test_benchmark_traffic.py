"""The traffic model: literal sums for one block, and the networks' figures."""

import pytest
import torch
from benchmarks.traffic import IMPLS, Geometry, block_bytes, blocks, forward_bytes, network_bytes, products
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mobileone_ext.block import MobileOneBlock

# I = 2 images of 4 channels, 6 x 6, 2 bytes; O the same, at stride 2 a quarter of it.
MAP = 2 * 4 * 36 * 2
POINTWISE = Geometry(4, 4, 1, 1, 1, 2, False, True, 6)
STRIDED = Geometry(4, 4, 3, 2, 4, 1, True, False, 6)


def test_a_pointwise_block():
    """Activation 5; convolution 3 + 3; norm 8; two sums forward, two backward, 3 each."""
    assert block_bytes(POINTWISE, 2, 'fused') == (5 + 6) * MAP
    assert block_bytes(POINTWISE, 2, 'moments') == (5 + 6 + 1 + 3) * MAP
    assert block_bytes(POINTWISE, 2, 'moments in neighbors') == (5 + 6 + 1 + 1) * MAP
    assert block_bytes(POINTWISE, 2, 'branches') == (5 + 2 * (6 + 8) + 8 + 2 * 3 + 2 * 3) * MAP
    assert block_bytes(POINTWISE, 2, 'fused', value_bytes=4) == 2 * (5 + 6) * MAP


def test_a_strided_block():
    """In quarters of a map: I is 4, O is 1. The scale branch copies its pixels, and spreads their gradient."""
    assert block_bytes(STRIDED, 2, 'fused') == (5 + 3 * (4 + 1)) * MAP // 4
    scale = 3 * (1 + 1) + 8 + 2 + (1 + 4)
    assert block_bytes(STRIDED, 2, 'branches') == (5 + 3 * 5 + 8 + scale + 3 + 3 * 4) * MAP // 4


def test_images_want_no_gradient():
    stem = Geometry(3, 8, 3, 2, 1, 1, True, False, 6)
    images, out = 2 * 3 * 36 * 2, 2 * 8 * 9 * 2
    assert block_bytes(stem, 2, 'fused') == 5 * out + 2 * (images + out)
    assert block_bytes(stem, 2, 'moments') == 5 * out + 2 * (images + out) + images


def test_a_wide_pointwise_block_is_passed_five_times_more():
    wide = Geometry(129, 4, 1, 1, 1, 1, False, False, 6)
    source, out = 2 * 129 * 36 * 2, MAP
    assert block_bytes(wide, 2, 'moments') == 5 * out + 3 * (source + out) + (1 + 3 + 5) * source


def test_forward_alone():
    """Activation 2; convolution 1 + 1; norm 2; two sums, 3 each."""
    assert forward_bytes(POINTWISE, 2, 'fused') == (2 + 2) * MAP
    assert forward_bytes(POINTWISE, 2, 'branches') == (2 + 2 * (2 + 2) + 2 + 2 * 3) * MAP


def test_multiplications():
    """A convolution forward and for two gradients; moments add two passes of C x C over pixels, two over kernels."""
    pixels, square = 2 * 36, 4 * 4
    assert products(POINTWISE, 2, 'fused') == 3 * pixels * square
    assert products(POINTWISE, 2, 'branches') == 2 * 3 * pixels * square
    assert products(POINTWISE, 2, 'moments') == 3 * pixels * square + 2 * pixels * square + 2 * 2 * 4 * square
    pixels = 2 * 9
    assert products(STRIDED, 2, 'fused') == 3 * pixels * 4 * 9
    assert products(STRIDED, 2, 'branches') == 3 * pixels * 4 * (9 + 1)


# GB a step of 256 images of 224 px in two bytes.
NETWORKS = {'s0': (181.0, 30.0, 25.0, 21.1), 's1': (127.8, 52.9, 41.4, 35.0)}


@pytest.mark.parametrize(('arch', 'expected'), NETWORKS.items())
def test_networks(arch, expected):
    geometries = blocks(arch, 224)
    found = [network_bytes(geometries, 256, impl) / 1e9 for impl in IMPLS]
    assert found == [pytest.approx(value, abs=0.05) for value in expected]


def test_blocks_of_a_network():
    found = blocks('s0', 224)
    assert len(found) == 43 and found[0] == Geometry(3, 48, 3, 2, 1, 1, True, False, 224)
    assert found[1] == Geometry(48, 48, 3, 2, 48, 4, True, False, 112)
    assert found[2] == Geometry(48, 48, 1, 1, 1, 4, False, True, 56)
    assert found[-1] == Geometry(256, 1024, 1, 1, 1, 4, False, False, 7)
    assert [found[i].name for i in range(4)] == ['stem', 'depthwise, stride 2', 'pointwise', 'depthwise, stride 1']


class Counter(TorchDispatchMode):
    """Values that the operators of a step move: what each reads and writes, batch norms as they are known to run."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        name = operator.overloadpacket.__name__
        if name in ('convolution', 'relu'):
            self.values += args[0].numel() + result.numel()
        elif name == 'threshold_backward' or (name == 'add' and isinstance(args[1], Tensor)):
            self.values += args[0].numel() + args[1].numel() + result.numel()
        elif 'batch_norm_backward' in name:  # twice both maps, for two sums and for the gradient
            self.values += 2 * (args[0].numel() + args[1].numel()) + result[0].numel()
        elif 'batch_norm' in name:  # for the statistics and for the output
            self.values += 2 * args[0].numel() + result[0].numel()
        elif name == 'convolution_backward':
            gradient, x = args[:2]
            self.values += gradient.numel() + x.numel()  # of the weight
            if result[0] is not None:
                self.values += gradient.numel() + result[0].numel()
        return result


@pytest.mark.parametrize(
    'options',
    [
        dict(in_channels=3, out_channels=8, kernel_size=3, stride=2),
        dict(in_channels=8, out_channels=8, kernel_size=3, groups=8, num_conv_branches=4),
        dict(in_channels=8, out_channels=8, kernel_size=3, stride=2, groups=8),
        dict(in_channels=8, out_channels=12, kernel_size=1, num_conv_branches=4),
        dict(in_channels=8, out_channels=8, kernel_size=1),
    ],
)
def test_values_that_branches_move(options):
    """Against what torch's operators are called with."""
    block = MobileOneBlock(train_impl='branches', **options).train()
    stem = options['in_channels'] == 3
    x = torch.randn(2, options['in_channels'], 16, 16, requires_grad=not stem)
    with Counter() as counter:
        y = block(x)
        y.backward(torch.ones_like(y))
    names = 'in_channels', 'out_channels', 'kernel_size', 'stride', 'groups'
    kinds = len(block.branch_conv_list), block.branch_scale is not None, block.branch_norm is not None
    expected = block_bytes(Geometry(*(getattr(block, name) for name in names), *kinds, 16), 2, 'branches', 1)
    # With stride 2 the copies of the scale branch are no operators that the counter knows.
    assert counter.values == pytest.approx(expected, rel=0.2 if options.get('stride') == 2 else 1e-9)
