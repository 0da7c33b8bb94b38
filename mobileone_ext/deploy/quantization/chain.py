"""A fused classifier as the chain of linear layers that int8 works on, and its channels brought to one range.

Equalization: ReLU(x / s) = ReLU(x) / s for s > 0, so layer a may return channel c divided by s[c] if layer b
multiplies it back (Nagel et al. 2019, arXiv 1906.04721, section 4.1). There s balances the weights of a and b alone;
here it balances the range of the activation too, since it has one scale for all channels whatever the weights have.

Legend: N images, C channels, O outputs, I inputs of one output (in_channels / groups * K * K), G groups
(depthwise: one a channel; otherwise 1).
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...block import MobileOneBlock
from ..anywhere import check_finite
from . import Options

CHUNK = 25  # images
HEAD = 'head.fc'
WEIGHT_FLOOR = 0.5  # of the median; of weights that are 0, say


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

    @property
    def weight_by_input(self) -> Tensor:
        """The weights that each input channel meets, (C, ...)."""
        weight = self.linear.weight
        return (weight if self.is_depthwise else weight.transpose(0, 1)).flatten(1)

    @property
    def importance(self) -> Tensor:
        """Squared weight on each input channel, (C,): what an error there does to the layer's outputs."""
        return (self.weight_by_input**2).sum(1)

    @property
    def grouped_weight(self) -> Tensor:
        """The weight as (G, O, I), inputs in the order in which kernels add them up: row, column, channel."""
        weight = self.linear.weight
        return weight.flatten(2) if self.is_depthwise else weight.movedim(1, -1).flatten(1)[None]

    @grouped_weight.setter
    @torch.no_grad()
    def grouped_weight(self, grouped: Tensor) -> None:
        weight = self.linear.weight
        if self.is_depthwise:
            weight.copy_(grouped.reshape(weight.shape))
        else:
            weight.copy_(grouped.reshape(weight.movedim(1, -1).shape).movedim(-1, 1))


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
    return [*layers, Layer(HEAD, model.head.fc, nn.Identity())]


def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """``function`` applied to some images at a time."""
    return torch.cat([function(chunk) for chunk in images.split(CHUNK)])


class Outputs(NamedTuple):
    """Of a convolution: ``linear``, its own, and ``finished``, with SE and activation."""

    linear: Tensor
    finished: Tensor


def run_layers(convolutions: Sequence[Layer], images: Tensor) -> Iterator[Outputs]:
    """What each of the network's ``convolutions`` makes of ``images``, one after the other.

    Raises:
        ValueError: naming the layer behind which there is NaN or an infinity.
    """
    x = images
    for layer in convolutions:
        linear = in_chunks(layer.linear, x)
        check_finite(linear, f'the float network, at {layer.name},')
        x = in_chunks(lambda chunk: layer.finish(chunk.clone()), linear)  # noqa: B023  activations work in place
        yield Outputs(linear, x)


@torch.no_grad()
def equalized(model: nn.Module, images: Tensor, options: Options) -> nn.Module:
    """A copy in eval mode that computes the same with the channels' ranges that ``options`` ask for."""
    model = copy.deepcopy(model).eval()
    if options.equalize:
        equalize(model, images, options.balance, options.floor)
    if options.absorb_bias:
        absorb_bias(model, images)
    return model


@torch.no_grad()
def equalize(model: nn.Module, images: Tensor, balance: float, floor: float) -> None:
    """Bring the channels between any two layers to one range, in place; the function stays the same."""
    layers = layers_of(model)
    for layer, after, largest in zip(layers, layers[1:], largest_activations(layers, images)):
        even_out(layer, after, largest, balance, floor)


@torch.no_grad()
def even_out(layer: Layer, after: Layer, largest: Tensor, balance: float, floor: float) -> None:
    """Bring the channels between two layers to one range, in place, by :func:`channel_scales`.

    An SE between them reads the divided channels, so it is made to multiply them back.

    Args:
        largest: value of each channel (C,) between them.
    """
    weight_out, weight_in = layer.linear.weight.abs().flatten(1).amax(1), after.weight_by_input.abs().amax(1)
    scales = channel_scales(largest, weight_out, weight_in, balance, floor)
    for makes in layer.linear.parameters():
        makes.div_(scales.reshape(-1, *[1] * (makes.dim() - 1)))
    for reads in [layer.finish[0].conv1.conv, after.linear] if layer.has_se else [after.linear]:
        # Depthwise weights are (C, 1, K, K), dense ones (O, C, ...).
        by_channel = (-1, 1) if getattr(reads, 'groups', 1) > 1 else (1, -1)
        reads.weight.mul_(scales.reshape(*by_channel, *[1] * (reads.weight.dim() - 2)))


def largest_activations(layers: Sequence[Layer], images: Tensor) -> list[Tensor]:
    """The largest value of each channel (C,) behind every convolution of a network's ``layers``."""
    return [outputs.finished.amax((0, 2, 3)) for outputs in run_layers(layers[:-1], images)]


def channel_scales(activation: Tensor, weight_out: Tensor, weight_in: Tensor, balance: float, floor: float) -> Tensor:
    """What to divide each of C channels by; all arguments (C,), their median 1 in the result.

    Args:
        activation: largest value of the channel on the calibration images.
        weight_out: largest weight of the layer before that makes the channel.
        weight_in: largest weight of the layer after that reads it.
        balance: 1 brings the activations to one range, 0 makes the weights alike in both layers.
        floor: what an activation counts as at least, of the median: a channel that is quiet on the calibration images
            may be loud on others.
    """
    activation = _floored(activation, floor)
    weights = (_floored(weight_out, WEIGHT_FLOOR) / _floored(weight_in, WEIGHT_FLOOR)).sqrt()
    scales = activation**balance * (weights / weights.median()) ** (1 - balance)
    return scales / scales.median()


def _floored(values: Tensor, floor: float) -> Tensor:
    """``values`` over the median of the positive ones, none below ``floor``."""
    positive = values[values > 0]
    if not len(positive):
        return torch.ones_like(values)
    return (values / positive.median()).clamp_min(floor)


@torch.no_grad()
def absorb_bias(model: nn.Module, images: Tensor) -> None:
    """High-bias absorption, in place: what a depthwise channel exceeds on all images moves into the next bias.

    ReLU(x) - c = ReLU(x - c) where x >= c >= 0 (Nagel et al. 2019, arXiv 1906.04721, section 4.1.3). Only into a
    1x1 convolution: zero padding does not know of c. Exact where no x falls below c.
    """
    layers = layers_of(model)
    shifts = [outputs.linear.amin((0, 2, 3)).clamp_min(0) for outputs in run_layers(layers[:-1], images)]
    for layer, after, shift in zip(layers, layers[1:], shifts):
        if layer.is_depthwise and not layer.has_se:
            layer.linear.bias -= shift
            after.linear.bias += after.linear.weight.flatten(1) @ shift
