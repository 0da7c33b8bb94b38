"""A float network for quantizers that know nothing of this one: what survives any toolchain, as an ordinary file."""

import copy
import dataclasses
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...data.pixels import Normalize
from ...files import check_writable
from .. import export, fuse
from ..compare import Difference, image_channels
from .calibrate import Options, absorb_bias, equalize, quantize
from .chain import in_chunks, layers_of

SUFFIXES = ('.pth', '.onnx')
SNAP_STEPS = (127, 127.5)
TOLERANCE = 1e-3  # of the largest output: what rescaling in float32 may cost


def check_prepare(path: str) -> None:
    """Raise ValueError or OSError for what :func:`write_prepared` could not write."""
    if Path(path).suffix not in SUFFIXES:
        raise ValueError(f'--prepare {path}: a float network is written to {" or ".join(f"*{s}" for s in SUFFIXES)}')
    check_writable(path)


@torch.no_grad()
def prepare(
    model: nn.Module, images: Tensor, options: Options, snap: bool = False, snap_steps: float = 127
) -> tuple[nn.Module, Difference]:
    """A fused classifier that quantizes well, and how far its outputs on ``images`` lie from those of ``model``.

    Equalization (and bias absorption, if ``options`` has it) changes channels' ranges, not what the network computes.

    Args:
        images: normalized calibration images (N, C, H, W).
        snap: put the weights on the grid that a quantizer of symmetric int8 weights finds again, and the biases to
            what belongs to these weights: no longer the same function, but most of int8's error is made up for.
        snap_steps: what that quantizer divides the largest weight by, 127 or 127.5 (torchao's x86 quantizer): with
            the other one it would make all weights 0.4 % smaller or larger, in every layer.

    Raises:
        ValueError: if the function is not the same without ``snap``.
    """
    layers_of(model)  # refuses what int8 does not know
    if snap:
        # All of the grid's 127 steps: the next quantizer takes the largest weight of a channel for the grid's end.
        # Percentiles lie between min-max and tighter ranges: biases fitted to them suit other quantizers best.
        prepared = quantize(model, images, dataclasses.replace(options, weight_bits=8, ranges='percentile')).model
        for layer in layers_of(prepared):
            stretch_largest(layer.linear.weight, snap_steps / SNAP_STEPS[0], options.per_channel)
    else:
        prepared = copy.deepcopy(model).eval()
        if options.equalize:
            equalize(prepared, images, options.balance, options.floor)
        if options.absorb_bias:
            absorb_bias(prepared, images)
    difference = Difference()
    names = 'the float network', 'the prepared network'
    difference.add(in_chunks(model, images), in_chunks(prepared, images), names)
    if not snap:
        difference.check(max_flips=None, tolerance=TOLERANCE)
    return prepared, difference


@torch.no_grad()
def stretch_largest(weight: Tensor, factor: float, per_channel: bool) -> None:
    """Multiply the largest weight of each output channel, or of all of ``weight`` (O, ...), in place."""
    rows = weight.view(len(weight) if per_channel else 1, -1)
    rows[torch.arange(len(rows)), rows.abs().argmax(1)] *= factor


def write_prepared(
    config: Config, checkpoint: str, model: nn.Module, path: Path, suffix: str, file: export.FileOptions, snap: bool
) -> None:
    """Write a prepared network to ``path`` as a fused checkpoint or a float ONNX file, by ``suffix``."""
    how = 'prepared for int8: ' + ('weights on a grid, biases fitted' if snap else 'channels equalized')
    if suffix == '.pth':
        fuse.save_fused(model, path, config, checkpoint, how)
        return
    net = export.DeployNet(model, Normalize(config) if file.normalize else None, file.softmax)
    metadata = export.file_metadata(config, checkpoint, file.normalize, file.softmax, getattr(model, 'classes', None))
    with export.held_by('onnx'):
        image = torch.zeros(2, image_channels(net), file.size, file.size)
        proto = export.onnx_proto(net, image, file.opset, dynamic_batch=True)
    export.write_onnx(proto, path, {**metadata, 'prepared': how})
