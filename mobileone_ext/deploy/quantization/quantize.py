"""What tools/quantize.py does: check, calibrate, write, measure."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models.heads import MultiLabelClsHead
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...data.check import check_loaders, prepare_data
from ...data.images import Listing
from ...data.pixels import Preprocessing
from ...files import check_outputs, suffix_of, write_atomically, write_json
from ...metadata import Metadata, metadata_of
from ...text import print_table, printable, with_progress
from .. import DEFAULT_OPSET, export, fuse
from ..compare import compare, image_channels
from ..described import config_of, find_network
from ..formats import FORMAT_OF_SUFFIX, FORMATS
from ..formats.base import Request, import_packages
from ..runtime import open_network
from . import Options, agreement, photos
from .calibrate import Int8, sensitivity
from .calibrate import quantize as to_int8
from .chain import HEAD, in_chunks, layers_of
from .prepare import prepare
from .qdq import insert_qdq
from .qdq_torch import qdq_net

INT8_SUFFIXES = [suffix for suffix, name in FORMAT_OF_SUFFIX.items() if FORMATS[name].int8]
FLOAT_SUFFIXES = ('.pth', '.onnx')  # of a prepared network


@dataclass(frozen=True)
class Job:
    """A network, the photos that calibrate it, the files that are written, and what is measured.

    Attributes:
        config, checkpoint: the network; a checkpoint, or what it would be loaded into, fused.
        out: the int8 file, whose suffix tells the format; None where only a float network is prepared.
        request: what that file takes and returns.
        options: of the quantization.
        images: a folder of photos; None takes those that the config trains on.
        num_images: how many of them.
        ema, trust: as in :func:`mobileone_ext.checkpoints.load.load_weights`.
        sensitivity: measure what each layer costs alone.
        evaluate: measure float and int8 on the config's test set.
        steps: there, each step from plain quantization to ``options`` as well.
        report: where to write all of it as JSON.
        prepare: where to write the float network that other quantizers are to have.
        preround: put its weights on the steps of a quantizer that divides the largest by this, see prepare.py.
    """

    config: Config
    checkpoint: str | nn.Module
    out: str | None = None
    request: Request = Request()
    options: Options = Options()
    images: str | None = None
    num_images: int = 200
    ema: str = 'auto'
    trust: bool = False
    sensitivity: bool = False
    evaluate: bool = False
    steps: bool = False
    report: str | None = None
    prepare: str | None = None
    preround: float | None = None

    @cached_property
    def photos(self) -> tuple[Listing, str]:
        """The files of the photos, and where they are, for messages."""
        return photos.find(self.config, self.images)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.config)

    @cached_property
    def model(self) -> nn.Module:
        """The float classifier, fused."""
        if isinstance(self.checkpoint, nn.Module):
            return self.checkpoint
        return export.load_fused(self.config, self.checkpoint, self.ema, self.trust)

    @cached_property
    def described(self) -> Request:
        """``request`` with what every file of this network says of itself."""
        return export.described(self.request, self.model.metadata)

    @cached_property
    def test_images(self) -> DataLoader:
        """Of the config's test set; what of it cannot be read is said."""
        prepare_data(self.config, 'test_dataloader', classes=self.model.classes)
        loader = Runner.build_dataloader(self.config.test_dataloader)
        check_loaders(dict(test=loader), self.config)
        return loader


def quantize(
    network: str | Path | nn.Module,
    out: str | Path | None = None,
    *,
    config: str | Config | None = None,
    photos: str | Path | None = None,
    image_size: int | Sequence[int] | None = None,
    normalize: bool = False,
    softmax: bool = False,
    opset: int = DEFAULT_OPSET,
    metadata: Metadata | None = None,
    **job: Any,
) -> dict[str, Any]:
    """Quantize a network without labels, write it and say how good it is.

    Args:
        network: a checkpoint, or a fused MobileOne with a head in memory.
        out: the int8 file, whose suffix tells the format; None where only a float network is prepared.
        config: of a checkpoint that does not say which images it takes, or its path.
        photos: a folder of what the network will see; None takes those that the config trains on.
        image_size: in pixels; the config's, or 224.
        normalize, softmax: the file takes pixels 0 .. 255, returns probabilities.
        opset: of ONNX.
        metadata: of a network in memory, see :func:`mobileone_ext.metadata.metadata_of`.
        job: ``num_images``, ``options`` and the others of :class:`Job`.

    Returns:
        ``options``, ``num_calib``, and what was measured: ``agreement``, ``sensitivity``, ``accuracy``.

    Raises:
        ValueError, OSError: for what cannot be read, written or quantized; nothing is left half-written.
    """
    if isinstance(network, nn.Module):
        network = copy.deepcopy(network).eval()
        network.metadata = metadata_of(network, metadata)
        config = config_of(network.metadata, type(network).__name__)
    else:
        config, network, _ = find_network(network, config, whole=True)
    form = FORMAT_OF_SUFFIX.get(suffix_of(out or ''), 'onnx')
    request = Request(form, image_size or Preprocessing(config).side(), opset, normalize, softmax)
    return run(Job(config, network, out and str(out), request, images=photos and str(photos), **job))


