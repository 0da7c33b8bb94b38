"""The cost of ImageNet: counted maps against operators that count their own, shares against the config, arithmetic."""

import pytest
import torch
from benchmarks import imagenet
from conftest import ROOT, only_line
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mobileone_ext.backbone import MobileOne
from mobileone_ext.block import MobileOneBlock
from mobileone_ext.cli import load_config
from mobileone_ext.recipe.curriculum import read_stages


@pytest.mark.parametrize(
    'method, gigabytes', [('branches', 181), ('moments', 29), ('moments, fused kernels', 25), ('fused network', 21)]
)
def test_bytes_of_a_step_of_s0(method, gigabytes):
    assert round(imagenet.traffic('s0', method, 224, 256) / 1e9) == gigabytes


@pytest.mark.parametrize('arch', imagenet.VARIANTS)
def test_blocks_are_those_of_the_network(arch):
    net = MobileOne(arch, train_impl='branches').eval()
    found = []

    def note(block, inputs, output):
        convolutions = len(block.branch_conv_list) + (block.branch_scale is not None)
        se = not isinstance(block.se, nn.Identity)
        stem = inputs[0].shape[1] == 3
        found.append((inputs[0].numel(), output.numel(), convolutions, block.branch_norm is not None, se, stem))

    for module in net.modules():
        if isinstance(module, MobileOneBlock):
            module.register_forward_hook(note)
    with torch.no_grad():
        net(torch.zeros(1, 3, 64, 64))
    assert [tuple(block) for block in imagenet.blocks(arch, 64)] == found


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
    convolutions = options.get('num_conv_branches', 1) + (options['kernel_size'] == 3)
    skip = options['in_channels'] == options['out_channels'] and options.get('stride', 1) == 1
    expected = imagenet.by_branches(imagenet.Block(x.numel(), y.numel(), convolutions, skip, False, stem))
    # With stride 2 the scale branch picks a quarter of the pixels, of which memory moves all.
    assert counter.values == pytest.approx(expected, rel=0.2 if options.get('stride') == 2 else 1e-9)


def test_a_stage_takes_the_epochs_that_the_config_gives_it():
    (hook,) = (hook for hook in load_config('configs/mobileone_s0_8xb32.py').custom_hooks if 'stages' in hook)
    stages = read_stages(hook.stages, imagenet.EPOCHS)
    assert [(stage.size, stage.epoch) for stage in stages] == list(imagenet.STAGES)
    assert imagenet.shares() == pytest.approx({160: 37 / 300, 192: 75 / 300, 224: 188 / 300})


def test_hours_and_rates():
    # 300 x 1,281,167 photos at 1,000 a second; at half of that for 37 epochs more: 37 x 1,281,167 / 1,000 s more.
    assert imagenet.hours({160: 1000, 192: 1000, 224: 1000}) == pytest.approx(106.764, abs=1e-3)
    assert imagenet.hours({160: 500, 192: 1000, 224: 1000}) == pytest.approx(106.764 * (1 + 37 / 300), abs=1e-3)
    # 67.6 ms for 256 images, as 181 GB at 2.68 TB/s.
    assert imagenet.images_per_second('s0', 'branches', 224, 2.68e12) == pytest.approx(256 / 0.0677, rel=0.01)


def test_the_page_holds_what_the_command_prints(run_tool):
    code, printed = run_tool('benchmark', 'imagenet')
    page = (ROOT / 'docs/imagenet.md').read_text()
    lines = [line for line in printed.splitlines() if line]
    assert code == 0 and len(lines) > 20
    assert not [line for line in lines if line not in page]


@pytest.mark.parametrize('option', [('--gpus', 0), ('--batch-size', 0), ('--bandwidth', 'nan'), ('--bandwidth', 0)])
def test_nothing_to_calculate_is_refused(run_tool, option):
    code, printed = run_tool('benchmark', 'imagenet', *option)
    assert code == 1 and option[0] in only_line(printed)
