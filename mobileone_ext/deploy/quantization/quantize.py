"""What tools/quantize.py does: read images, quantize, write the file, measure it."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import DATASETS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...data.check import check_loaders, prepare_data
from ...data.classes import is_multi_label
from ...data.images import Listing, find_images, spread
from ...data.nested import datasets_of
from ...data.pixels import Preprocessing
from ...files import check_outputs, suffix_of, write_json
from ...text import print_table, printable, with_progress
from .. import export
from ..compare import Difference, image_channels, top_accuracies
from ..formats import FORMAT_OF_SUFFIX, FORMATS
from ..formats.base import Request, import_packages
from ..runtime import open_network
from . import agreement
from .calibrate import Options, quantize, sensitivity
from .chain import Int8, in_chunks, layers_of
from .photos import warnings_about
from .prepare import SUFFIXES, prepare, write_prepared
from .qdq import insert_qdq
from .qdq_torch import qdq_net

INT8_SUFFIXES = [suffix for suffix, name in FORMAT_OF_SUFFIX.items() if FORMATS[name].int8]
REMEDY = '--images DIR names calibration images'


@dataclass(frozen=True)
class Job:
    """A network, the photos that calibrate it, the files that are written, and what is measured.

    Attributes:
        config, checkpoint: the network.
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
    checkpoint: str
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
        return calibration_files(self.config, self.images)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.config)

    @cached_property
    def model(self) -> nn.Module:
        """The float classifier, fused."""
        return export.load_fused(self.config, self.checkpoint, self.ema, self.trust)

    @cached_property
    def test_images(self) -> DataLoader:
        """Of the config's test set."""
        prepare_data(self.config, 'test_dataloader', classes=self.model.classes)
        return Runner.build_dataloader(self.config.test_dataloader)


def run(job: Job) -> None:
    """Quantize a network, write it and say how good it is.

    Raises:
        ValueError, OSError: for what cannot be read, written or quantized; nothing is left half-written.
    """
    check(job)
    images = calibrate(job)
    report = dict(options=vars(job.options), num_calib=len(images))
    if job.sensitivity:
        report['sensitivity'] = sensitivity(job.model, images[::2], job.options, images[1::2])
        rows = [(name, f'{cost:.5f}') for name, cost in report['sensitivity']]
        print_table('each layer alone in int8, largest cost first', ('layer', 'divergence'), rows)
    if job.prepare:
        prepared, difference = prepare(job.model, images, job.options, job.preround)
        write_prepared(prepared, job.prepare, job.request, job.preprocessing, job.checkpoint, bool(job.preround))
        print(
            f'{job.prepare}: written; on the calibration images {difference.changed_predictions} of '
            f'{difference.num_images} predictions change, outputs within {difference.max_rel_diff:.1e} of the largest'
        )
    if job.out:
        report['agreement'] = write(job, quantize(job.model, images, job.options), job.out, images)
        print(f'{job.out}: written')
        print(agreement.describe(report['agreement']))
    if job.evaluate:
        report['accuracy'] = measure(job, images)
    if job.report:
        write_json(report, job.report)


def check(job: Job) -> None:
    """Raise ValueError or OSError for what cannot be done, before the work."""
    if not job.out and (job.evaluate or not job.prepare):
        raise ValueError('nothing to write: name the int8 file, which --evaluate measures, or --prepare a float one')
    if job.preround and not job.prepare:
        raise ValueError('--preround belongs to --prepare')
    if job.out:
        if suffix_of(job.out) not in INT8_SUFFIXES:
            form = FORMATS.get(FORMAT_OF_SUFFIX.get(suffix_of(job.out)))
            why = f'; {form.why_no_int8}' if form and form.why_no_int8 else ''
            raise ValueError(f'{job.out}: an int8 file is named {" or ".join(f"*{s}" for s in INT8_SUFFIXES)}{why}')
        import_packages(job.request.format)
    sources = job.config.filename, job.checkpoint, *job.photos[0]
    if job.out:
        export.check_place(job.out, job.request.format, *sources)
    if job.prepare and suffix_of(job.prepare) not in SUFFIXES:
        raise ValueError(f'--prepare {job.prepare}: a float network is written to {" or ".join(SUFFIXES)}')
    check_outputs([job.out, job.prepare, job.report], *sources)
    layers_of(job.model)  # refuses what int8 does not know
    if job.evaluate:
        check_loaders(dict(test=job.test_images), job.config)


def calibration_files(config: Config, folder: str | None) -> tuple[Listing, str]:
    """The images in ``folder``, or else those that the config trains on; and where that is, for messages.

    Raises:
        OSError, ValueError: for a folder without images, or a config whose training images are not there.
    """
    if folder is not None:
        return find_images([folder]), folder
    if not config.get('train_dataloader'):
        raise ValueError(f'{config.filename}: has no training set to calibrate on; {REMEDY}')
    try:
        prepare_data(config, 'train_dataloader')
    except (ValueError, OSError) as error:
        raise ValueError(f'{error}; or {REMEDY}') from error
    sets = [DATASETS.build({**dataset, 'pipeline': []}) for dataset, _ in datasets_of(config, 'train_dataloader')]
    listed = dict.fromkeys(part.get_data_info(index).get('img_path') for part in sets for index in range(len(part)))
    if None in listed or any('://' in path for path in listed):
        raise ValueError(f'{config.filename}: its training images are no files; {REMEDY}')
    return Listing(map(Path, listed)), 'the training set'


