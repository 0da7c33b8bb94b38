"""A trained classifier as a file for a device, in the formats of ``formats``, checked against PyTorch."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.models.heads import ClsHead, MultiLabelClsHead
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .. import files
from ..data.images import Listing, find_images
from ..data.pixels import Normalize, Preprocessing
from ..data.reading import Photos, in_batches
from ..files import suffix_of
from ..metadata import IMAGENET_MEAN, IMAGENET_STD, NORMALIZED, Metadata, as_lines, metadata_of
from . import DEFAULT_SIZE, fuse
from .compare import Difference, image_channels
from .described import describe, find_network
from .explain import is_pooled
from .formats import FORMAT_OF_SUFFIX, FORMATS, OUTPUT_NAME, format_of
from .formats.base import Request, load_format, using
from .runtime import open_network

TOLERANCE = 1e-4  # of the largest output
HALF_TOLERANCE = 5e-2  # of a file whose weights, or all of it, are in float16
NAMES = ('the network', 'the exported file')
SEVERAL_OUTPUTS = ('onnx', 'torchscript')  # modules of formats


class PooledClassifier(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes): the backbone's last map, averaged, and a linear layer."""

    def __init__(self, backbone: nn.Module, fc: nn.Linear):
        super().__init__()
        self.backbone, self.fc = backbone, fc
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.pool(self.backbone(images)[-1]).flatten(1))


class DeployNet(PooledClassifier):
    """A network as one function: images (N, C, H, W) -> logits or probabilities (N, classes), or what else it has.

    Args:
        normalize: takes pixels 0 .. 255 to what the backbone expects; None leaves that to the caller.
        softmax: return probabilities.

    Raises:
        ValueError: for ``softmax`` with a head for several labels.
    """

    def __init__(self, model: nn.Module, normalize: nn.Module | None = None, softmax: bool = False):
        # mmpretrain's pooling asks for the size of the batch, and a graph would hold the question; a classifier with
        # other parts stands, whole, in the backbone's place.
        pooled, head = is_pooled(model), getattr(model, 'head', None)
        super().__init__(*((model.backbone, head.fc) if pooled else (model, nn.Identity())))
        self.is_pooled = pooled
        self.normalize = normalize or nn.Identity()
        if softmax and isinstance(head, MultiLabelClsHead):
            raise ValueError('--softmax: with several labels an image each logit is of its own; leave it out')
        self.last = nn.Softmax(1) if softmax else nn.Identity()
        self.is_classifier = isinstance(head, ClsHead)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        image = self.normalize(image)
        outputs = super().forward(image) if self.is_pooled else self.backbone(image)
        if isinstance(outputs, Tensor):
            return self.last(outputs)
        if self.is_classifier:
            raise ValueError(f'its head gives a {type(outputs).__name__}, where logits are needed')
        return tuple(tree_leaves(outputs))

    @torch.no_grad()
    def outputs_of(self, images: Tensor) -> tuple[tuple[str, ...], bool]:
        """Names of its outputs, the keys of a dict or ``output``, ``output_1`` ..; whether it is one of rows (N, C)."""
        outputs = self(images) if self.is_pooled else self.backbone(self.normalize(images))
        leaves = tree_leaves(outputs)
        if isinstance(outputs, Mapping):
            return tuple(map(str, outputs)), False
        more = (f'{OUTPUT_NAME}_{index}' for index in range(1, len(leaves)))
        return (OUTPUT_NAME, *more), len(leaves) == 1 and leaves[0].dim() == 2


def load_fused(config: Config, checkpoint: str, ema: str = 'auto', trust: bool = False) -> nn.Module:
    """The config's classifier with the checkpoint's weights, fused if it has branches; ``metadata`` tells of both."""
    weights = fuse.read_weights(config, checkpoint, ema, trust)
    model = fuse.load_model(config, weights)
    model.metadata = describe(Preprocessing(config), model.classes, checkpoint, weights.said)
    return fuse.fuse(model) if fuse.fuses(config) and weights.form != 'fused' else model


def described(request: Request, said: Metadata) -> Request:
    """``request`` with the metadata of its file: what is ``said`` of the network, what goes in, what comes out."""
    about = dict(input='pixels 0..255' if request.normalize else NORMALIZED) if said.mean else {}
    if request.gives_classes:
        about['output'] = 'probabilities' if request.softmax else 'logits'
    form = FORMATS[request.format]
    about |= dict(size=[*request.sides], layout=form.layout, precision=request.precision, architecture=None)
    said = replace(said, **about)
    return replace(request, metadata={**said.write(), **request.metadata})


