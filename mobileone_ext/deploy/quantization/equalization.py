"""Cross-layer equalization: channels between two layers brought to one range, the function unchanged.

ReLU(x / s) = ReLU(x) / s for s > 0, so layer a may return channel c divided by s[c] if layer b multiplies
it back (Nagel et al. 2019, arXiv 1906.04721, section 4.1). There s balances the weights of a and b alone;
here it balances the range of the activation too, since it has one scale for all channels whatever the weights have.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .chain import Layer, finite, in_chunks, layers_of

WEIGHT_FLOOR = 0.5  # of the median; of weights that are 0, say


@torch.no_grad()
def equalize(model: nn.Module, images: Tensor, balance: float, floor: float) -> None:
    """Bring the channels between any two layers to one range, in place; the function stays the same.

    An SE between them reads the divided channels, so it is made to multiply them back.
    """
    layers = layers_of(model)
    for layer, after, largest in zip(layers, layers[1:], largest_activations(layers, images)):
        weights = outgoing_range(layer.linear), incoming_range(after.linear)
        scales = channel_scales(largest, *weights, balance, floor)
        divide_outputs(layer.linear, scales)
        if layer.has_se:
            multiply_inputs(layer.finish[0].conv1.conv, scales)
        multiply_inputs(after.linear, scales)


def largest_activations(layers: Sequence[Layer], images: Tensor) -> list[Tensor]:
    """The largest value of each channel (C,) behind every convolution."""
    largest, x = [], images
    for layer in layers[:-1]:
        x = finite(in_chunks(lambda chunk: layer.finish(layer.linear(chunk)), x), layer)  # noqa: B023
        largest.append(x.amax((0, 2, 3)))
    return largest


@torch.no_grad()
def absorb_bias(model: nn.Module, images: Tensor) -> None:
    """High-bias absorption, in place: what a depthwise channel exceeds on all images moves into the next bias.

    ReLU(x) - c = ReLU(x - c) where x >= c >= 0 (Nagel et al. 2019, arXiv 1906.04721, section 4.1.3). Only into a
    1x1 convolution: zero padding does not know of c. Exact where no x falls below c.
    """
    layers = layers_of(model)
    x = images
    for layer, after in zip(layers[:-1], layers[1:]):
        linear = in_chunks(layer.linear, x)
        x = in_chunks(layer.finish, linear)
        if layer.is_depthwise and not layer.has_se:
            shift = linear.amin((0, 2, 3)).clamp_min(0)
            layer.linear.bias -= shift
            after.linear.bias += after.linear.weight.flatten(1) @ shift
            x = x - shift.reshape(1, -1, 1, 1)


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


def outgoing_range(linear: nn.Module) -> Tensor:
    """Largest absolute weight behind each output channel, (O,)."""
    return linear.weight.abs().flatten(1).amax(1)


def incoming_range(linear: nn.Module) -> Tensor:
    """Largest absolute weight on each input channel, (C,)."""
    weight = linear.weight.abs()
    if getattr(linear, 'groups', 1) > 1:
        return weight.flatten(1).amax(1)
    return weight.transpose(0, 1).flatten(1).amax(1)


def divide_outputs(linear: nn.Module, scales: Tensor) -> None:
    """Make a layer return its outputs divided by ``scales`` (O,), in place."""
    linear.weight.div_(scales.reshape(-1, *[1] * (linear.weight.dim() - 1)))
    linear.bias.div_(scales)


def multiply_inputs(linear: nn.Module, scales: Tensor) -> None:
    """Make a layer expect its inputs divided by ``scales`` (C,), in place."""
    channel_axis = 0 if getattr(linear, 'groups', 1) > 1 else 1
    shape = [1] * linear.weight.dim()
    shape[channel_axis] = -1
    linear.weight.mul_(scales.reshape(shape))
