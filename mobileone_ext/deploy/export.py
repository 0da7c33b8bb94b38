"""A trained MobileOne as a file for a device: ONNX, TorchScript, OpenVINO or CoreML, checked against PyTorch."""

import io
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn

from .. import files
from ..checkpoints.load import load_weights
from ..checkpoints.names import resolve
from ..data.classes import class_names, labels, num_classes
from ..data.images import find_images
from ..data.pixels import Normalize, Preprocessing, in_batches, read_images
from ..files import check_writable, temporary_folder
from ..provenance import origin
from . import DEFAULT_OPSET, DEFAULT_SIZE, fuse
from .compare import Difference
from .runtime import Network

SUFFIX = {'onnx': '.onnx', 'torchscript': '.pt', 'openvino': '.xml', 'coreml': '.mlpackage'}
OPSETS = range(13, 22)
_PACKAGE = {'Manifest.json', 'Data'}  # what a CoreML package holds
TOLERANCE = 1e-4  # of the largest output


@dataclass(frozen=True)
class FileOptions:
    """What a deployed file takes and returns.

    Attributes:
        size: height and width of the images in pixels.
        opset: of an ONNX file, one of ``OPSETS``.
        normalize: takes pixels 0 .. 255, normalization inside.
        softmax: returns probabilities instead of logits.
    """

    size: int = DEFAULT_SIZE
    opset: int = DEFAULT_OPSET
    normalize: bool = False
    softmax: bool = False


class DeployNet(nn.Module):
    """A fused classifier as one function: images (N, C, H, W) -> logits or probabilities (N, classes).

    Args:
        normalize: takes pixels 0 .. 255 to what the backbone expects; None leaves that to the caller.
        softmax: return probabilities.
    """

    def __init__(self, model: nn.Module, normalize: nn.Module | None = None, softmax: bool = False):
        super().__init__()
        self.normalize = normalize or nn.Identity()
        self.backbone, self.fc = model.backbone, model.head.fc
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Softmax(1) if softmax else nn.Identity()
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone(self.normalize(image))[-1]
        return self.last(self.fc(self.pool(features).flatten(1)))


def load_fused(config: Config, checkpoint: str, ema: str = 'auto', trust: bool = False) -> nn.Module:
    """The config's classifier with the checkpoint's weights, fused if they are branched."""
    weights = load_weights(checkpoint, ema, trust)
    model = fuse.load_model(config, weights, checkpoint)
    return model if weights.form == 'fused' else fuse.fuse(model)


def file_metadata(
    config: Config, checkpoint: str, normalize: bool, softmax: bool, classes: Sequence[str] | None = None
) -> dict[str, str]:
    """Metadata for an exported file: what goes in, what comes out, where it comes from.

    Args:
        classes: names, as :func:`fuse.load_model` gives them; None takes the config's.
    """
    settings = Preprocessing(config)
    made_of = origin(resolve(checkpoint), 'torch')
    return dict(
        input='pixels 0..255' if normalize else 'normalized pixels: (x - mean) / std',
        channels='RGB' if settings.to_rgb else 'BGR',
        mean=json.dumps(settings.mean),
        std=json.dumps(settings.std),
        output='probabilities' if softmax else 'logits',
        labels=json.dumps(labels(classes or class_names(config), num_classes(config))),
        **dict(made_of, versions=json.dumps(made_of['versions'])),
    )


def export(
    net: nn.Module,
    out: str | Path,
    form: str,
    size: int = DEFAULT_SIZE,
    opset: int = DEFAULT_OPSET,
    dynamic_batch: bool = True,
    metadata: dict[str, str] | None = None,
    check: Callable[[Path], object] | None = None,
) -> object | None:
    """Write ``net`` to ``out`` in one of the forms of ``SUFFIX``; what ``check`` returned.

    Args:
        size: height and width of the images in pixels.
        opset: of the ONNX file, one of ``OPSETS``.
        dynamic_batch: any number of images at a time instead of one.
        check: called with the written file before it takes its place; raises to refuse it.

    Raises:
        ValueError: for a form or opset that is not known, or an ``out`` with another suffix.
        OSError: if ``out`` cannot be written.
    """
    check_request(out, form, opset)
    image = torch.zeros(2 if dynamic_batch else 1, net.backbone.in_channels, size, size)
    with temporary_folder(out) as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporters announce their own successors
        part = Path(folder, Path(out).name)
        if form == 'onnx':
            write_onnx(onnx_proto(net, image, opset, dynamic_batch), part, metadata or {})
        elif form == 'torchscript':
            _write_torchscript(net, part, image, metadata or {})
        elif form == 'openvino':
            _write_openvino(onnx_proto(net, image, opset, dynamic_batch), part, metadata or {})
        else:
            _write_coreml(net, part, image, dynamic_batch, metadata or {})
        report = check(part) if check else None
        _publish(part, Path(out))
    return report