def run(job: Job) -> dict[str, Any]:
    """What :func:`quantize` does."""
    check(job)
    test_images = job.test_images if job.evaluate else None  # built, and their data looked at, before the work
    images = calibrate(job)
    report = dict(options=vars(job.options), num_calib=len(images))
    if job.sensitivity:
        losses = sensitivity(job.model, images[::2], job.options, images[1::2])
        report['sensitivity'] = [loss._asdict() for loss in losses]
        rows = [
            (loss.layer, f'{loss.divergence:.5f}', loss.cause, loss.range, f'{loss.channel} ({loss.share:.0%})')
            for loss in losses
        ]
        columns = 'layer', 'divergence', 'by', 'range', 'channel'
        print_table('each layer alone in int8, largest cost first; the channel with most of its error', columns, rows)
    if job.prepare:
        write_prepared(job, images)
    if job.out:
        report['agreement'] = write(job, to_int8(job.model, images, job.options), job.out, images)
        print(f'{job.out}: written')
        if said := export.note(job.request.format, job.request.normalize, job.request.softmax):
            print(said)
        print(agreement.describe(report['agreement']))
    if test_images:
        report['accuracy'] = measure(job, images, test_images)
    if job.report:
        write_json(report, job.report)
    return report


def check_name(out: str) -> None:
    """Raise ValueError unless an int8 file can have this name."""
    if suffix_of(out) not in INT8_SUFFIXES:
        form = FORMATS.get(FORMAT_OF_SUFFIX.get(suffix_of(out)))
        why = f'; {form.why_no_int8}' if form and form.why_no_int8 else ''
        raise ValueError(f'{out}: an int8 file is named {" or ".join(f"*{s}" for s in INT8_SUFFIXES)}{why}')


def check(job: Job) -> None:
    """Raise ValueError or OSError for what cannot be done, before the work."""
    if not job.out and (job.evaluate or not job.prepare):
        raise ValueError('nothing to write: name the int8 file behind the network, or a float one by --prepare')
    if job.preround and not job.prepare:
        raise ValueError('--preround belongs to --prepare')
    if job.out:
        check_name(job.out)
        import_packages(job.request.format)
    checkpoint = job.checkpoint if isinstance(job.checkpoint, str) else None
    sources = job.config.filename, checkpoint, *job.photos[0]
    if job.out:
        export.check_place(job.out, job.request.format, *sources)
    suffixes = FLOAT_SUFFIXES if isinstance(job.checkpoint, str) else FLOAT_SUFFIXES[1:]
    if job.prepare and suffix_of(job.prepare) not in suffixes:
        raise ValueError(f'--prepare {job.prepare}: a float network is written to {" or ".join(suffixes)}')
    check_outputs([job.out, job.prepare, job.report], *sources)
    layers_of(job.model)  # refuses what int8 does not know


@torch.no_grad()
def calibrate(job: Job) -> Tensor:
    """The normalized calibration images (N, C, H, W); what is odd about them is said.

    Raises:
        ValueError: if there are fewer readable images than asked for, or they are not of the size that is asked for.
    """
    (files, place), skipped = job.photos, []
    pixels = photos.read(files, place, job.preprocessing, job.num_images, skipped)
    height, width = pixels.shape[2:]
    if (height, width) != job.request.sides:
        asked = 'x'.join(map(str, dict.fromkeys(job.request.sides)))
        raise ValueError(f"--image-size {asked}: the config's test pipeline gives images of {height} x {width} pixels")
    if files.note:
        print(f'{place}: {files.note}')
    for message in skipped:
        print(f'skipped {printable(message)}')
    print(f'{len(pixels)} calibration images from {place}, {len(skipped)} skipped')
    images = job.preprocessing.normalize(pixels)
    probabilities = None if isinstance(job.model.head, MultiLabelClsHead) else in_chunks(job.model, images).softmax(1)
    for warning in photos.warnings_about(pixels, probabilities, place):
        print(f'WARNING: {printable(warning)}')
    return images


