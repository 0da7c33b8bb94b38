"""A trained classifier as a file for a device, in the formats of ``formats``, checked against PyTorch."""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.models.heads import LinearClsHead, MultiLabelClsHead, MultiLabelLinearClsHead
from mmpretrain.models.necks import GlobalAveragePooling
from torch import Tensor, nn

from .. import files
from ..checkpoints.names import resolve
from ..data.classes import class_names, is_multi_label, labels, num_classes
from ..data.images import find_images, spread
from ..data.pixels import Normalize, Preprocessing, in_batches, read_images
from ..files import check_writable, naming, staging_folder, suffix_of
from ..provenance import origin
from . import DEFAULT_OPSET, DEFAULT_SIZE, fuse
from .compare import Difference, image_channels
from .described import preprocessing
from .formats.base import (
    FORMAT_OF_SUFFIX,
    FORMATS,
    OUTPUT_NAME,
    MissingPackage,
    Network,
    Request,
    first_line,
    load_format,
)
from .formats.onnx import OPSETS, onnx_proto, write_onnx

SUFFIX = {name: form.suffixes[0] for name, form in FORMATS.items()}
_PACKAGE = {'Manifest.json', 'Data'}  # what a CoreML package holds
TOLERANCE = 1e-4  # of the largest output
HALF_TOLERANCE = 5e-2  # of a file whose weights, or all of it, are in float16
NAMES = ('the network', 'the exported file')
_LINEAR = LinearClsHead, MultiLabelLinearClsHead

__all__ = [
    'DeployNet',
    'PooledClassifier',
    'compare',
    'export',
    'file_metadata',
    'load_fused',
    'onnx_proto',
    'write_onnx',
]


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


class PooledClassifier(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes): the backbone's last map, averaged, and a linear layer."""

    def __init__(self, backbone: nn.Module, fc: nn.Linear):
        super().__init__()
        self.backbone, self.fc = backbone, fc
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.pool(self.backbone(images)[-1]).flatten(1))


class DeployNet(PooledClassifier):
    """A classifier as one function: images (N, C, H, W) -> logits or probabilities (N, classes).

    Args:
        normalize: takes pixels 0 .. 255 to what the backbone expects; None leaves that to the caller.
        softmax: return probabilities.

    Raises:
        ValueError: for ``softmax`` with a head for several labels.
    """

    def __init__(self, model: nn.Module, normalize: nn.Module | None = None, softmax: bool = False):
        # mmpretrain's pooling asks for the size of the batch, and a graph would hold the question; a classifier with
        # other parts stands, whole, in the backbone's place.
        neck, head = getattr(model, 'neck', None), getattr(model, 'head', None)
        is_pooled = type(neck) is GlobalAveragePooling and type(head) in _LINEAR
        super().__init__(*((model.backbone, head.fc) if is_pooled else (model, nn.Identity())))
        self.is_pooled = is_pooled
        self.normalize = normalize or nn.Identity()
        if softmax and isinstance(head, MultiLabelClsHead):
            raise ValueError('--softmax: with several labels an image each logit is of its own; leave it out')
        self.last = nn.Softmax(1) if softmax else nn.Identity()
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        image = self.normalize(image)
        logits = super().forward(image) if self.is_pooled else self.backbone(image)
        if not isinstance(logits, Tensor):
            raise ValueError(f'its head gives a {type(logits).__name__}, where logits are needed')
        return self.last(logits)


def load_fused(config: Config, checkpoint: str, ema: str = 'auto', trust: bool = False) -> nn.Module:
    """The config's classifier with the checkpoint's weights, fused if it has branches."""
    weights = fuse.read_weights(config, checkpoint, ema, trust)
    model = fuse.load_model(config, weights)
    return fuse.fuse(model) if fuse.fuses(config) and weights.form != 'fused' else model


