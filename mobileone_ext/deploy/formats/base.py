"""What all formats share: what is asked of a file, the opened network, and how libraries are called.

A module of this folder has the format's name and two functions; its packages are imported in them, not before:

    write(net, image, path, request)        the file(s) of ``net`` at ``path``; image (N, C, H, W) is an example
    open_file(path, threads, batch)         a :class:`Network`
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...metadata import Metadata
from ...provenance import sha256
from .. import DEFAULT_OPSET, DEFAULT_SIZE, sides
from . import FORMATS, OUTPUT_NAME

if TYPE_CHECKING:
    from torch import Tensor


class MissingPackage(ValueError):
    """A format's packages are not installed."""


def load_format(name: str):
    """The module of a format."""
    return importlib.import_module(f'.{FORMATS[name].module}', __package__)


@contextmanager
def using(name: str, what: str) -> Iterator[None]:
    """Around a format's own libraries: what they raise is one line, and a package that is missing has its remedy.

    Raises:
        MissingPackage: naming the package and the command that installs it.
        ValueError: ``what``, and what the library says.
    """
    try:
        yield
    except ImportError as error:
        extra = FORMATS[name].extra
        raise MissingPackage(
            f"format {name} needs a package that is not installed ({error}): pip install 'mobileone_ext[{extra}]'"
        ) from error
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f'{what}: {first_line(error)}') from error


def import_packages(name: str) -> None:
    """Import a format's packages before the work that ends in its file; as in :func:`using`."""
    with using(name, f'format {name}'), quiet():
        for package in FORMATS[name].packages:
            importlib.import_module(package)


@dataclass(frozen=True)
class Request:
    """What file is wanted.

    Attributes:
        format: the name in ``FORMATS``.
        size: of the images in pixels, one number for height and width, or both.
        opset: of ONNX.
        normalize: it takes pixels 0 .. 255, normalization inside.
        softmax: it returns probabilities instead of logits.
        half: float16 inside; input and output stay float32.
        float32: float32 inside, where the format's files have float16.
        heatmap: a second output ``HEATMAP_NAME``, of ONNX, see :func:`mobileone_ext.deploy.formats.onnx.with_heatmap`.
        dynamic_batch: any number of images at a time instead of one, where the format has that.
        input_name: where the format names inputs.
        metadata: strings by name.
        rewrite: what is done to the ONNX graph, where the format is made from one.
        int8: the network has pairs of quantize and dequantize, which are to become integer kernels.
        classifier_scales: (O,) of its int8 weights, where a format has to be told.
        outputs: names, of all where the format has several.
        gives_classes: it returns a score for each class, and nothing else.
        channels: of the images; None takes those of the network's first convolution.
    """

    format: str = 'onnx'
    size: int | Sequence[int] = DEFAULT_SIZE
    opset: int = DEFAULT_OPSET
    normalize: bool = False
    softmax: bool = False
    half: bool = False
    float32: bool = False
    heatmap: bool = False
    dynamic_batch: bool = True
    input_name: str = 'image'
    metadata: Mapping[str, str] = field(default_factory=dict)
    rewrite: Callable[[Any], Any] | None = None
    int8: bool = False
    classifier_scales: 'Tensor | None' = None
    outputs: tuple[str, ...] = (OUTPUT_NAME,)
    gives_classes: bool = True
    channels: int | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return sides(self.size)

    @property
    def precision(self) -> str:
        """Of the numbers inside, ``'float16'`` or ``'float32'``."""
        return 'float16' if self.half else 'float32' if self.float32 else FORMATS[self.format].precision