def check_request(out: str | Path, form: str, opset: int = DEFAULT_OPSET) -> None:
    """Raise ValueError or OSError for what :func:`export` could not do; called before the work."""
    if form not in SUFFIX:
        raise ValueError(f'format {form!r} is not supported; allowed are {", ".join(SUFFIX)}')
    if opset not in OPSETS:
        raise ValueError(f'opset {opset}: allowed are {OPSETS[0]} .. {OPSETS[-1]}')
    if Path(out).suffix != SUFFIX[form]:
        raise ValueError(f'{out}: a file of format {form} is named *{SUFFIX[form]}')
    # A CoreML package is a folder, and may be replaced by another.
    if form == 'coreml' and Path(out).is_dir() and {entry.name for entry in Path(out).iterdir()} - _PACKAGE:
        raise ValueError(f'{out}: is a folder that holds other things than a CoreML package; name another')
    check_writable(Path(out, '_') if form == 'coreml' and Path(out).is_dir() else out)


def check_distinct(out: str | Path, *sources: str | Path | None) -> None:
    """Raise ValueError if ``out``, or the weights that OpenVINO puts beside it, would replace one of ``sources``."""
    files.check_distinct(out, *sources)
    if Path(out).suffix == SUFFIX['openvino']:
        files.check_distinct(Path(out).with_suffix('.bin'), *sources)


def write_onnx(proto, path: Path, metadata: dict[str, str]) -> None:
    """Check an ONNX model and save it with ``metadata``."""
    import onnx

    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def onnx_proto(net: nn.Module, image: Tensor, opset: int, dynamic_batch: bool):
    """``net`` as an ONNX model with input ``image`` and output ``logits``."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'net.onnx')
        # The TorchScript exporter: GlobalAveragePool and Flatten as such, and opsets below 18, which the newer
        # one cannot write and int8 runtimes ask for.
        torch.onnx.export(
            net,
            (image,),
            str(path),
            input_names=['image'],
            output_names=['output'],
            opset_version=opset,
            dynamo=False,
            dynamic_axes={'image': {0: 'batch'}, 'output': {0: 'batch'}} if dynamic_batch else None,
        )
        return onnx.load(path)


def _write_torchscript(net: nn.Module, path: Path, image: Tensor, metadata: dict[str, str]) -> None:
    traced = torch.jit.freeze(torch.jit.trace(net, image))
    buffer = io.BytesIO()  # on a full disk torch ends the whole process
    torch.jit.save(traced, buffer, _extra_files={'metadata.json': json.dumps(metadata)})
    path.write_bytes(buffer.getvalue())


def _write_openvino(proto, path: Path, metadata: dict[str, str]) -> None:
    import onnx
    import openvino

    source = path.with_suffix('.onnx')
    onnx.save(proto, source)
    converted = openvino.convert_model(source)
    for key, value in metadata.items():
        converted.set_rt_info(value, ['mobileone', key])
    openvino.save_model(converted, path, compress_to_fp16=False)


def _write_coreml(net: nn.Module, path: Path, image: Tensor, dynamic_batch: bool, metadata: dict[str, str]) -> None:
    logging.getLogger('coremltools').setLevel(logging.CRITICAL)  # it misses its macOS library at import
    import coremltools

    batch = coremltools.RangeDim(1, 64) if dynamic_batch else 1
    with redirect_stderr(io.StringIO()):  # its progress bars
        converted = coremltools.convert(
            torch.jit.trace(net, image),
            inputs=[coremltools.TensorType('image', (batch, *image.shape[1:]))],
            outputs=[coremltools.TensorType('output')],
            convert_to='mlprogram',
            compute_precision=coremltools.precision.FLOAT16,
        )
    converted.user_defined_metadata.update(metadata)
    converted.save(str(path))


def _publish(part: Path, out: Path) -> None:
    """Move what was written into place: OpenVINO's weights before the graph that names them."""
    if out.is_dir():
        shutil.rmtree(out)
    weights = part.with_suffix('.bin')
    if weights.exists():
        weights.replace(out.with_suffix('.bin'))
    part.replace(out)


@torch.no_grad()
def compare(
    config: Config, net: nn.Module, exported: Network, folder: str, num_images: int
) -> tuple[Difference, list[str]]:
    """Hold an exported file against ``net`` on the first images of ``folder``.

    Returns:
        The difference, and messages about files that are not images.

    Raises:
        ValueError: if none of the files is an image, a prediction changed, an output is not
            finite or differs by more than ``TOLERANCE``.
    """
    paths, skipped = find_images([folder])[:num_images], []
    normalize = nn.Identity() if isinstance(net.normalize, Normalize) else Normalize(config)
    difference = Difference()
    for _, images in in_batches(read_images(config, paths, skipped), 1 if exported.fixed_batch else 25):
        images = normalize(images)
        found = torch.from_numpy(exported(images.numpy()))
        difference.add(net(images), found, ('the network in PyTorch', 'the exported file'))
    if not difference.num_images:
        raise ValueError(f'{folder}: none of {len(paths)} files is a readable image')
    difference.check(max_flips=0, tolerance=TOLERANCE)
    return difference, skipped
