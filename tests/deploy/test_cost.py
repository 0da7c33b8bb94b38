"""What a network costs: a vendor's column of literal numbers."""

import pytest
import torch
from torch import nn

from mobileone_ext import (
    backbone,  # noqa: F401  registers it
    cli,
)
from mobileone_ext.deploy import cost, fuse

VENDOR = dict(s0=0.611, s1=1.834, s2=2.886, s3=4.213, s4=6.621)
BRANCHED = dict(s1=857_219_328, s4=3_040_769_664)  # by fvcore 0.1.5


@pytest.mark.parametrize('variant', VENDOR)
def test_vendor_column(variant):
    model = fuse.build_model(cli.load_config(f'configs/mobileone_{variant}_8xb32.py'), 'fused').eval()
    count = cost.count_as_thop(model, 224)
    assert cost.vendor_gflops(count) == VENDOR[variant]
    assert count == 275_161_600 or variant != 's0'
    assert f'0.9e9: {VENDOR[variant]:.3f}' in cost.describe(model, 224, vendors=True)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize('variant', BRANCHED)
def test_branches_count_their_batch_norm(variant):
    model = fuse.build_model(cli.load_config(f'configs/mobileone_{variant}_8xb32.py'), 'branched')
    assert cost.count_multiply_adds(model, 224) == BRANCHED[variant]


def test_what_thop_counts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
            self.backbone.in_channels = 4
            self.rest = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))

        def forward(self, image):
            return self.rest(self.backbone(image))

    # 6 x 4 x 2 outputs of 2 x 3 x 3 weights; 48 additions and 6 divisions; 5 outputs of 6 weights.
    assert cost.count_as_thop(Net(), (8, 4)) == 48 * 18 + 48 + 6 + 5 * 6
    assert cost.vendor_gflops(450_123_456) == 1.0
    assert torch.is_grad_enabled()


@pytest.mark.parametrize('variant', ['s0', pytest.param('s4', marks=pytest.mark.slow)])
def test_layers_add_up_to_the_network(variant):
    """Parameters to those of the module, multiply-adds to the convolutions' and the classifier's, counted by shapes."""
    model = fuse.build_model(cli.load_config(f'configs/mobileone_{variant}_8xb32.py'), 'fused').eval()
    counted = 0

    def count(module, inputs, output):
        nonlocal counted
        counted += module.weight[0].numel() * output[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 64, 64))
    expected = counted
    rows = cost.layers(model, 64, runs=2)
    assert len(rows) == dict(s0=44, s4=68)[variant] + 1
    names, operators, outputs, parameters, multiply_adds, milliseconds = zip(*rows)
    assert sum(parameters) == cost.count_parameters(model)
    assert sum(multiply_adds) == expected
    assert min(milliseconds) > 0
    assert (operators[0], operators[-2], names[-1]) == ('Conv', 'Gemm', 'all else')
    assert 'stage0' in names[0] and outputs[0].endswith('x 32 x 32')


def test_the_tool_prints_layers(run_tool, tmp_path):
    config = 'tests/configs/tiny_digits.py'
    torch.save(fuse.build_model(cli.load_config(config), 'fused').state_dict(), tmp_path / 'net.pth')
    for options, count in (((), 0), (('--layers',), 1)):
        code, text = run_tool('export', config, tmp_path / 'net.pth', tmp_path / 'net.onnx', *options)
        assert code == 0 and text.count('layers, time by onnxruntime') == count, text
        assert 'as vendors print them' not in text