def export(
    network: str | Path | nn.Module,
    out: str | Path,
    *,
    config: str | Config | None = None,
    ema: str = 'auto',
    trust: bool = False,
    format: str | None = None,
    image_size: int | Sequence[int] | None = None,
    normalize: bool = False,
    softmax: bool = False,
    labels: Sequence[str] | None = None,
    metadata: Metadata | None = None,
    photos: str | Path | Iterable[str | Path] = (),
    preprocessing: Preprocessing | None = None,
    skipped: list[str] | None = None,
    **request: Any,
) -> Difference | None:
    """Write a network for a device, with its metadata, when the file computes the same as PyTorch.

    Args:
        network: a checkpoint, a run's folder or published weights by name, which are fused; or a fused network in
            memory, of which a copy is written: of images (N, C, H, W) to logits (N, classes), or any tensor, or a
            tuple, list or dict of them.
        out: whose suffix tells the format, unless ``format`` does: one of ``deploy.formats.FORMATS``.
        config: of a checkpoint, or its path; None takes what the file says itself.
        ema, trust: as of :func:`mobileone_ext.checkpoints.load.load_weights`.
        image_size: in pixels, of a square, or height and width; None takes what the metadata say, or 224.
        normalize: take pixels 0 .. 255, with mean and standard deviation of the metadata, or else of ImageNet, inside.
        softmax: return probabilities.
        labels: names of the classes, in the order of the logits.
        metadata: what is known of the network; None takes its attribute ``metadata``, which
            :func:`mobileone_ext.models.create_model` reads of a checkpoint. The file says nothing that nobody told.
        photos: image files and folders, on which the file is held against the network, beside noise.
        preprocessing: of these, where the metadata do not tell it.
        skipped: gets a message about each file that is not a readable image; None raises.
        request: ``opset``, ``half``, ``dynamic_batch`` and the others of :class:`Request`.

    Returns:
        The difference on ``photos``, or on noise without any; None for a format that does not run here.

    Raises:
        OSError, ValueError: as of :func:`write` and :func:`prove`.
    """
    model = network
    if not isinstance(model, nn.Module):
        config, checkpoint, _ = find_network(model, config, trust=trust)
        model, preprocessing = load_fused(config, checkpoint, ema, trust), preprocessing or Preprocessing(config)
    told = metadata or getattr(model, 'metadata', None) or Metadata()
    told = replace(told, labels=labels or told.labels)
    if normalize and not told.mean:
        told = replace(told, channels='RGB', mean=IMAGENET_MEAN, std=IMAGENET_STD)
    files_of_photos = photos if isinstance(photos, Listing) else find_images(photos, skipped)
    full = metadata_of(model, told)
    normalization = Normalize(full.mean, full.std)
    net = DeployNet(copy.deepcopy(model).cpu(), normalization if normalize else None, softmax)
    size = image_size or (preprocessing.side() if preprocessing else told.size or DEFAULT_SIZE)
    form = format or format_of(out)
    asked = Request(form, size, normalize=normalize, softmax=softmax, **request)
    with using(form, f'the network does not take images of {" x ".join(map(str, asked.sides))} pixels'):
        names, is_row = net.outputs_of(_images_of(asked, net))
    asked = described(replace(asked, outputs=names, gives_classes=is_row), told)
    images: Iterable = ()
    if files_of_photos:
        images = (preprocessing or Photos(replace(full, size=asked.sides))).read(files_of_photos, skipped)
    return write(net, out, asked, lambda part: prove(net, part, asked, images, normalization))


def _images_of(request: Request, net: nn.Module) -> Tensor:
    """Two images of noise (2, C, H, W) that are what ``net`` takes."""
    shape = 2, request.channels or image_channels(net), *request.sides
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    return (noise * 255).round() if request.normalize else noise * 4 - 2


def write(
    net: nn.Module, out: str | Path, request: Request, check: Callable[[Path], object] | None = None
) -> object | None:
    """Write ``net`` to ``out`` as ``request`` says; what ``check`` returned.

    Args:
        check: called with the written file before it takes its place; raises to refuse it.

    Raises:
        ValueError: for an ``out`` with another suffix, or a network that the format cannot hold.
        OSError: if ``out`` cannot be written. It names ``out`` if anything fails and the disk has no room for such a
            file, whatever was said of it: libraries that write themselves raise what they like, or leave half a file.
    """
    out = Path(out)
    check_place(out, request.format)
    if request.heatmap and FORMATS[request.format].module != 'onnx':
        raise ValueError(f'--heatmap: a file of format {request.format} has one output; onnx and ort have it')
    if len(request.outputs) > 1 and FORMATS[request.format].module not in SEVERAL_OUTPUTS:
        raise ValueError(f'a file of format {request.format} has one output here, the network {len(request.outputs)}')
    channels = request.channels or image_channels(net)
    image = torch.zeros(2 if request.dynamic_batch else 1, channels, *request.sides)
    with files.staging_folder(out, [path.name for path in (*companions(out), labels_path(out))]) as folder:
        part = folder / out.name
        try:
            with using(request.format, f'{request.format} cannot hold this network'), warnings.catch_warnings():
                warnings.simplefilter('ignore')  # the exporters announce their own successors
                load_format(request.format).write(net, image, part, request)
            names = Metadata.read(request.metadata).labels or ()
            if names or labels_path(out).exists():  # not those of another network
                files.write_text(as_lines(names), labels_path(part))
            return check(part) if check else None
        except Exception:
            files.check_room(folder, 2 * sum(tensor.nbytes for tensor in net.state_dict().values()))
            raise