class Network:
    """A deployed network: call it with images (N, C, H, W) float32, get outputs (N, classes) float32.

    Args:
        call: the runtime's own call, with images in the file's layout.
        fixed_batch: it takes one image at a time.
        num_classes: None if the file does not say.
        metadata: what the file says about itself, see :func:`mobileone_ext.deploy.export.described`.
        shape: of its input as the file says it, N, C, H, W or N, H, W, C; None or 0 for what is open.
        int8: some of it computes in integers.

    Raises:
        ValueError: for an input that is not one image or a batch of images; when called, for images that the file does
            not take or that the runtime fails on.
    """

    def __init__(
        self,
        call: Callable[[np.ndarray], np.ndarray],
        fixed_batch: bool,
        num_classes: int | None,
        metadata: dict[str, str],
        shape: tuple | None = None,
        int8: bool = False,
    ):
        self._call, self.fixed_batch, self.num_classes, self.metadata = call, fixed_batch, num_classes, metadata
        self.int8 = int8
        shape = tuple(known if isinstance(known, int) and known > 0 else None for known in shape or (None,) * 4)
        if len(shape) != 4 or not (fixed_batch or shape[0] is None):
            raise ValueError(f'its input is {shape}; one image or any number of them (N, C, H, W) is needed')
        self.channels_last = shape[1] not in (1, 3) and shape[3] in (1, 3)
        self.in_channels, *sides = (shape[3], *shape[1:3]) if self.channels_last else shape[1:]
        self.size = tuple(sides) if all(sides) else None

    @property
    def takes_pixels(self) -> bool | None:
        """Whether pixels 0 .. 255 or normalized ones go in; None if the file does not say."""
        return Metadata.read(self.metadata).takes_pixels

    def __call__(self, images: np.ndarray) -> np.ndarray:
        # Some runtimes take images of any size, and give something.
        channels, size = images.shape[1], images.shape[2:]
        taken, given = (self.in_channels or channels, self.size or size), (channels, size)
        if taken != given:
            made, found = (f'{each[0]} x {" x ".join(map(str, each[1]))}' for each in (taken, given))
            raise ValueError(
                f'the network takes images of {made} pixels, these have {found}: '
                "the config's test pipeline or the --image-size of the export has to change"
            )
        if self.channels_last:
            images = images.transpose(0, 2, 3, 1)
        batches = np.split(images, len(images)) if self.fixed_batch else [images]
        try:
            outputs = [np.array(self._call(np.ascontiguousarray(batch)), np.float32) for batch in batches]
        except Exception as error:
            raise ValueError(
                f'the runtime fails on images {" x ".join(map(str, images.shape[1:]))} ({first_line(error)})'
            ) from error
        return np.concatenate([output.reshape(len(output), -1) for output in outputs])


def in_rows(outputs: Sequence) -> np.ndarray:
    """All outputs of each image, one behind the other."""
    arrays = [np.asarray(output) for output in outputs]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], 1) if len(arrays) > 1 else arrays[0]


def first_line(error: Exception) -> str:
    """The first line of a message that says something, or the error's name; runtimes and exporters add pages."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith('Exception from ')]  # a place in OpenVINO's source
    return said[0][:200] if said else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what compiled libraries print off the console; it is shown if they fail."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
        saved = os.dup(1), os.dup(2)
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except Exception as error:
            sys.stdout.flush()
            sink.seek(0)
            printed = sink.read().decode(errors='replace').strip().splitlines()
            if printed and not str(error):
                raise RuntimeError(printed[-1]) from error
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, descriptor in zip((1, 2), saved):
                os.dup2(descriptor, target)
                os.close(descriptor)


def only(inputs: Sequence) -> Any:
    """The one of a network's inputs that there should be."""
    if len(inputs) != 1:
        raise ValueError(f'it has {len(inputs)} inputs, not one image')
    return inputs[0]


def described_shape(metadata: Mapping[str, str]) -> tuple:
    """Channels, height and width of the images by the file's metadata, where the graph does not say; None for open."""
    said = Metadata.read(metadata)
    return (len(said.mean) if said.mean else None, *(said.size or (None, None)))


def beside(path: Path, suffix: str) -> Path:
    """The file that goes with ``path``, its ``suffix`` in capitals where it is there so."""
    capitals = path.with_suffix(suffix.upper())
    return capitals if capitals.exists() else path.with_suffix(suffix)


def check_pair(path: Path, weights: Path, expected: str | None) -> None:
    """Raise ValueError unless ``weights``, whose sha256 the graph ``path`` says, was written with it."""
    if expected and sha256(weights) != expected:
        raise ValueError(f'{weights.name} is of another export than {path.name} (a write that was cut off?)')
