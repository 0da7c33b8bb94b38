"""Int8 in one pass over calibration images: each layer is fitted to the float network given the int8 ones before it."""

import copy
import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import rounding
from .chain import INPUT, POOLED, Int8, Layer, finite, in_chunks, layers_of
from .equalization import absorb_bias, equalize
from .ranges import QParams, choose_qparams

# Pixels of each image that a layer's moments are taken at: 12,800 samples of 200 images for at most 1,024 inputs.
POSITIONS = 64
# An activation's range is chosen on at most about this many rows and columns: neighbors tell little more.
RANGE_PIXELS = 14


@dataclass(frozen=True)
class Options:
    """What to do; each step can be left out.

    Attributes:
        per_channel: one weight scale for each output channel instead of one for the layer.
        equalize, balance, floor: see equalization.py.
        absorb_bias: move what a depthwise channel always exceeds into the next layer's bias.
        correct_bias: fit each bias to the means of the float network.
        compensate: least squares and compensated rounding instead of rounding to nearest; fits the bias too.
        ranges: of activations, one of ``RANGES``.
        ridge: holds least squares to the given weights, see rounding.py.
        weight_bits: 8, or 7 for weights whose sums of products fit 16 bits, see saturation.py.
        keep: names of layers that stay in float.
    """

    per_channel: bool = True
    equalize: bool = True
    balance: float = 0.5
    floor: float = 1.0
    absorb_bias: bool = False
    correct_bias: bool = True
    compensate: bool = True
    ranges: str = 'mse'
    ridge: float = 10.0
    weight_bits: int = 7
    keep: tuple[str, ...] = ()


@torch.no_grad()
def quantize(model: nn.Module, images: Tensor, options: Options = Options()) -> Int8:
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
    reference = copy.deepcopy(model).eval()
    images = images.contiguous(memory_format=torch.channels_last)
    if options.equalize:
        equalize(reference, images, options.balance, options.floor)
    if options.absorb_bias:
        absorb_bias(reference, images)
    result = Int8(copy.deepcopy(reference))

    *convolutions, head = layers_of(reference)
    *int8_convolutions, int8_head = layers_of(result.model)
    following = [*convolutions[1:], head]
    if names[0] not in options.keep:
        _observe(result, INPUT, images, images.new_ones(images.shape[1]), options)
    expected, rounded, source = images, in_chunks(lambda x: result.rounded(INPUT, x), images), INPUT
    for layer, int8_layer, after in zip(convolutions, int8_convolutions, following):
        linear = finite(in_chunks(layer.linear, expected), layer)
        is_int8 = layer.name not in options.keep
        if is_int8:
            inputs, outputs = _at_random_pixels(int8_layer, rounded, linear)
            _quantize_layer(result, int8_layer, inputs, outputs, result.qparams[source], options)
        expected = in_chunks(layer.finish, linear)
        if layer.has_se and is_int8:
            gates = in_chunks(int8_layer.linear, rounded)
            _observe(result, f'{layer.name}.linear', gates, gates.new_ones(gates.shape[1]), options)
        rounded = in_chunks(lambda x: result.block(int8_layer, x, source), rounded)  # noqa: B023
        source = layer.name
        # A map is rounded for the layer that reads it. The last one is read by the pooling, which runs in integers
        # behind an int8 layer whether the classifier stays in float or not.
        is_read_in_int8 = is_int8 if after is head else after.name not in options.keep
        if is_read_in_int8:
            _observe(result, layer.name, rounded, _importance(after), options)
            rounded = in_chunks(result.qparams[layer.name].apply, rounded)
    if head.name not in options.keep:
        expected, rounded = expected.mean((2, 3)), rounded.mean((2, 3))
        _observe(result, POOLED, rounded, _importance(head), options)
        inputs, outputs = result.qparams[POOLED].apply(rounded)[None], finite(head.linear(expected), head)[None]
        _quantize_layer(result, int8_head, inputs, outputs, result.qparams[POOLED], options)
    return result


def _quantize_layer(
    result: Int8, layer: Layer, inputs: Tensor, outputs: Tensor, qparams: QParams, options: Options
) -> None:
    """Put ``layer``'s weights on int8 steps, given samples of its inputs (G, n, I), rounded by ``qparams``, and the
    expected outputs (G, n, O)."""
    stats = rounding.moments(inputs, outputs)
    weight = layer.grouped_weight().double()
    fits_bias = options.correct_bias or options.compensate
    offsets = stats.mean_out.squeeze(1) if fits_bias else layer.linear.bias.double().view(len(weight), -1)
    clips = rounding.CLIPS if options.compensate else (1.0,)
    in_pairs = options.weight_bits == 7 and not layer.is_depthwise
    if options.compensate:
        weight = rounding.least_squares(weight, stats, options.ridge)
    scales = rounding.choose_scales(weight, stats.inputs, offsets, qparams.scale, options.per_channel, in_pairs, clips)
    if options.compensate:
        weight = rounding.round_with_compensation(weight, stats.inputs, scales, in_pairs)
    else:
        weight = rounding.to_steps(weight, scales, in_pairs)
    if fits_bias:
        layer.linear.bias.copy_(rounding.fitted_bias(weight, stats))
    layer.load_grouped_weight(weight)
    result.weight_scales[layer.name] = scales.flatten().float()


def _observe(result: Int8, name: str, x: Tensor, importance: Tensor, options: Options) -> None:
    if x.dim() == 4 and options.ranges != 'minmax':
        rows, columns = (max(1, size // RANGE_PIXELS) for size in x.shape[2:])
        x = x[:, :, ::rows, ::columns]
    result.qparams[name] = choose_qparams(x, importance, options.ranges)


def _importance(layer: Layer) -> Tensor:
    """Squared weight on each input channel, (C,): what an error there does to the layer's outputs."""
    weight = layer.linear.weight**2
    return weight.flatten(1).sum(1) if layer.is_depthwise else weight.transpose(0, 1).flatten(1).sum(1)


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


@torch.no_grad()
def sensitivity(model: nn.Module, images: Tensor, options: Options, held_out: Tensor) -> list[tuple[str, float]]:
    """What each layer costs when it alone is int8: Kullback-Leibler divergence from the float network, largest first.

    Args:
        images, held_out: normalized; the divergence is measured on ``held_out``.

    Raises:
        ValueError: if either holds no image.
    """
    if not (len(images) and len(held_out)):
        raise ValueError('--sensitivity calibrates on half of the images and measures on the others: two are needed')
    # A fitted layer makes up for the int8 layers before it, which are float here: round to nearest.
    full = quantize(model, images, dataclasses.replace(options, compensate=False, correct_bias=False))
    reference = copy.deepcopy(model).eval()
    if options.equalize:
        equalize(reference, images, options.balance, options.floor)
    expected = in_chunks(Int8(reference), held_out).log_softmax(1)
    costs = []
    for layer, quantized in zip(layers_of(reference), layers_of(full.model)):
        if layer.name not in full.weight_scales:
            continue
        alone = Int8(copy.deepcopy(reference), qparams={k: v for k, v in full.qparams.items() if k == layer.name})
        for own in layers_of(alone.model):
            if own.name == layer.name:
                own.linear.load_state_dict(quantized.linear.state_dict())
        found = in_chunks(alone, held_out).log_softmax(1)
        costs.append((layer.name, float(F.kl_div(found, expected, log_target=True, reduction='batchmean'))))
    return sorted(costs, key=lambda cost: -cost[1])
