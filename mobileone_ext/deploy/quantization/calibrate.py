"""Int8 in one pass over calibration images: each layer is fitted to the float network given the int8 ones before it.

The simulation computes in float32 what an int8 runtime computes in integers; shapes as in chain.py.
"""

import copy
import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compare import check_finite
from . import Options, rounding
from .chain import CHUNK, Layer, equalized, in_chunks, layers_of, run_layers
from .ranges import QParams, choose_qparams

INPUT, POOLED = 'input', 'pooled'
DEFAULT = Options()
# Pixels of each image that a layer's moments are taken at: 12,800 samples of 200 images for at most 1,024 inputs.
POSITIONS = 64
LOWEST, HIGHEST = -(2**15), 2**15 - 1
PAIRS = 512  # of products, at a time


@dataclass
class Int8:
    """A quantized classifier: float tensors that int8 holds, and scales and zero points.

    Attributes:
        model: the classifier; its weights are multiples of their scales.
        weight_scales: (O,) by the layer's name; a layer that stays in float is absent.
        qparams: of the activations that enter int8 layers: by the name of the layer that
            makes them, ``input``, ``pooled``, and ``NAME.linear`` for what enters an SE.
        saturates: compute as a processor that adds pairs of products in 16 bits, see :func:`excess`.
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
        return self.sums(head, self.rounded(POOLED, x.mean((2, 3))), POOLED)

    def block(self, layer: Layer, x: Tensor, source: str) -> Tensor:
        """What a convolution and all that follows it makes of ``x``, rounded by the parameters called ``source``."""
        linear = self.rounded(f'{layer.name}.linear', self.sums(layer, x, source))
        return self.rounded(layer.name, layer.finish(linear))

    def sums(self, layer: Layer, x: Tensor, source: str) -> Tensor:
        """The sums of products, and the bias, that ``layer`` alone makes of ``x``."""
        outputs = layer.linear(x)
        if not self.saturates or layer.is_depthwise or layer.name not in self.weight_scales:
            return outputs
        qparams, scales = self.qparams[source], self.weight_scales[layer.name]
        # Padding is a real zero, which stands at its zero point.
        integers = _patches(layer, x / qparams.scale).round() + qparams.zero_point
        lost = excess(integers, self.integers(layer)) * (qparams.scale * scales)
        return outputs - (lost if x.dim() == 2 else lost.unflatten(0, (len(x), *outputs.shape[2:])).movedim(-1, 1))

    @property
    def fits_16_bits(self) -> bool:
        """Whether no pair of products can leave 16 bits, so that every processor computes the same."""
        dense = (layer for layer in layers_of(self.model) if not layer.is_depthwise)
        integers = (self.integers(layer) for layer in dense if layer.name in self.weight_scales)
        return all(bool(rounding.neighbors_sum(weight).max() <= rounding.PAIR_LIMIT) for weight in integers)

    def integers(self, layer: Layer) -> Tensor:
        """The weight of a dense int8 layer as what is stored, (O, I)."""
        return (layer.grouped_weight[0] / self.weight_scales[layer.name][:, None]).round()

    def rounded(self, name: str, x: Tensor) -> Tensor:
        return self.qparams[name].apply(x) if name in self.qparams else x


def _patches(layer: Layer, x: Tensor) -> Tensor:
    """What each output pixel of a dense layer sees of ``x`` (N, C, H, W) or (N, C): (P, I), in the order of
    ``Layer.grouped_weight``."""
    conv = layer.linear
    if isinstance(conv, nn.Linear):
        return x
    if conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding == (0, 0):
        return x.movedim(1, -1).flatten(0, 2)
    unfolded = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # (N, C * K * K, L)
    return unfolded.unflatten(1, (conv.in_channels, -1)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)


def excess(x: Tensor, weight: Tensor) -> Tensor:
    """What x86 processors without VNNI take away from ``x @ weight.T``, (P, O) for P pixels, O outputs.

    ``pmaddubsw`` adds two neighboring products in 16 bits and saturates: 255 * 127 + 255 * 127 = 64,770 becomes 32,767.
    onnxruntime and OpenVINO use it (AVX2, AVX-512 without VNNI) in dense layers; in depthwise ones both add in 32 bits.
    Neighbors are those of the layer's reduction in NHWC order: (0, 1), (2, 3) .. of kernel row, column, channel in
    onnxruntime; of each kernel position's channels in OpenVINO, which is the same for a 1x1 kernel and for an even
    number of channels.

    Args:
        x: integers 0 .. 255 (P, I); weight: integers -128 .. 127 (O, I); both as floats, I in NHWC order.
    """
    if x.shape[1] % 2:
        x, weight = (F.pad(tensor, (0, 1)) for tensor in (x, weight))
    lost = x.new_zeros(len(x), len(weight))
    # Few pairs can saturate: those alone are multiplied out.
    large = 255 * weight.unflatten(1, (-1, 2))
    outputs, pairs = ((large.clamp_min(0).sum(2) > HIGHEST) | (large.clamp_max(0).sum(2) < LOWEST)).nonzero().T
    for output, pair in zip(outputs.split(PAIRS), pairs.split(PAIRS)):
        first, second = 2 * pair, 2 * pair + 1
        total = x[:, first] * weight[output, first] + x[:, second] * weight[output, second]
        lost.index_add_(1, output, total - total.clamp(LOWEST, HIGHEST))
    return lost


@torch.no_grad()
def quantize(model: nn.Module, images: Tensor, options: Options = DEFAULT) -> Int8:
    """A quantized copy of a fused classifier.

    Args:
        images: normalized calibration images (N, C, H, W); no labels are needed.

    Raises:
        ValueError: if ``options.keep`` names no layer, or a layer's outputs are NaN or infinite.
    """
    names = [layer.name for layer in layers_of(model)]
    for name in options.keep:
        if name not in names:
            raise ValueError(f'keep: no layer {name!r}; the layers are {", ".join(names)}')
    images = images.contiguous(memory_format=torch.channels_last)
    reference = equalized(model, images, options)
    result = Int8(copy.deepcopy(reference))
    *float_convolutions, float_head = layers_of(reference)
    *convolutions, head = layers_of(result.model)
    if names[0] not in options.keep:
        result.qparams[INPUT] = choose_qparams(images, images.new_ones(images.shape[1]), options.ranges)
    rounded, source = in_chunks(lambda x: result.rounded(INPUT, x), images), INPUT
    of_float = run_layers(float_convolutions, images)
    for layer, after, outputs in zip(convolutions, [*convolutions[1:], head], of_float):
        is_int8 = layer.name not in options.keep
        if is_int8:
            samples = _at_random_pixels(layer, rounded, outputs.linear)
            _quantize_layer(result, layer, *samples, source, options)
        if layer.has_se and is_int8:
            gates = in_chunks(layer.linear, rounded)
            unweighted = gates.new_ones(gates.shape[1])
            result.qparams[f'{layer.name}.linear'] = choose_qparams(gates, unweighted, options.ranges)
        rounded = in_chunks(lambda x: result.block(layer, x, source), rounded)  # noqa: B023
        source = layer.name
        # A map is rounded for the layer that reads it. The last one is read by the pooling, which runs in integers
        # behind an int8 layer whether the classifier stays in float or not.
        is_read_in_int8 = is_int8 if after is head else after.name not in options.keep
        if is_read_in_int8:
            result.qparams[source] = choose_qparams(rounded, after.importance, options.ranges)
            rounded = in_chunks(result.qparams[source].apply, rounded)
    if head.name not in options.keep:
        rounded = rounded.mean((2, 3))
        result.qparams[POOLED] = qparams = choose_qparams(rounded, head.importance, options.ranges)
        expected = float_head.linear(outputs.finished.mean((2, 3)))
        check_finite(expected, f'the float network, at {head.name},')
        _quantize_layer(result, head, qparams.apply(rounded)[None], expected[None], POOLED, options)
    return result


def _quantize_layer(result: Int8, layer: Layer, inputs: Tensor, outputs: Tensor, source: str, options: Options) -> None:
    """Put ``layer``'s weights on int8 steps, given samples of its inputs (G, n, I), rounded by the parameters called
    ``source``, and the expected outputs (G, n, O)."""
    in_pairs = options.weight_bits == 7 and not layer.is_depthwise
    stats, weight = rounding.moments(inputs, outputs), layer.grouped_weight.double()
    input_scale = result.qparams[source].scale
    weight, bias, scales = rounding.fit(weight, layer.linear.bias, stats, input_scale, in_pairs, options)
    layer.linear.bias.copy_(bias)
    layer.grouped_weight = weight
    result.weight_scales[layer.name] = scales.flatten().float()


def _at_random_pixels(layer: Layer, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (G, n, I) and outputs (G, n, O) of a convolution at the same few random pixels of each image."""
    conv = layer.linear
    images, _, height, width = outputs.shape
    generator = torch.Generator().manual_seed(0)
    count = min(POSITIONS, height * width)
    rows = torch.randint(height, (images, count), generator=generator)
    columns = torch.randint(width, (images, count), generator=generator)
    index = torch.arange(images)[:, None].expand(-1, count)
    outputs = outputs[index, :, rows, columns].flatten(0, 1)  # (n, O)
    padded = F.pad(x, [conv.padding[0]] * 4)
    size = conv.kernel_size[0]
    offsets = [(row * conv.dilation[0], column * conv.dilation[0]) for row in range(size) for column in range(size)]
    patches = [padded[index, :, rows * conv.stride[0] + r, columns * conv.stride[0] + c] for r, c in offsets]
    patches = torch.stack([patch.flatten(0, 1) for patch in patches], 1)  # (n, K * K, C)
    if layer.is_depthwise:
        return patches.permute(2, 0, 1), outputs.t()[:, :, None]
    return patches.flatten(1)[None], outputs[None]


