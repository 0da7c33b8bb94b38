"""A trained classifier as a file for a device, in the formats of ``formats``, checked against PyTorch."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.config import Config
from mmpretrain.models.heads import MultiLabelClsHead
from torch import Tensor, nn

from .. import files
from ..data.classes import is_multi_label
from ..data.pixels import Preprocessing, in_batches
from ..files import suffix_of
from ..metadata import Metadata, as_lines
from . import fuse
from .compare import Difference, image_channels
from .described import describe
from .explain import is_pooled
from .formats import FORMAT_OF_SUFFIX, FORMATS
from .formats.base import Request, load_format, using
from .runtime import open_network

TOLERANCE = 1e-4  # of the largest output
HALF_TOLERANCE = 5e-2  # of a file whose weights, or all of it, are in float16
NAMES = ('the network', 'the exported file')


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
        pooled = is_pooled(model)
        super().__init__(*((model.backbone, model.head.fc) if pooled else (model, nn.Identity())))
        self.is_pooled = pooled
        self.normalize = normalize or nn.Identity()
        if softmax and isinstance(getattr(model, 'head', None), MultiLabelClsHead):
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


def described(
    request: Request,
    preprocessing: Preprocessing,
    checkpoint: str,
    classes: Sequence[str] | None,
    said: Metadata | None = None,
) -> Request:
    """``request`` with the metadata of its file: what goes in, what comes out, where it comes from.

    Args:
        classes, said: as :func:`fuse.load_model` gives them; None takes the config's names.
    """
    form = FORMATS[request.format]
    metadata = replace(
        describe(preprocessing, classes, checkpoint, said),
        size=[request.size, request.size],
        input='pixels 0..255' if request.normalize else 'normalized pixels: (x - mean) / std',
        output='probabilities' if request.softmax else 'logits',
        layout=form.layout,
        precision=request.precision,
    )
    return replace(request, metadata={**metadata.write(), **request.metadata})


def export_classifier(
    model: nn.Module,
    out: str | Path,
    request: Request,
    preprocessing: Preprocessing,
    checkpoint: str,
    photos: Sequence[Path] = (),
    skipped: list[str] | None = None,
) -> Difference | None:
    """Write a classifier of ``checkpoint``, fused, with its metadata; errors as of :func:`export`, :func:`prove`.

    Args:
        photos: on which the file is held against ``model``, beside noise.
        skipped: gets a message about each file that is not an image.

    Returns:
        The difference on ``photos``.
    """
    net = DeployNet(model, preprocessing.normalize if request.normalize else None, request.softmax)
    classes, said = (getattr(model, name, None) for name in ('classes', 'said'))
    request = described(request, preprocessing, checkpoint, classes, said)
    return export(net, out, request, lambda part: prove(net, part, request, preprocessing, photos, skipped))


def export(
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
    channels = request.channels or image_channels(net)
    image = torch.zeros(2 if request.dynamic_batch else 1, channels, request.size, request.size)
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


def note(request: Request) -> str:
    """What is to be said of a written file: who cannot read it, and why; empty if nothing is."""
    apps, asked = FORMATS[request.format].apps[:1], FORMATS[request.format].apps[1:]
    missing = ' '.join(f'--{option}' for option in asked if not getattr(request, option))
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
    preprocessing: Preprocessing,
    photos: Sequence[Path] = (),
    skipped: list[str] | None = None,
) -> Difference | None:
    """Hold the file at ``path`` against ``net``: on noise, and on ``photos``, whose difference is returned.

    In half precision predictions may change. A format that does not run here is not looked at.

    Args:
        skipped: gets a message about each file that is not an image.

    Raises:
        ValueError: if an output is not finite or differs by more than ``TOLERANCE`` (half: ``HALF_TOLERANCE``), or a
            prediction on photos changed.
    """
    if not FORMATS[request.format].runs_here:
        return None
    network, half = open_network(path), request.precision == 'float16'

    def difference_on(batches: Iterable[Tensor], max_flips: int | None) -> Difference:
        difference = Difference(is_multi_label(preprocessing.config))
        for images in batches:
            difference.add(net(images), torch.from_numpy(network(images.numpy())), NAMES)
        difference.check(max_flips, HALF_TOLERANCE if half else TOLERANCE)
        return difference

    noise = torch.rand(2, image_channels(net), request.size, request.size, generator=torch.Generator().manual_seed(0))
    difference_on([(noise * 255).round() if request.normalize else noise * 4 - 2], None)
    if not photos:
        return None
    read = in_batches(preprocessing.read(photos, [] if skipped is None else skipped), 1 if network.fixed_batch else 25)
    images = (pixels if request.normalize else preprocessing.normalize(pixels) for _, pixels in read)
    return difference_on(images, None if half else 0)