def write_prepared(job: Job, images: Tensor) -> None:
    """Write the float network for other quantizers to ``job.prepare``: a fused checkpoint or ONNX, by its suffix."""
    prepared, difference = prepare(job.model, images, job.options, job.preround)
    how = 'prepared for int8: ' + ('weights on steps, biases fitted' if job.preround else 'channels equalized')
    if suffix_of(job.prepare) == '.pth':
        with write_atomically(job.prepare) as part:
            fuse.save_fused(prepared, part, job.config, job.checkpoint, how)
    else:
        said = dataclasses.replace(job.model.metadata, others=dict(job.model.metadata.others, prepared=how))
        asked = {name: getattr(job.request, name) for name in ('opset', 'normalize', 'softmax')}
        export.export(prepared, job.prepare, format='onnx', image_size=job.request.size, metadata=said, **asked)
    print(
        f'{job.prepare}: written; on the calibration images {difference.changed_predictions} of '
        f'{difference.num_images} predictions change, outputs within {difference.max_rel_diff:.1e} of the largest'
    )


def write(job: Job, int8: Int8, path: str | Path, images: Tensor | None = None) -> dict | None:
    """Write the file of ``int8``; what :func:`agreement.measure` says of it on ``images``, if there are any."""
    form, asked = FORMATS[job.request.format], job.described
    normalize = job.preprocessing.normalize if asked.normalize else None
    request = dataclasses.replace(
        asked,
        int8=True,
        metadata={**asked.metadata, 'precision': 'int8', 'sums': agreement.sums(int8)},
        channels=image_channels(int8.model),
    )
    if form.int8 == 'graph':
        net = export.DeployNet(int8.model, normalize, asked.softmax)
        request = dataclasses.replace(request, rewrite=lambda proto: insert_qdq(proto, int8))
    else:
        net = qdq_net(int8, normalize, asked.softmax, **form.pairs)
        request = dataclasses.replace(request, classifier_scales=int8.weight_scales.get(HEAD))

    def agree(part: Path) -> dict:
        return agreement.measure(job.model, int8, on_normalized(open_network(part), job), images, request.softmax)

    return export.write(net, path, request, agree if images is not None else None)


def measure(job: Job, images: Tensor, test_images: DataLoader) -> list[dict]:
    """Rows of :func:`measure_accuracy`, also of the steps to ``job.options`` where these are asked for; shown."""
    with tempfile.TemporaryDirectory() as folder:
        networks = {}
        for name, options in steps_to(job.options) if job.steps else ():
            path = Path(folder, f'{name}{suffix_of(job.out)}')
            write(job, to_int8(job.model, images, options), path)
            networks[name] = open_network(path)
        networks['int8'] = open_network(job.out)
        rows = measure_accuracy(job, test_images, networks)
    shown = [
        (row['name'], *('-' if row[key] is None else f'{row[key]:.2f}' for key in ('top1', 'top5')), row['flips'])
        for row in rows
    ]
    print_table(f'{rows[0]["num_images"]} images', ('', 'top-1', 'top-5', 'flips'), shown)
    return rows


def steps_to(options: Options) -> Iterator[tuple[str, Options]]:
    """From plain min-max quantization towards ``options``, one step more each time, with the step's name."""
    plain = dict(equalize=False, absorb_bias=False, correct_bias=False, compensate=False, ranges='minmax')
    current = dataclasses.replace(options, **plain)
    yield 'naive', current
    for step in ('equalize', 'absorb_bias', 'ranges', 'correct_bias', 'compensate'):
        if getattr(options, step) != plain[step]:
            current = dataclasses.replace(current, **{step: getattr(options, step)})
            if current != options:
                yield f'+ {step}', current


def measure_accuracy(
    job: Job, test_images: DataLoader, networks: dict[str, Callable[[np.ndarray], np.ndarray]]
) -> list[dict]:
    """Float model and int8 files of ``job`` on ``test_images``: rows with ``name``, ``top1``, ``top5``
    (percent; None where an image may have several labels), ``flips`` (predictions unlike the float model's) and
    ``num_images``."""
    functions = {name: on_normalized(network, job) for name, network in networks.items()}
    measured = compare({'float': job.model, **functions}, with_progress(test_images, 'evaluate'))
    return [
        dict(name=name, top1=top1, top5=top5, flips=difference.changed_predictions, num_images=difference.num_images)
        for name, (top1, top5, difference) in measured.items()
    ]


def on_normalized(network: Callable[[np.ndarray], np.ndarray], job: Job) -> Callable[[Tensor], Tensor]:
    """An opened file of ``job`` as a function of normalized images, whatever it takes itself."""
    normalize = job.preprocessing.normalize

    def run(images: Tensor) -> Tensor:
        taken = images * normalize.std + normalize.mean if job.request.normalize else images
        return torch.from_numpy(np.array(network(taken.numpy())))

    return run
