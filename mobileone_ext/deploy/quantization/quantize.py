"""What tools/quantize.py does: read images, quantize, write the file, measure it."""

import dataclasses
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models.heads import MultiLabelClsHead
from mmpretrain.registry import DATASETS
from rich.table import Table
from torch import Tensor, nn

from ...data.check import prepare_data
from ...data.classes import is_multi_label
from ...data.images import Found, find_images, spread
from ...data.nested import datasets_of
from ...data.pixels import Normalize, Preprocessing, read_images
from ...files import check_writable, write_atomically, write_json
from ...text import make_console, printable, with_progress
from .. import export
from ..compare import Difference, image_channels, top_accuracies
from ..formats.base import Request, check_installed, load_format
from ..runtime import Network, open_network
from . import agreement
from .agreement import SUMS_FIT, SUMS_OVERFLOW
from .calibrate import Int8, Options, quantize, sensitivity
from .chain import in_chunks, layers_of
from .photos import check_photos
from .prepare import SNAP_STEPS, check_prepare, prepare, write_prepared
from .qdq import insert_qdq
from .qdq_torch import qdq_net

MIN_OPSET = 13
FORM_OF_SUFFIX = {'.onnx': 'onnx', '.xml': 'openvino', '.tflite': 'litert', '.pte': 'executorch'}
# Why a format of ours is none of int8's, where there is more to say than that it was not built.
NO_INT8 = {
    '.param': "ncnn's integers have no zero point: 127 steps above zero where this int8 has 255; write a float network "
    'with --prepare and --snap for its own quantizer',
}
# How pairs are to be written for a format, see qdq_torch.py.
PAIRS = {'litert': dict(folded=False), 'executorch': dict(own_range=True)}


def run(
    config: Config,
    checkpoint: str,
    out: str | None,
    calib: str | None,
    num_calib: int,
    options: Options,
    file: export.FileOptions,
    ema: str = 'auto',
    trust: bool = False,
    measure_layers: bool = False,
    evaluate: bool = False,
    measure_steps: bool = False,
    report_path: str | None = None,
    prepare_path: str | None = None,
    snap: bool = False,
    snap_steps: float = 127,
) -> None:
    """Quantize ``checkpoint`` with ``num_calib`` images from ``calib`` into ``out``, whose suffix tells the format.

    Args:
        calib: a folder; None takes the images that the config trains on.
        ema, trust: as in :func:`mobileone_ext.checkpoints.load.load_weights`.
        measure_layers: what each layer costs alone.
        evaluate: measure float and int8 on the config's test set.
        measure_steps: there, each step from plain quantization to ``options`` as well.
        report_path: where to write all of it as JSON.
        prepare_path: where to write the float network that other quantizers are to have; ``out`` may be None then.
        snap, snap_steps: of that one, see prepare.py.

    Raises:
        ValueError, OSError: for what cannot be read, written or quantized; nothing is left half-written.
    """
    if not (out or prepare_path):
        raise ValueError('nothing to write: name the int8 file, or --prepare a float one')
    if not out and (evaluate or measure_steps):
        raise ValueError('--evaluate measures the int8 file: name it')
    if snap and not prepare_path:
        raise ValueError('--snap belongs to --prepare')
    if snap_steps not in SNAP_STEPS:
        raise ValueError(f'--snap-steps {snap_steps:g}: allowed are {" and ".join(f"{n:g}" for n in SNAP_STEPS)}')
    if snap_steps != SNAP_STEPS[0] and not snap:
        raise ValueError('--snap-steps belongs to --snap')
    if out:
        if Path(out).suffix not in FORM_OF_SUFFIX:
            named = f'{out}: an int8 file is named {" or ".join(f"*{suffix}" for suffix in FORM_OF_SUFFIX)}'
            raise ValueError('; '.join([named, *filter(None, [NO_INT8.get(Path(out).suffix)])]))
        export.check_request(out, FORM_OF_SUFFIX[Path(out).suffix], file.opset)
        check_installed(FORM_OF_SUFFIX[Path(out).suffix])
        if file.opset < MIN_OPSET:
            raise ValueError(f'opset {file.opset}: int8 needs {MIN_OPSET} or later: a scale for each channel')
    if prepare_path:
        check_prepare(prepare_path)
    if report_path:
        check_writable(report_path)
    photos, place = calibration_files(config, calib)
    if photos.note:
        print(f'{place}: {photos.note}')
    outputs = [path for path in (out, prepare_path, report_path) if path]
    if len({Path(path).resolve() for path in outputs}) < len(outputs):
        raise ValueError(f'{", ".join(outputs)}: each file needs a name of its own')
    for path in outputs:
        export.check_distinct(path, config.filename, checkpoint, *photos)
    model = export.load_fused(config, checkpoint, ema, trust)
    layers_of(model)  # refuses what int8 does not know
    if evaluate:
        prepare_data(config, 'test_dataloader', classes=model.classes)
    images, skipped = read_calibration(config, calib, num_calib)
    if images.shape[2:] != (file.size, file.size):
        height, width = images.shape[2:]
        raise ValueError(f"--size {file.size}: the config's test pipeline gives images of {height} x {width} pixels")
    for message in skipped:
        print(f'skipped {printable(message)}')
    print(f'{len(images)} calibration images from {place}, {len(skipped)} skipped')
    for warning in _check_calibration(config, model, images, place):
        print(f'WARNING: {printable(warning)}')

    report = dict(options=vars(options), num_calib=len(images))
    if measure_layers:
        report['sensitivity'] = sensitivity(model, images[::2], options, images[1::2])
        show_sensitivity(report['sensitivity'])
    if prepare_path:
        prepared, difference = prepare(model, images, options, snap, snap_steps)
        with write_atomically(prepare_path) as part:
            write_prepared(config, checkpoint, prepared, part, Path(prepare_path).suffix, file, snap)
        print(
            f'{prepare_path}: written; on the calibration images {difference.changed_predictions} of '
            f'{difference.num_images} predictions change, outputs within {difference.max_rel_diff:.1e} of the largest'
        )
    if out:
        report.update(
            _write_and_measure(config, checkpoint, out, model, images, options, file, evaluate, measure_steps)
        )
    if report_path:
        write_json(report, report_path)