def calibrate(job: Job) -> Tensor:
    """The normalized calibration images (N, C, H, W); what is odd about them is said.

    Raises:
        ValueError: if there are fewer readable images than asked for, or they are not of the size that is asked for.
    """
    (files, place), skipped = job.photos, []
    images = read_photos(job, skipped)
    if images.shape[2:] != (job.request.size, job.request.size):
        height, width = images.shape[2:]
        raise ValueError(
            f"--image-size {job.request.size}: the config's test pipeline gives images of {height} x {width} pixels"
        )
    if files.note:
        print(f'{place}: {files.note}')
    for message in skipped:
        print(f'skipped {printable(message)}')
    print(f'{len(images)} calibration images from {place}, {len(skipped)} skipped')
    pixels = images * job.preprocessing.normalize.std + job.preprocessing.normalize.mean
    with torch.no_grad():
        probabilities = None if is_multi_label(job.config) else in_chunks(job.model, images).softmax(1)
    for warning in warnings_about(pixels, probabilities, place):
        print(f'WARNING: {printable(warning)}')
    return images


def read_photos(job: Job, skipped: list[str] | None = None) -> Tensor:
    """``job.num_images`` normalized images (N, C, H, W), spread evenly over the photos, for unreadable ones others.

    Args:
        skipped: gets a message about each unreadable file.
    """
    (files, place), count = job.photos, job.num_images
    chosen = dict.fromkeys([*spread(files, count), *files])
    read = job.preprocessing.read(chosen, [] if skipped is None else skipped)
    pixels = [image for _, image in islice(read, count)]
    if len(pixels) < count:
        raise ValueError(
            f'{place}: {len(pixels)} of {len(files)} files are readable images, --num-images asks for {count}'
        )
    sizes = {tuple(image.shape[1:]) for image in pixels}
    if len(sizes) > 1:
        raise ValueError(f"{place}: the config's test pipeline gives images of several sizes: {sorted(sizes)[:4]}")
    return job.preprocessing.normalize(torch.stack(pixels))


def write(job: Job, int8: Int8, path: str | Path, images: Tensor | None = None) -> dict | None:
    """Write the file of ``int8``; what :func:`agreement.measure` says of it on ``images``, if there are any."""
    form, asked = FORMATS[job.request.format], job.request
    normalize = job.preprocessing.normalize if asked.normalize else None
    request = dataclasses.replace(
        asked,
        int8=True,
        metadata=dict(precision='int8', sums=agreement.sums(int8)),
        channels=image_channels(int8.model),
    )
    if form.int8 == 'graph':
        net = export.DeployNet(int8.model, normalize, asked.softmax)
        request = dataclasses.replace(request, rewrite=lambda proto: insert_qdq(proto, int8))
    else:
        net = qdq_net(int8, normalize, asked.softmax, **form.pairs)
        scales = int8.weight_scales.get(layers_of(int8.model)[-1].name)
        request = dataclasses.replace(request, classifier_scales=scales)
    request = export.described(request, job.preprocessing, job.checkpoint, getattr(int8.model, 'classes', None))

    def agree(part: Path) -> dict:
        return agreement.measure(job.model, int8, open_network(part), images, job.preprocessing.normalize, request)

    return export.export(net, path, request, agree if images is not None else None)


def measure(job: Job, images: Tensor) -> list[dict]:
    """Rows of :func:`measure_accuracy`, also of the steps to ``job.options`` where these are asked for; shown."""
    with tempfile.TemporaryDirectory() as folder:
        networks = {}
        for name, options in steps_to(job.options) if job.steps else ():
            path = Path(folder, f'{name}{suffix_of(job.out)}')
            write(job, quantize(job.model, images, options), path)
            networks[name] = open_network(path)
        networks['int8'] = open_network(job.out)
        rows = measure_accuracy(job, networks)
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


@torch.no_grad()
def measure_accuracy(job: Job, networks: dict[str, Callable[[np.ndarray], np.ndarray]]) -> list[dict]:
    """Float model and int8 files of ``job`` on the config's test set: rows with ``name``, ``top1``, ``top5``
    (percent; None where an image may have several labels), ``flips`` (predictions unlike the float model's) and
    ``num_images``."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in ('float', *networks)}
    labels = []
    preprocessing = job.preprocessing
    for batch in with_progress(job.test_images, 'evaluate'):
        pixels = torch.stack(list(batch['inputs'])).float()
        pixels = pixels.flip(1) if preprocessing.to_rgb else pixels
        images = preprocessing.normalize(pixels)
        outputs['float'].append(job.model(images))
        taken = (pixels if job.request.normalize else images).numpy()
        for name, network in networks.items():
            outputs[name].append(torch.from_numpy(np.array(network(taken))))
        labels.extend(sample.gt_label for sample in batch['data_samples'])
    multi_label, expected = is_multi_label(job.config), torch.cat(outputs['float'])
    rows = []
    for name, parts in outputs.items():
        predicted = torch.cat(parts)
        top1, top5 = (None, None) if multi_label else top_accuracies(predicted, torch.cat(labels))
        difference = Difference(multi_label)
        difference.add(expected, predicted, ('the float network', name))
        rows.append(dict(name=name, top1=top1, top5=top5, flips=difference.changed_predictions, num_images=len(labels)))
    return rows
