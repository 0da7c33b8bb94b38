"""CoreML: ``*.mlpackage``, a folder. Written everywhere, run on macOS alone."""

import io
import logging
import sys
from contextlib import redirect_stderr
from pathlib import Path

import torch
from torch import Tensor, nn

from . import OUTPUT_NAME
from .base import Network, Request, only


def _import():
    logging.getLogger('coremltools').setLevel(logging.CRITICAL)  # it misses its macOS library at import
    import coremltools

    return coremltools


def write(net: nn.Module, image: Tensor, path: Path, request: Request) -> None:
    """In float16, with ``--half`` or without: the Neural Engine computes in nothing else."""
    coremltools = _import()
    batch = coremltools.RangeDim(1, 64) if request.dynamic_batch else 1
    with redirect_stderr(io.StringIO()):  # its progress bars
        converted = coremltools.convert(
            torch.jit.trace(net, image),
            inputs=[coremltools.TensorType(request.input_name, (batch, *image.shape[1:]))],
            outputs=[coremltools.TensorType(OUTPUT_NAME)],
            convert_to='mlprogram',
            compute_precision=coremltools.precision.FLOAT16,
        )
    converted.user_defined_metadata.update(request.metadata)
    converted.save(str(path))


def open_file(path: Path, threads: int | None, batch: int | None) -> Network:
    if sys.platform != 'darwin':
        raise ValueError('CoreML runs on macOS alone')
    coremltools = _import()
    model = coremltools.models.MLModel(str(path))
    description = model.get_spec().description
    image, output = only(description.input), description.output[0]
    array = image.type.multiArrayType
    fixed_batch = not array.HasField('shapeRange')
    shape = (1 if fixed_batch else None, *list(array.shape)[1:])
    return Network(
        lambda images: model.predict({image.name: images})[output.name],
        fixed_batch,
        None,
        dict(model.user_defined_metadata),
        shape,
    )
