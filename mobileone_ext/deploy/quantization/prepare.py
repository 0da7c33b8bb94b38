"""A float network for quantizers that know nothing of this one: what survives any toolchain, as an ordinary file."""

import copy
import dataclasses

import torch
from torch import Tensor, nn

from ...data.pixels import Preprocessing
from ...files import suffix_of, write_atomically
from .. import export, fuse
from ..compare import Difference
from ..formats.base import Request
from .calibrate import Options, quantize
from .chain import in_chunks, layers_of
from .equalization import absorb_bias, equalize
from .rounding import LEVELS

SUFFIXES = ('.pth', '.onnx')
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
        ValueError: if the function is not the same without ``preround``.
    """
    layers_of(model)  # refuses what int8 does not know
    if preround:
        # All of the grid's 127 steps: the next quantizer takes the largest weight of a channel for the grid's end.
        # Percentiles lie between min-max and tighter ranges: biases fitted to them suit other quantizers best.
        prepared = quantize(model, images, dataclasses.replace(options, weight_bits=8, ranges='percentile')).model
        for layer in layers_of(prepared):
            stretch_largest(layer.linear.weight, preround / LEVELS, options.per_channel)
    else:
        prepared = copy.deepcopy(model).eval()
        if options.equalize:
            equalize(prepared, images, options.balance, options.floor)
        if options.absorb_bias:
            absorb_bias(prepared, images)
    difference = Difference()
    names = 'the float network', 'the prepared network'
    difference.add(in_chunks(model, images), in_chunks(prepared, images), names)
    if not preround:
        difference.check(max_flips=None, tolerance=TOLERANCE)
    return prepared, difference


@torch.no_grad()
def stretch_largest(weight: Tensor, factor: float, per_channel: bool) -> None:
    """Multiply the largest weight of each output channel, or of all of ``weight`` (O, ...), in place."""
    rows = weight.view(len(weight) if per_channel else 1, -1)
    rows[torch.arange(len(rows)), rows.abs().argmax(1)] *= factor


def write_prepared(
    model: nn.Module, path: str, request: Request, preprocessing: Preprocessing, checkpoint: str, is_prerounded: bool
) -> None:
    """Write a prepared network to ``path`` as a fused checkpoint or a float ONNX file, by its suffix."""
    how = 'prepared for int8: ' + ('weights on a grid, biases fitted' if is_prerounded else 'channels equalized')
    if suffix_of(path) == '.pth':
        with write_atomically(path) as part:
            fuse.save_fused(model, part, preprocessing.config, checkpoint, how)
        return
    request = dataclasses.replace(request, format='onnx', metadata=dict(prepared=how))
    export.export_classifier(model, path, request, preprocessing, checkpoint)