def note(form: str, normalize: bool, softmax: bool) -> str:
    """What is to be said of a written file: who cannot read it, and why; empty if nothing is."""
    apps, asked = FORMATS[form].apps[:1], FORMATS[form].apps[1:]
    missing = ' '.join(f'--{option}' for option in asked if not dict(normalize=normalize, softmax=softmax)[option])
    return f'{apps[0]} cannot read this file: that takes {missing}' if missing else ''


def check_place(out: str | Path, form: str, *sources: str | Path | None) -> None:
    """Raise ValueError or OSError where :func:`export` could not write ``out``; called before the work.

    Args:
        sources: what is read, which neither ``out`` nor a file that goes with it may replace.
    """
    out, suffixes, holds, goes_with = Path(out), FORMATS[form].suffixes, FORMATS[form].holds, companions(out)
    if out.suffix not in suffixes:
        raise ValueError(f'{out}: a file of format {form} is named {" or ".join(f"*{suffix}" for suffix in suffixes)}')
    # A file that is a folder may be replaced by another.
    replaces = bool(holds) and out.is_dir()
    if replaces and {entry.name for entry in out.iterdir()} - {*holds}:
        raise ValueError(f'{out}: is a folder that holds other things than a file of format {form}; name another')
    files.check_outputs([out / '_' if replaces else out, *goes_with], *sources)
    for companion in goes_with:
        owners = [
            out.with_suffix(other.suffixes[0]).name
            for name, other in FORMATS.items()
            if name != form and companion.suffix in other.companions and out.with_suffix(other.suffixes[0]).exists()
        ]
        if companion.exists() and (owners or not out.exists()):
            belongs = ', which belongs to '.join([companion.name + ' too', *owners[:1]])
            raise ValueError(f'{out}: would take the place of {belongs}; choose another name')


def companions(out: str | Path) -> list[Path]:
    """The files that go with ``out``, by its suffix."""
    out = Path(out)
    form = FORMAT_OF_SUFFIX.get(suffix_of(out))
    return [out.with_suffix(suffix) for suffix in FORMATS[form].companions] if form else []


def labels_path(out: Path) -> Path:
    """Where the names of the classes of ``out`` lie, a line each in the order of its outputs."""
    return out.with_name(f'{out.name}.labels.txt')


@torch.no_grad()
def prove(
    net: nn.Module,
    path: Path,
    request: Request,
    photos: Iterable[tuple[Path, Tensor]] = (),
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> Difference | None:
    """Hold the file at ``path`` against ``net`` on noise, and on ``photos``; the difference on the last of these.

    In half precision predictions may change. A format that does not run here is not looked at.

    Args:
        photos: with their pixels (C, H, W), 0 .. 255, which ``normalize`` makes what a file takes that has none inside.

    Raises:
        ValueError: if an output is not finite or differs by more than ``TOLERANCE`` (half: ``HALF_TOLERANCE``), or a
            prediction on photos changed.
    """
    if not FORMATS[request.format].runs_here:
        return None
    network, half = open_network(path), request.precision == 'float16'

    def difference_on(batches: Iterable[Tensor], max_flips: int | None) -> Difference:
        difference = Difference(Metadata.read(request.metadata).labels_of_an_image == 'several')
        for images in batches:
            difference.add(_flat(net(images)), torch.from_numpy(network(images.numpy())), NAMES)
        difference.check(max_flips, HALF_TOLERANCE if half else TOLERANCE)
        return difference

    on_noise = difference_on([_images_of(request, net)], None)
    if not photos:
        return on_noise
    batches = (torch.as_tensor(pixels) for _, pixels in in_batches(photos, 1 if network.fixed_batch else 25))
    images = (pixels if request.normalize or not normalize else normalize(pixels) for pixels in batches)
    return difference_on(images, None if half or not request.gives_classes else 0)


def _flat(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """All outputs of each image in a row (N, ...)."""
    return torch.cat([output.flatten(1) for output in tree_leaves(outputs)], 1)