class Loss(NamedTuple):
    """What a layer costs when it alone is int8, and why.

    Attributes:
        divergence: Kullback-Leibler, from the float network.
        cause: ``'weights'`` or ``'activations'``: the one whose rounding makes more of the squared error that the next
            layer sees.
        lowest, highest: what that one's steps span; of weights, those of the worst channel.
        channel: of the layer's outputs, the one that most of this error is in, and its share of it, 0 .. 1.
    """

    layer: str
    divergence: float
    cause: str
    lowest: float
    highest: float
    channel: int
    share: float

    @property
    def range(self) -> str:
        """In words."""
        alike = self.lowest == -self.highest
        return f'±{self.highest:.3g}' if alike else f'{self.lowest:.3g} .. {self.highest:.3g}'


@torch.no_grad()
def sensitivity(model: nn.Module, images: Tensor, options: Options, held_out: Tensor) -> list[Loss]:
    """What each layer costs when it alone is int8, largest divergence first.

    Args:
        images, held_out: normalized; errors are measured on ``held_out``.

    Raises:
        ValueError: if either holds no image.
    """
    if not (len(images) and len(held_out)):
        raise ValueError('--sensitivity calibrates on half of the images and measures on the others: two are needed')
    # A fitted layer makes up for the int8 layers before it, which are float here: round to nearest.
    full = quantize(model, images, dataclasses.replace(options, compensate=False, correct_bias=False))
    reference = equalized(model, images, options)
    expected = in_chunks(Int8(reference), held_out).log_softmax(1)
    errors, found = _rounding_errors(reference, full, held_out), []
    for index, layer in enumerate(layers_of(full.model)):
        name = layer.name
        if name not in full.weight_scales:
            continue
        alone = Int8(copy.deepcopy(reference), qparams={k: v for k, v in full.qparams.items() if k == name})
        layers_of(alone.model)[index].linear.load_state_dict(layer.linear.state_dict())
        logits = in_chunks(alone, held_out).log_softmax(1)
        divergence = float(F.kl_div(logits, expected, log_target=True, reduction='batchmean'))
        cause, error = max(errors[name].items(), key=lambda item: float(item[1].sum()))
        channel = int(error.argmax())
        if cause == 'weights':
            scales = full.weight_scales[name]
            highest = float(rounding.LEVELS * scales[min(channel, len(scales) - 1)])
            lowest = -highest
        else:
            scale, zero = full.qparams[name]
            lowest, highest = -zero * scale, (255 - zero) * scale
        share = float(error[channel] / error.sum().clamp_min(torch.finfo(error.dtype).tiny))
        found.append(Loss(name, divergence, cause, lowest, highest, channel, share))
    return sorted(found, key=lambda loss: -loss.divergence)


def _rounding_errors(reference: nn.Module, full: Int8, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """By layer, the squared error (C,) in its output channels, weighed as the next layer does, of rounding its
    ``weights`` and its ``activations`` alone."""
    layers, rounded = layers_of(reference), layers_of(full.model)
    errors: dict[str, dict[str, Tensor]] = defaultdict(lambda: defaultdict(lambda: torch.zeros(())))
    for x in images.split(CHUNK):
        for layer, after, int8 in zip(layers, [*layers[1:], None], rounded):
            x = x if after else x.mean((2, 3))
            weights, x = (each.finish(each.linear(x)) for each in (int8, layer))
            for cause, outputs in (('weights', weights), ('activations', full.rounded(layer.name, x))):
                error = ((outputs - x).double() ** 2).transpose(0, 1).flatten(1).sum(1)
                errors[layer.name][cause] = errors[layer.name][cause] + error * (after.importance if after else 1)
    return errors
