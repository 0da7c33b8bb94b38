"""mu0 .. mu2: the widths are found again, and the built networks cost what the paper says."""

import numpy as np
import pytest
import torch
from torch import nn

from mobileone_ext.arch import ARCHS, stage_widths
from mobileone_ext.backbone import MobileOne

# Parameters, multiply-adds: MobileOne, arXiv 2206.04040, Table 13.
PAPER = dict(mu0=(0.57e6, 68e6), mu1=(0.98e6, 139e6), mu2=(1.3e6, 214e6))


def cost(widths):
    """Parameters and multiply-adds at 224 px of the fused network with 1000 classes, by hand; arrays are welcome."""
    stem = width = np.minimum(64, widths[0])
    side = 112
    params, madds = 28 * stem, 27 * stem * side**2
    for blocks, out in zip((2, 8, 10, 1), widths):
        side //= 2
        for _ in range(blocks):
            params = params + 10 * width + width * out + out
            madds = madds + (9 * width + width * out) * side**2
            width = out
    return params + 1000 * width + 1000, madds + 1000 * width


def search(params, madds, tolerance=0.01):
    """The widths within ``tolerance`` of both figures whose shape is closest to s0's."""
    grid = np.meshgrid(*(np.arange(8, most + 1, 8) for most in (96, 160, 320, 1024)), indexing='ij')
    grid_params, grid_madds = cost(grid)
    fits = (abs(grid_params / params - 1) < tolerance) & (abs(grid_madds / madds - 1) < tolerance)
    for narrow, wide in zip(grid, grid[1:]):
        fits &= narrow <= wide
    widths = np.stack([width[fits] for width in grid], axis=1)
    spread = np.log(widths / stage_widths(ARCHS['s0'])[1:]).std(axis=1)
    return widths[spread.argmin()].tolist()


@pytest.mark.parametrize('arch', PAPER)
def test_search_finds_the_widths_in_the_table(arch):
    assert search(*PAPER[arch]) == stage_widths(ARCHS[arch])[1:]


@pytest.mark.parametrize('arch', PAPER)
def test_built_network_costs_what_the_paper_says(arch):
    backbone = MobileOne(arch, deploy=True).eval()
    network = nn.Sequential(backbone, _Last(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(stage_widths(ARCHS[arch])[-1], 1000))
    madds = []

    def count(module, inputs, output):
        positions = output[0, 0].numel() if output.dim() == 4 else 1
        madds.append(module.weight.numel() * positions)

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 224, 224))
    params = sum(parameter.numel() for parameter in network.parameters())
    assert params == pytest.approx(PAPER[arch][0], rel=0.01)
    assert sum(madds) == pytest.approx(PAPER[arch][1], rel=0.01)


class _Last(nn.Module):
    def forward(self, maps):
        return maps[-1]
