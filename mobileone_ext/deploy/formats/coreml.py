"""CoreML: ``*.mlpackage``, a folder. Written everywhere, run on macOS alone.

With normalization inside, its input is an image, and with softmax its outputs are the best label and a dictionary of
all: what Vision and Xcode's preview ask for. Without, they are arrays.
"""

import copy
import io
import logging
import sys
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from ...metadata import Metadata
from . import OUTPUT_NAME
from .base import Network, Request, described_shape, only
from .torchscript import traced


def _import():
    logging.getLogger('coremltools').setLevel(logging.CRITICAL)  # it misses its macOS library at import
    import coremltools

    return coremltools


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    """In float16 unless float32 is asked for: the Neural Engine computes in nothing else."""
    coremltools = _import()
    said = Metadata.read(request.metadata)
    batch = coremltools.RangeDim(1, 64) if request.dynamic_batch else 1
    taken = coremltools.TensorType(request.input_name, (batch, *image.shape[1:]))
    if request.normalize:  # an image has a bias for each channel, but one scale for all: std stays in the network
        net = copy.deepcopy(net)
        bias, image = (-net.normalize.mean).flatten().tolist(), image[:1]
        net.normalize.mean.zero_()
        layout, bias = ('G', bias[0]) if len(bias) == 1 else (said.channels or 'RGB', bias)
        taken = coremltools.ImageType(request.input_name, image.shape, bias=bias, color_layout=layout)
    labels = coremltools.ClassifierConfig(_distinct(said)) if request.softmax and said.labels else None
    with redirect_stderr(io.StringIO()):  # its progress bars
        converted = coremltools.convert(
            traced(net, image, request.dynamic_batch and not request.normalize),
            inputs=[taken],
            outputs=None if labels else [coremltools.TensorType(OUTPUT_NAME)],
            classifier_config=labels,
            convert_to='mlprogram',
            compute_precision=getattr(coremltools.precision, request.precision.upper()),
        )
    converted.user_defined_metadata.update(request.metadata)
    converted.save(str(path))


def _distinct(said: Metadata) -> list[str]:
    """The labels, with their number where another class has the same: they are the keys of a dictionary."""
    count = Counter(said.labels)
    return [f'{name} ({index})' if count[name] > 1 else name for index, name in enumerate(said.labels or ())]


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    if sys.platform != 'darwin':
        raise ValueError('CoreML runs on macOS alone')
    coremltools = _import()
    model = coremltools.models.MLModel(str(path))
    description = model.get_spec().description
    image, output = only(description.input), description.output[0]
    scores, metadata = description.predictedProbabilitiesName, dict(model.user_defined_metadata)
    array, is_picture, said = image.type.multiArrayType, image.type.HasField('imageType'), Metadata.read(metadata)
    fixed_batch = is_picture or not array.HasField('shapeRange')
    sides = described_shape(metadata) if is_picture else list(array.shape)[1:]

    def call(images: np.ndarray) -> np.ndarray:
        found = model.predict({image.name: _picture(images[0], said.channels) if is_picture else images})
        return np.array([[found[scores][label] for label in _distinct(said)]]) if scores else found[output.name]

    return Network(call, fixed_batch, None, metadata, (1 if fixed_batch else None, *sides))


def _picture(pixels: np.ndarray, channels: str | None) -> Image.Image:
    """Pixels (C, H, W) 0 .. 255, in the file's channel order, as an image."""
    pixels = pixels[::-1] if channels == 'BGR' else pixels
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0).round().astype(np.uint8).squeeze()))
