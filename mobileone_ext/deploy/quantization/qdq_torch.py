"""A quantized classifier as a PyTorch network with quantize / dequantize pairs, as torch's own quantization leaves it.

Weights are buffers of int8, activations int8 too: our uint8 steps, moved by 128. Toolchains that start from
``torch.export`` turn the pairs into integer kernels.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the operators

from .. import export
from .calibrate import INPUT, POOLED, Int8
from .chain import layers_of
from .ranges import QParams
from .rounding import LEVELS

OFFSET = 128  # from uint8 to int8


class Rounded(nn.Module):
    """An activation as int8 holds it."""

    def __init__(self, qparams: QParams):
        super().__init__()
        self.arguments = qparams.scale, qparams.zero_point - OFFSET, -OFFSET, OFFSET - 1, torch.int8

    def forward(self, x: Tensor) -> Tensor:
        ops = torch.ops.quantized_decomposed
        q = ops.quantize_per_tensor.default(x, *self.arguments)
        return ops.dequantize_per_tensor.default(q, *self.arguments)


class RoundedToOwnRange(nn.Module):
    """Each image's values on the 256 steps between its own smallest and largest one."""

    def forward(self, x: Tensor) -> Tensor:
        ops, limits = torch.ops.quantized_decomposed, (-OFFSET, OFFSET - 1, torch.int8)
        scale, zero_point = ops.choose_qparams.tensor(x, *limits[:2], torch.finfo(x.dtype).eps, torch.int8)
        q = ops.quantize_per_tensor.tensor(x, scale, zero_point, *limits)
        return ops.dequantize_per_tensor.tensor(q, scale, zero_point, *limits)


class Weight(nn.Module):
    """A weight (O, ...) in steps of ``scales`` (O,), kept as int8 or, with ``folded=False``, rounded on the way."""

    def __init__(self, weight: Tensor, scales: Tensor, folded: bool):
        super().__init__()
        self.folded = folded
        if folded:
            integers = (weight / scales.reshape(-1, *[1] * (weight.dim() - 1))).round().clamp(-LEVELS, LEVELS)
            weight = integers.to(torch.int8)
        # torch.export takes no weights in channels_last.
        self.register_buffer('weight', weight.contiguous())
        self.register_buffer('scales', scales.clone())
        self.register_buffer('zero_points', torch.zeros(len(scales), dtype=torch.int64))

    def forward(self) -> Tensor:
        ops = torch.ops.quantized_decomposed
        arguments = self.scales, self.zero_points, 0, -LEVELS, LEVELS, torch.int8
        q = self.weight if self.folded else ops.quantize_per_channel.default(self.weight, *arguments)
        return ops.dequantize_per_channel.default(q, *arguments)


class Int8Layer(nn.Module):
    """A convolution or linear layer whose weight is a :class:`Weight`."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, weight: Weight):
        super().__init__()
        self.weight, self.bias, self.function, self.options = weight, layer.bias, F.linear, ()
        if isinstance(layer, nn.Conv2d):
            self.function = F.conv2d
            self.options = layer.stride, layer.padding, layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight(), self.bias, *self.options)


@torch.no_grad()
def qdq_net(
    int8: Int8, normalize: nn.Module | None, softmax: bool, folded: bool = True, own_range: bool = False
) -> nn.Module:
    """``int8`` as a network to be exported.

    Args:
        normalize, softmax: as in :class:`export.DeployNet`.
        folded: weights are kept as int8, not as floats that are rounded.
        own_range: what enters the classifier takes each image's own range instead of the calibrated one, for runtimes
            whose integer layers return floats in that case only.
    """
    model = copy.deepcopy(int8.model)
    *convolutions, head = layers_of(model)
    for layer in convolutions:
        block, linear = model.get_submodule(layer.name), layer.linear
        # Integer kernels return integers: a layer that a float one follows computes in float, its weights rounded.
        ends = [name for name in (f'{layer.name}.linear', layer.name) if name in int8.qparams]
        if layer.name in int8.weight_scales and ends:
            linear = Int8Layer(linear, Weight(linear.weight, int8.weight_scales[layer.name], folded))
        block.branch_reparam = _rounded(linear, int8, f'{layer.name}.linear')
        block.act = _rounded(block.act, int8, layer.name)
    if head.name in int8.weight_scales:
        weight = Weight(head.linear.weight, int8.weight_scales[head.name], folded)
        # Behind the flattening: an integer kernel is found where the pair stands next to its layer.
        pooled = RoundedToOwnRange() if own_range else Rounded(int8.qparams[POOLED])
        model.head.fc = nn.Sequential(pooled, Int8Layer(head.linear, weight))
    net = export.DeployNet(model, normalize, softmax)
    net.normalize = _rounded(net.normalize, int8, INPUT)
    return net


def _rounded(module: nn.Module, int8: Int8, name: str) -> nn.Module:
    return nn.Sequential(module, Rounded(int8.qparams[name])) if name in int8.qparams else module
