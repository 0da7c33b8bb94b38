"""A fused classifier as the chain of linear layers that int8 works on, and the chain in simulated int8.

The simulation computes in float32 what an int8 runtime computes in integers.

Legend: N images, C channels, O outputs, I inputs of one output (in_channels / groups * K * K), G groups
(depthwise: one a channel; otherwise 1).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...block import MobileOneBlock
from ..compare import check_finite
from .ranges import QParams
from .saturation import PAIR_LIMIT, excess, neighbors_sum

CHUNK = 25  # images
INPUT, POOLED = 'input', 'pooled'


@dataclass
class Layer:
    """A convolution (with what follows it) or the classifier.

    Attributes:
        name: as in the state dict, e.g. ``backbone.stage1.0``.
        linear: the ``nn.Conv2d`` or ``nn.Linear``.
        finish: what turns its output into the next layer's input: SE and activation; not the pooling.
        has_se: whether SE is part of ``finish``.
    """

    name: str
    linear: nn.Module
    finish: Callable[[Tensor], Tensor]
    has_se: bool = False

    @property
    def is_depthwise(self) -> bool:
        return getattr(self.linear, 'groups', 1) > 1

    def grouped_weight(self) -> Tensor:
        """The weight as (G, O, I), inputs in the order in which kernels add them up: row, column, channel."""
        weight = self.linear.weight
        return weight.flatten(2) if self.is_depthwise else weight.movedim(1, -1).flatten(1)[None]

    @torch.no_grad()
    def load_grouped_weight(self, grouped: Tensor) -> None:
        """The inverse of :meth:`grouped_weight`."""
        weight = self.linear.weight
        if self.is_depthwise:
            weight.copy_(grouped.reshape(weight.shape))
        else:
            weight.copy_(grouped.reshape(weight.movedim(1, -1).shape).movedim(-1, 1))

    def patches(self, x: Tensor) -> Tensor:
        """What each output pixel of a dense layer sees of ``x`` (N, C, H, W) or (N, C): (P, I), in the same order."""
        if isinstance(self.linear, nn.Linear):
            return x
        conv = self.linear
        if conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0):
            return x.movedim(1, -1).flatten(0, 2)
        unfolded = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # (N, C * K * K, L)
        return unfolded.unflatten(1, (conv.in_channels, -1)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers of a fused mmpretrain classifier, in order; they share its tensors.

    Raises:
        ValueError: for a network that is no MobileOne or has branches, a grouped convolution that is not depthwise, or
            another activation than ReLU.
    """
    layers = []
    for name, block in model.named_modules():
        if isinstance(block, MobileOneBlock):
            if not block.deploy:
                raise ValueError(f'{name} is not fused; int8 needs the fused network')
            if block.groups > 1 and not block.groups == block.in_channels == block.out_channels:
                raise ValueError(
                    f'{name} has {block.groups} groups of {block.in_channels} -> {block.out_channels} channels; '
                    'int8 knows depthwise and dense convolutions'
                )
            if not isinstance(block.act, nn.ReLU):
                raise ValueError(f'{name} has the activation {type(block.act).__name__}; int8 knows ReLU')
            finish = nn.Sequential(block.se, block.act)
            layers.append(Layer(name, block.branch_reparam, finish, not isinstance(block.se, nn.Identity)))
    if not layers:
        raise ValueError(f'the backbone is {type(model.backbone).__name__}: int8 knows the blocks of MobileOne alone')
    return [*layers, Layer('head.fc', model.head.fc, nn.Identity())]


def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``function`` applied to some images at a time."""
    return torch.cat([function(chunk) for chunk in images.split(CHUNK)])


def finite(x: Tensor, layer: Layer) -> Tensor:
    """``x`` of the float network, unless it holds NaN or infinities behind ``layer``."""
    check_finite(x, f'the float network, at {layer.name},')
    return x


@dataclass
class Int8:
    """A quantized classifier: float tensors that int8 holds, and scales and zero points.

    Attributes:
        model: the classifier; its weights are multiples of their scales.
        weight_scales: (O,) by the layer's name; a layer that stays in float is absent.
        qparams: of the activations that enter int8 layers: by the name of the layer that
            makes them, ``input``, ``pooled``, and ``NAME.linear`` for what enters an SE.
        saturates: compute as a processor that adds pairs of products in 16 bits, see saturation.py.
    """

    model: nn.Module
    weight_scales: dict[str, Tensor] = field(default_factory=dict)
    qparams: dict[str, QParams] = field(default_factory=dict)
    saturates: bool = False

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (N, classes) for normalized images, as the int8 network gives them."""
        *convolutions, head = layers_of(self.model)
        x, source = self.rounded(INPUT, images), INPUT
        for layer in convolutions:
            x, source = self.block(layer, x, source), layer.name
        return self.linear(head, self.rounded(POOLED, x.mean((2, 3))), POOLED)

    def block(self, layer: Layer, x: Tensor, source: str) -> Tensor:
        """What a convolution and all that follows it makes of ``x``, rounded by the parameters called ``source``."""
        linear = self.rounded(f'{layer.name}.linear', self.linear(layer, x, source))
        return self.rounded(layer.name, layer.finish(linear))

    def linear(self, layer: Layer, x: Tensor, source: str) -> Tensor:
        """What ``layer`` alone makes of ``x``."""
        outputs = layer.linear(x)
        if not self.saturates or layer.is_depthwise or layer.name not in self.weight_scales:
            return outputs
        qparams, scales = self.qparams[source], self.weight_scales[layer.name]
        # Padding is a real zero, which stands at its zero point.
        integers = layer.patches(x / qparams.scale).round() + qparams.zero_point
        lost = excess(integers, (layer.grouped_weight()[0] / scales[:, None]).round()) * (qparams.scale * scales)
        return outputs - (lost if x.dim() == 2 else lost.unflatten(0, (len(x), *outputs.shape[2:])).movedim(-1, 1))

    @property
    def fits_16_bits(self) -> bool:
        """Whether no pair of products can leave 16 bits, so that every processor computes the same."""
        for layer in layers_of(self.model):
            if layer.name in self.weight_scales and not layer.is_depthwise:
                integers = (layer.grouped_weight()[0] / self.weight_scales[layer.name][:, None]).round()
                if not neighbors_sum(integers).max() <= PAIR_LIMIT:
                    return False
        return True

    def rounded(self, name: str, x: Tensor) -> Tensor:
        return self.qparams[name].apply(x) if name in self.qparams else x