@torch.no_grad()
def _check_calibration(config: Config, model: nn.Module, images: Tensor, folder: str) -> list[str]:
    normalize = Normalize(config)
    probabilities = None
    if not isinstance(model.head, MultiLabelClsHead):
        probabilities = in_chunks(model, images).softmax(1)
    return check_photos(images * normalize.std + normalize.mean, probabilities, folder)


def _write_and_measure(
    config: Config,
    checkpoint: str,
    out: str,
    model: nn.Module,
    images: Tensor,
    options: Options,
    file: export.FileOptions,
    evaluate: bool,
    measure_steps: bool,
) -> dict:
    """Quantize ``model`` into ``out``; what the report says of it, as :func:`run` has it."""
    report = {}
    int8 = quantize(model, images, options)
    with export.staged(Path(out), model) as part:
        write(config, checkpoint, int8, part, file)
        report['agreement'] = agreement.measure(model, int8, open_network(part), images, Normalize(config), file)
    print(f'{out}: written')
    print(agreement.describe(report['agreement']))
    if evaluate:
        with tempfile.TemporaryDirectory() as folder:
            networks = {}
            for name, partial in steps_to(options) if measure_steps else ():
                write(config, checkpoint, quantize(model, images, partial), Path(folder, f'{name}.onnx'), file)
                networks[name] = open_network(Path(folder, f'{name}.onnx'))
            networks['int8'] = open_network(out)
            report['accuracy'] = measure_accuracy(config, model, networks, file.normalize)
        show_accuracy(report['accuracy'])
    return report


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


def calibration_files(config: Config, folder: str | None) -> tuple[Found, str]:
    """The images in ``folder``, or else those that the config trains on; and where that is, for messages.

    Raises:
        OSError, ValueError: for a folder without images, or a config whose training images are not there.
    """
    if folder is not None:
        return find_images([folder]), folder
    remedy = '--calib DIR names calibration images'
    if not config.get('train_dataloader'):
        raise ValueError(f'{config.filename}: has no training set to calibrate on; {remedy}')
    try:
        prepare_data(config, 'train_dataloader')
    except (ValueError, OSError) as error:
        raise ValueError(f'{error}; or {remedy}') from error
    sets = [DATASETS.build({**dataset, 'pipeline': []}) for dataset, _ in datasets_of(config, 'train_dataloader')]
    listed = dict.fromkeys(part.get_data_info(index).get('img_path') for part in sets for index in range(len(part)))
    if None in listed:
        raise ValueError(f'{config.filename}: its training images are no files; {remedy}')
    return Found(map(Path, listed)), 'the training set'


