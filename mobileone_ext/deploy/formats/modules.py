"""Networks around a network, as formats need them. All that imports torch for writing is here or in ``write``."""

import copy

from torch import Tensor, nn


class Half(nn.Module):
    """``net`` in float16 behind a float32 input and output."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image.half()).float()


def half_precision(net: nn.Module) -> nn.Module:
    """A copy of ``net`` that computes in float16; mean and standard deviation are applied before, in float32."""
    net = copy.deepcopy(net)
    normalize, net.normalize = net.normalize, nn.Identity()
    return nn.Sequential(normalize, Half(net.half())).eval()


class ChannelsLast(nn.Module):
    """``net`` with images (N, H, W, C)."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image.permute(0, 3, 1, 2))