def file_metadata(
    config: Config, checkpoint: str, normalize: bool, softmax: bool, classes: Sequence[str] | None = None
) -> dict[str, str]:
    """Metadata for an exported file: what goes in, what comes out, where it comes from.

    Args:
        classes: names, as :func:`fuse.load_model` gives them; None takes the config's.
    """
    settings, count = Preprocessing(config), num_classes(config)
    names = classes or class_names(config) or labels(None, count or 0)
    made_of = origin(resolve(checkpoint), 'torch')
    return dict(
        input='pixels 0..255' if normalize else 'normalized pixels: (x - mean) / std',
        channels='RGB' if settings.to_rgb else 'BGR',
        mean=json.dumps(settings.mean),
        std=json.dumps(settings.std),
        output='probabilities' if softmax else 'logits',
        labels=json.dumps(names),
        **(dict(labels_of_an_image='several') if is_multi_label(config) else {}),
        preprocessing=preprocessing(config),
        **dict(made_of, versions=json.dumps(made_of['versions'])),
    )


def facts(form: str, size: int = 224, half: bool = False) -> dict[str, str]:
    """Metadata that depend on the file: layout of the images, their height and width, precision."""
    return dict(
        layout='NHWC' if form == 'litert' else 'NCHW',
        size=json.dumps([size, size]),
        precision='float16' if half or form == 'coreml' else 'float32',
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
    half: bool = False,
    input_name: str = 'image',
) -> object | None:
    """Write ``net`` to ``out`` in one of the formats of ``SUFFIX``; what ``check`` returned.

    Args:
        size: height and width of the images in pixels.
        opset: of the ONNX file, one of ``OPSETS``.
        dynamic_batch: any number of images at a time instead of one, where the format has that.
        check: called with the written file before it takes its place; raises to refuse it.
        half: float16 weights, and arithmetic where the format says so; input and output stay float32.
        input_name: of the graph's input.

    Raises:
        ValueError: for a form or opset that is not known, an ``out`` with another suffix, or a network that the
            format cannot hold.
        OSError: if ``out`` cannot be written.
    """
    check_request(out, form, opset, size, input_name)
    out = Path(out)
    image = torch.zeros(2 if dynamic_batch else 1, image_channels(net), size, size)
    request = Request(image, dynamic_batch, opset, half, input_name, metadata or {}, form)
    with staged(out, net) as part:
        with held_by(form):
            load_format(form).write(net, part, request)
        report = check(part) if check else None
    return report


@contextmanager
def staged(out: Path, net: nn.Module) -> Iterator[Path]:
    """Where ``net`` is to be written and looked at before it, and what goes with it, takes its place at ``out``.

    Raises:
        OSError: naming ``out`` if anything fails and the disk has no room for such a file, whatever was said of it:
            libraries that write themselves raise what they like, or leave half a file.
    """
    with staging_folder(out, [name.name for name in companions(out)]) as folder, naming(out):
        try:
            yield folder / out.name
        except MissingPackage:
            raise
        except Exception:
            files.check_room(folder, 2 * sum(tensor.nbytes for tensor in net.state_dict().values()))
            raise


