"""What all formats share: their table, the opened network, and how a format's own packages are called.

A module of this folder has the format's name and two functions; its packages are imported in them, not before:

    write(net, path, request)               the file(s) of ``net`` at ``path``
    open_file(path, threads, batch)         a :class:`Network`
"""

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn


class Format(NamedTuple):
    """Where a format's code is and what it needs.

    Attributes:
        suffixes: of its files; the first is the one that is written.
        module: of this folder.
        extra: of the project, which installs what it needs.
        companions: suffixes of the files that belong to the first one, in the order in which they take their places.
        half: it has a float16 form.
        packages: what writing and running it imports beside torch.
    """

    suffixes: tuple[str, ...]
    module: str
    extra: str
    companions: tuple[str, ...] = ()
    half: bool = True
    packages: tuple[str, ...] = ()


FORMATS = {
    'onnx': Format(('.onnx',), 'onnx', 'deploy', packages=('onnx', 'onnxruntime')),
    'torchscript': Format(('.pt', '.pt2'), 'torchscript', 'deploy'),
    'openvino': Format(('.xml',), 'openvino', 'deploy', companions=('.bin',), packages=('onnx', 'openvino')),
    'coreml': Format(('.mlpackage',), 'coreml', 'coreml'),
    'litert': Format(('.tflite',), 'litert', 'litert', packages=('litert_torch', 'ai_edge_litert')),
    'executorch': Format(('.pte',), 'executorch', 'executorch', packages=('executorch',)),
    'ncnn': Format(('.param',), 'ncnn', 'ncnn', companions=('.bin', '.json'), packages=('pnnx', 'ncnn')),
    'mnn': Format(('.mnn',), 'mnn', 'mnn', packages=('MNN',)),
    'ort': Format(('.ort',), 'onnx', 'deploy'),
}
FORMAT_OF_SUFFIX = {suffix: name for name, form in FORMATS.items() for suffix in form.suffixes}


class MissingPackage(ValueError):
    """A format's packages are not installed."""


def load_format(name: str):
    """The module of a format."""
    return importlib.import_module(f'.{FORMATS[name].module}', __package__)


@contextmanager
def needed_for(name: str) -> Iterator[None]:
    """Around a format's imports: one line with the remedy if a package is missing.

    Raises:
        MissingPackage: naming the package and the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        extra = FORMATS[name].extra
        raise MissingPackage(
            f"format {name} needs a package that is not installed ({error}): pip install 'mobileone_ext[{extra}]'"
        ) from error


def check_installed(name: str) -> None:
    """Raise :class:`MissingPackage` unless a format's packages are there; called before work that ends in its file."""
    with needed_for(name):
        for package in FORMATS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(f'No module named {package!r}')


@dataclass
class Request:
    """How a file is to be written.

    Attributes:
        image: an example of the input (N, C, H, W); N is 1 where the batch is fixed.
        dynamic_batch: any number of images at a time, where the format has that.
        opset: of ONNX.
        half: float16 inside; input and output stay float32.
        input_name: where the format names inputs.
        metadata: strings by name.
        format: the name in ``FORMATS``.
        int8: the network has pairs of quantize and dequantize, which are to become integer kernels.
        classifier_scales: (O,) of its int8 weights, where a format has to be told.
    """

    image: Tensor
    dynamic_batch: bool = True
    opset: int = 17
    half: bool = False
    input_name: str = 'image'
    metadata: dict[str, str] = field(default_factory=dict)
    format: str = 'onnx'
    int8: bool = False
    classifier_scales: Tensor | None = None


OUTPUT_NAME = 'output'


class Network:
    """A deployed network: call it with images (N, C, H, W) float32, get outputs (N, classes) float32.

    Args:
        call: the runtime's own call, with images in the file's layout.
        fixed_batch: it takes one image at a time.
        num_classes: None if the file does not say.
        metadata: what the file says about itself, see :func:`mobileone_ext.deploy.export.file_metadata`.
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
        self.in_channels = shape[3 if self.channels_last else 1]
        height, width = shape[1:3] if self.channels_last else shape[2:]
        self.size = (height, width) if height and width else None

    @property
    def takes_pixels(self) -> bool | None:
        """Whether pixels 0 .. 255 or normalized ones go in; None if the file does not say."""
        text = self.metadata.get('input')
        return text.startswith('pixels') if text else None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self._check(images)
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

    def _check(self, images: np.ndarray) -> None:
        channels, size = images.shape[1], images.shape[2:]
        if self.in_channels and channels != self.in_channels:
            raise ValueError(f'the network takes images of {self.in_channels} channels, these have {channels}')
        if self.size and size != self.size:
            made, given = (' x '.join(map(str, each)) for each in (self.size, size))
            raise ValueError(
                f'the network takes images of {made} pixels, these have {given}: '
                "the config's test pipeline or the --size of the export has to change"
            )


class Half(nn.Module):
    """``net`` in float16 behind a float32 input and output."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image.half()).float()


def half_precision(net: nn.Module) -> nn.Module:
    """A copy of ``net`` that computes in float16; mean and standard deviation are applied before, in float32."""
    import copy

    net = copy.deepcopy(net)
    normalize, net.normalize = net.normalize, nn.Identity()
    return nn.Sequential(normalize, Half(net.half())).eval()


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
        except MissingPackage:
            raise
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


def sha256_beside(path: Path) -> str:
    """Hash of a graph's weights file, which tells whether the two are of one export."""
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def beside(path: Path, suffix: str) -> Path:
    """The file that goes with ``path``, its ``suffix`` in capitals where it is there so."""
    found = path.with_suffix(suffix.upper())
    return found if found.exists() else path.with_suffix(suffix)


def check_pair(path: Path, weights: Path, expected: str | None) -> None:
    """Raise ValueError unless ``weights`` is the file that was written with the graph ``path``."""
    if not weights.is_file():
        raise ValueError(f'{weights.name} is missing: it holds the weights of {path.name}')
    if expected and sha256_beside(weights) != expected:
        raise ValueError(f'{weights.name} is of another export than {path.name} (a write that was cut off?)')
