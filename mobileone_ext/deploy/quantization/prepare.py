"""A float network for quantizers that know nothing of this one: what survives any toolchain, as an ordinary file."""

import dataclasses

import torch
from torch import Tensor, nn

from ..compare import Difference
from . import Options
from .calibrate import quantize
from .chain import equalized, in_chunks, layers_of
from .rounding import LEVELS

TOLERANCE = 1e-3  # of the largest output: what rescaling in float32 may cost


@torch.no_grad()
def prepare(
    model: nn.Module, images: Tensor, options: Options, preround: float | None = None
) -> tuple[nn.Module, Difference]:
    """A fused classifier that quantizes well, and how far its outputs on ``images`` lie from those of ``model``.

    Equalization (and bias absorption, if ``options`` has it) changes channels' ranges, not what the network computes.

    Args:
        images: normalized calibration images (N, C, H, W).
        preround: put the weights on the steps that a quantizer of symmetric int8 weights finds again, and the biases
            to what belongs to these weights: another function, but most of int8's error is made up for. It is what
            that quantizer divides the largest weight by, 127 or 127.5 (torchao's x86 quantizer): with the other one it
            would make all weights 0.4 % smaller or larger, in every layer.

    Raises:
        ValueError: for a network that int8 does not know, or if the function is not the same without ``preround``.
    """
    if preround:
        # All of the 127 steps: the next quantizer takes the largest weight of a channel for the last of them.
        # Percentiles lie between min-max and tighter ranges: biases fitted to them suit other quantizers best.
        prepared = quantize(model, images, dataclasses.replace(options, weight_bits=8, ranges='percentile')).model
        for layer in layers_of(prepared):
            weight = layer.linear.weight
            rows = weight.view(len(weight) if options.per_channel else 1, -1)
            rows[torch.arange(len(rows)), rows.abs().argmax(1)] *= preround / LEVELS
    else:
        prepared = equalized(model, images, options)
    difference = Difference()
    names = 'the float network', 'the prepared network'
    difference.add(in_chunks(model, images), in_chunks(prepared, images), names)
    if not preround:
        difference.check(max_flips=None, tolerance=TOLERANCE)
    return prepared, difference