@contextmanager
def held_by(form: str, what: str = 'this network') -> Iterator[None]:
    """Around the writing of a file: what an exporter raises as ValueError, what it announces to nobody."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporters announce their own successors
        try:
            yield
        except (MissingPackage, OSError):
            raise
        except Exception as error:
            raise ValueError(f'{form} cannot hold {what}: {first_line(error)}') from error


def check_request(
    out: str | Path, form: str, opset: int = DEFAULT_OPSET, size: int = DEFAULT_SIZE, input_name: str = 'image'
) -> None:
    """Raise ValueError or OSError for what :func:`export` could not do; called before the work."""
    if form not in SUFFIX:
        raise ValueError(f'format {form!r} is not supported; allowed are {", ".join(SUFFIX)}')
    if opset not in OPSETS:
        raise ValueError(f'opset {opset}: allowed are {OPSETS[0]} .. {OPSETS[-1]}')
    if size < 1:
        raise ValueError(f'size {size}: at least 1 pixel is needed')
    if not re.fullmatch(r'[A-Za-z_][\w.:/-]*', input_name) or input_name == OUTPUT_NAME:
        raise ValueError(f'input name {input_name!r}: a letter, then letters, digits and _.:/- ; not {OUTPUT_NAME!r}')
    out, suffixes = Path(out), FORMATS[form].suffixes
    if out.suffix not in suffixes:
        raise ValueError(f'{out}: a file of format {form} is named {" or ".join(f"*{suffix}" for suffix in suffixes)}')
    # A CoreML package is a folder, and may be replaced by another.
    if form == 'coreml' and out.is_dir() and {entry.name for entry in out.iterdir()} - _PACKAGE:
        raise ValueError(f'{out}: is a folder that holds other things than a CoreML package; name another')
    check_writable(out / '_' if form == 'coreml' and out.is_dir() else out)
    _check_companions(out, form)


def check_distinct(out: str | Path, *sources: str | Path | None) -> None:
    """Raise ValueError if ``out``, or a file that goes with it, would replace one of ``sources``."""
    for name in (Path(out), *companions(out)):
        files.check_distinct(name, *sources)


def companions(out: str | Path) -> list[Path]:
    """The files that go with ``out``, by its suffix."""
    out = Path(out)
    form = FORMAT_OF_SUFFIX.get(suffix_of(out))
    return [out.with_suffix(suffix) for suffix in FORMATS[form].companions] if form else []


def _check_companions(out: Path, form: str) -> None:
    """Raise ValueError if a file that goes with ``out`` would take the place of another graph's."""
    for suffix in FORMATS[form].companions:
        companion = out.with_suffix(suffix)
        others = [
            out.with_suffix(other.suffixes[0])
            for name, other in FORMATS.items()
            if name != form and suffix in other.companions and out.with_suffix(other.suffixes[0]).exists()
        ]
        if companion.exists() and (others or not out.exists()):
            owner = f', which belongs to {others[0].name}' if others else ''
            raise ValueError(f'{out}: would take the place of {companion.name} too{owner}; choose another name')


@torch.no_grad()
def compare(
    config: Config, net: nn.Module, exported: Network, folder: str, num_images: int, half: bool = False
) -> tuple[Difference, list[str]]:
    """Hold an exported file against ``net`` on images spread evenly over ``folder``.

    Returns:
        The difference, and messages about files that are not images.

    Raises:
        ValueError: if none of the files is an image, an output is not finite or differs by more than ``TOLERANCE``,
            or a prediction changed; in ``half`` predictions may change, and the bound is ``HALF_TOLERANCE``.
    """
    found = find_images([folder])
    paths, skipped = spread(found, num_images), [f'{folder}: {found.note}'] if found.note else []
    normalize = nn.Identity() if isinstance(net.normalize, Normalize) else Normalize(config)
    difference = Difference(is_multi_label(config))
    for _, images in in_batches(read_images(config, paths, skipped), 1 if exported.fixed_batch else 25):
        images = normalize(images)
        difference.add(net(images), torch.from_numpy(exported(images.numpy())), NAMES)
    if not difference.num_images:
        raise ValueError(f'{folder}: none of {len(paths)} files is a readable image')
    difference.check(None if half else 0, HALF_TOLERANCE if half else TOLERANCE)
    return difference, skipped


@torch.no_grad()
def compare_on_noise(net: nn.Module, exported: Network, size: int, half: bool = False) -> None:
    """Raise ValueError unless the file computes what ``net`` does, on two images of noise; predictions do not count."""
    pixels = torch.rand(2, image_channels(net), size, size, generator=torch.Generator().manual_seed(0))
    images = pixels * 255 if isinstance(net.normalize, Normalize) else pixels * 4 - 2
    difference = Difference()
    difference.add(net(images), torch.from_numpy(exported(images.numpy())), NAMES)
    difference.check(None, HALF_TOLERANCE if half else TOLERANCE)