def read_calibration(config: Config, folder: str | None, count: int) -> tuple[Tensor, list[str]]:
    """``count`` normalized images (N, C, H, W), spread evenly over :func:`calibration_files`, and messages about
    unreadable files, in whose place others are taken.

    Raises:
        ValueError: if there are fewer readable images than asked for.
    """
    if count < 1:
        raise ValueError(f'--num-calib {count}: at least one image is needed')
    (files, folder), skipped = calibration_files(config, folder), []
    if len(files) < count:
        raise ValueError(f'{folder}: holds {len(files)} images, --num-calib asks for {count}')
    chosen = dict.fromkeys([*spread(files, count), *files])
    pixels = [image for _, image in islice(read_images(config, list(chosen), skipped), count)]
    if len(pixels) < count:
        raise ValueError(
            f'{folder}: {len(pixels)} of {len(files)} files are readable images, --num-calib asks for {count}'
        )
    sizes = {tuple(image.shape[1:]) for image in pixels}
    if len(sizes) > 1:
        raise ValueError(f"{folder}: the config's test pipeline gives images of several sizes: {sorted(sizes)[:4]}")
    return Normalize(config)(torch.stack(pixels)), skipped


def write(config: Config, checkpoint: str, int8: Int8, path: Path, file: export.FileOptions) -> None:
    """Write the file of ``int8``, made of ``checkpoint``, in the format of ``path``'s suffix."""
    form = FORM_OF_SUFFIX[path.suffix]
    metadata = export.file_metadata(
        config, checkpoint, file.normalize, file.softmax, getattr(int8.model, 'classes', None)
    )
    sums = SUMS_FIT if int8.fits_16_bits else SUMS_OVERFLOW
    metadata.update(export.facts(form, file.size), precision='int8', sums=sums)
    normalize = Normalize(config) if file.normalize else None
    image = torch.zeros(2, image_channels(int8.model), file.size, file.size)
    with export.held_by(form, 'this network in int8'):
        if form in ('onnx', 'openvino'):
            net = export.DeployNet(int8.model, normalize, file.softmax)
            proto = insert_qdq(export.onnx_proto(net, image, file.opset, dynamic_batch=True), int8)
            if form == 'onnx':
                export.write_onnx(proto, path, metadata)
            else:
                load_format(form).write_proto(proto, path, metadata)
        else:
            scales = int8.weight_scales.get(layers_of(int8.model)[-1].name)
            request = Request(image[:1], False, metadata=metadata, format=form, int8=True, classifier_scales=scales)
            net = qdq_net(int8, normalize, file.softmax, **PAIRS[form])
            load_format(form).write(net, path, request)


@torch.no_grad()
def measure_accuracy(
    config: Config, model: nn.Module, networks: dict[str, Network], normalized_inside: bool = False
) -> list[dict]:
    """Float model and int8 files on the config's test set: rows with ``name``, ``top1``, ``top5`` (percent; None where
    an image may have several labels), ``flips`` (predictions unlike the float model's) and ``num_images``."""
    normalize = Normalize(config)
    flip = Preprocessing(config).to_rgb
    outputs = {'float': [], **{name: [] for name in networks}}
    labels = []
    for batch in with_progress(Runner.build_dataloader(config.test_dataloader), 'evaluate'):
        pixels = torch.stack(list(batch['inputs'])).float()
        pixels = pixels.flip(1) if flip else pixels
        images = normalize(pixels)
        outputs['float'].append(model(images))
        for name, network in networks.items():
            found = network((pixels if normalized_inside else images).numpy())
            outputs[name].append(torch.from_numpy(np.array(found)))
        labels.extend(sample.gt_label for sample in batch['data_samples'])
    several, expected = is_multi_label(config), torch.cat(outputs['float'])
    rows = []
    for name, parts in outputs.items():
        found = torch.cat(parts)
        top1, top5 = (None, None) if several else top_accuracies(found, torch.cat(labels))
        difference = Difference(several)
        difference.add(expected, found, ('the float network', name))
        flips = difference.changed_predictions
        rows.append(dict(name=name, top1=top1, top5=top5, flips=flips, num_images=len(labels)))
    return rows


def show_accuracy(rows: list[dict]) -> None:
    table = Table(title=f'{rows[0]["num_images"]} images')
    for column in ('', 'top-1', 'top-5', 'flips'):
        table.add_column(column, justify='right' if column else 'left')
    for row in rows:
        accuracies = ['-' if row[key] is None else f'{row[key]:.2f}' for key in ('top1', 'top5')]
        table.add_row(row['name'], *accuracies, str(row['flips']))
    make_console().print(table)


def show_sensitivity(costs: list[tuple[str, float]]) -> None:
    table = Table(title='each layer alone in int8, largest cost first')
    table.add_column('layer')
    table.add_column('divergence', justify='right')
    for name, cost in costs:
        table.add_row(name, f'{cost:.5f}')
    make_console().print(table)
