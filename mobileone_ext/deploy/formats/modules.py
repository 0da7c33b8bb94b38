"""Networks around a network, as formats need them. All that imports torch for writing is here or in ``write``."""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .base import Network


class Half(nn.Module):
    """``net`` in float16 behind a float32 input and output."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        return tree_map(Tensor.float, self.net(image.half()))


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


def opened(model: nn.Module, metadata: Mapping[str, str] = {}) -> Network:
    """A copy of a network in memory, in eval mode on the CPU, as a file of it would be opened."""
    model = copy.deepcopy(model).cpu().eval()

    @torch.no_grad()
    def call(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).numpy()

    return Network(call, False, None, dict(metadata))
