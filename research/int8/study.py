"""How much does int8 owe to the photos that it was calibrated with, and what do others reach? The study behind ``python
-m research.int8``; each of its two plans was fixed before its first row on Imagenette. Of the photos (``PHOTOS``):

Sets (``SETS``): eight, of the data set's own training photos (all classes or half of them; 32, 100 and 200), of photos
from elsewhere, and of textures, which a careless user takes: the middle eighth of those photos, enlarged. The first six
are of the right kind.

Forms (``FORMS``): the tool's default (7 bits, a scale for each channel), 8 bits, one scale for each layer, and raw: the
network as published through onnxruntime's ``quantize_static`` with its defaults and a scale for each channel. Each is
an ONNX file, run in exact integers.

Order: set by set over all forms. Stopped anywhere, no form is more than a set ahead of another.

Measure: on every photo of the config's test set, is the prediction right, and is it the float network's? None of these
photos calibrates. All sets see the same photos and share what these do to a figure, so a photo counts once: a form's
loss is the mean over photos of (right in float - share of the six sets of the right kind in which int8 is right), and
its interval comes from the spread of that between photos. The six sets are taken as they are; an interval says nothing
of a seventh. Intervals are of 95 %, normal.

Compared: the other three forms with the default, by the mean difference between photos; intervals of 98.3 %, so that
all three hold together at 95 %. A difference is called one where its interval leaves out 0. The two sets of another
kind have their own loss and interval each, and no comparison. What the number of photos does is description.

Of others at their best (``OTHERS``): two sets of 100 photos of all classes, the first by the seed of the one above.
Forms: the default; as published, NNCF, onnxruntime and MNN (KL) with their defaults, NNCF with bias correction in full
and onnxruntime with ranges by percentile, which were the best settings of each on 1,300 other photos
(research/toolchains); pre-rounded by this tool with the photos of the set, NNCF with bias correction in full,
onnxruntime and MNN with their defaults. Measured as above, a loss being the mean over both sets. Compared: NNCF with
bias correction in full, as published, with the default; an interval of 95 %. All else is description, each with an
interval of its own.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

from mobileone_ext.data.images import find_images
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy.export import load_fused
from mobileone_ext.deploy.formats.base import Request
from mobileone_ext.deploy.quantization import Options
from mobileone_ext.deploy.quantization.calibrate import quantize
from mobileone_ext.deploy.quantization.prepare import prepare
from mobileone_ext.deploy.quantization.quantize import Job, write
from mobileone_ext.deploy.quantization.rounding import LEVELS
from mobileone_ext.provenance import processor
from mobileone_ext.text import markdown_table
from research.paired import changes, estimate, losses
from research.sessions import in_exact_integers
from research.toolchains import study as toolchains
from research.toolchains.quantizers import Predict
from research.training import append_row, read_rows

ZOOM = 8  # of textures


class Calibration(NamedTuple):
    """A draw of ``count`` photos of ``source``: ``own``, ``half`` or ``other half`` (of its classes), ``outside`` or
    ``textures``."""

    source: str
    count: int
    seed: int = 0


class Other(NamedTuple):
    """Somebody else's quantizer with a scale for each channel, by its name in research/toolchains; ``preround``: given
    the pre-rounded network instead of the published one."""

    quantizer: str
    preround: bool = False


SETS = {
    'all classes, 200': Calibration('own', 200),
    'all classes, 200, again': Calibration('own', 200, 1),
    'all classes, 100': Calibration('own', 100),
    'all classes, 32': Calibration('own', 32),
    'half of the classes, 200': Calibration('half', 200),
    'half of the classes, 32': Calibration('half', 32),
    'other photos, 100': Calibration('outside', 100),
    'textures, 100': Calibration('textures', 100),
}
FORMS = {
    'default': Options(),
    '8 bits': Options(weight_bits=8),
    'per tensor': Options(per_channel=False),
    'raw': Other('onnxruntime quantize_static'),
}
FLOAT = 'float'


class Plan(NamedTuple):
    """Sets; forms, the first of which the others are compared with; how many of these comparisons hold together."""

    sets: dict[str, Calibration]
    forms: dict[str, Options | Other]
    comparisons: int

    def right_kind(self) -> list[str]:
        return [name for name, calibration in self.sets.items() if calibration.source in ('own', 'half')]


PHOTOS = Plan(SETS, FORMS, comparisons=3)
OTHERS = Plan(
    {'all classes, 100': SETS['all classes, 100'], 'all classes, 100, again': Calibration('own', 100, 1)},
    {
        'default': FORMS['default'],
        'NNCF, bias correction in full': Other('NNCF: bias correction in full'),
        'NNCF': Other('OpenVINO NNCF'),
        'raw': FORMS['raw'],
        'onnxruntime, percentile': Other('onnxruntime: percentile'),
        'MNN': Other('MNN: KL'),
        'pre-rounded, NNCF, bias correction in full': Other('NNCF: bias correction in full', preround=True),
        'pre-rounded, onnxruntime': Other('onnxruntime quantize_static', preround=True),
        'pre-rounded, MNN': Other('MNN: KL', preround=True),
    },
    comparisons=1,
)


def draw(calibration: Calibration, own: Path, outside: Path, scratch: Path) -> list[Path]:
    """The files of a set; textures are written to ``scratch``."""
    source, count, seed = calibration
    files = find_images([outside if source in ('outside', 'textures') else own])
    if source.endswith('half'):
        classes = sorted({path.parent for path in files})
        half = classes[: len(classes) // 2]
        files = [path for path in files if (path.parent in half) == (source == 'half')]
    order = np.random.default_rng(seed).permutation(len(files))[:count]
    chosen = [Path(files[index]) for index in order]
    return list(_textures(chosen, scratch)) if source == 'textures' else chosen


def _textures(files: list[Path], scratch: Path) -> Iterator[Path]:
    for number, path in enumerate(files):
        with Image.open(path) as photo:
            width, height = photo.size
            half = min(width, height) // (2 * ZOOM)
            box = (width // 2 - half, height // 2 - half, width // 2 + half, height // 2 + half)
            out = scratch / f'{number:03d}.png'
            photo.convert('RGB').crop(box).resize((256, 256), Image.Resampling.BICUBIC).save(out)
        yield out


def calibration_images(config: Config, files: list[Path]) -> Tensor:
    """Normalized images (N, C, H, W)."""
    preprocessing = Preprocessing(config)
    return preprocessing.normalize(torch.stack([image for _, image in preprocessing.read(files, [])]))


def build(
    config: Config, weights: str, model: nn.Module, images: Tensor, form: Options | Other, folder: Path
) -> Predict:
    """The int8 network of ``form``, calibrated with ``images``; its file is written to ``folder``."""
    if isinstance(form, Other):
        network = prepare(model, images, Options(), LEVELS)[0] if form.preround else model
        return toolchains.build(
            toolchains.QUANTIZERS[form.quantizer], form.quantizer, network, images, 'channel', folder
        )
    write(
        Job(config, weights, request=Request(size=images.shape[-1])),
        quantize(model, images, form),
        folder / 'int8.onnx',
    )
    network = in_exact_integers((folder / 'int8.onnx').read_bytes())
    return lambda photos: torch.from_numpy(network(photos.numpy()))


def run_all(
    config: Config, weights: str, own: Path, outside: Path, path: Path, plan: Plan, sets: Sequence[str]
) -> None:
    """Add the rows of ``plan`` and these of its sets that the CSV file ``path`` lacks, each as it is measured."""
    done = {(row['calibration'], row['form']) for row in read_rows(path)}
    todo = {name: [form for form in plan.forms if (name, form) not in done] for name in sets}
    todo = {name: left for name, left in todo.items() if left}
    if not todo:
        return
    torch.set_num_threads(1)
    model = load_fused(config, weights)
    test = toolchains.TestSet(config, model)

    def add(name: str, form: str, num_photos: int, make: Callable[[], Predict]) -> None:
        start = time.process_time()
        outputs = test.outputs(make())
        found = dict(
            calibration=name,
            form=form,
            num_photos=num_photos,
            top1=f'{100 * float((outputs.argmax(1) == test.labels).double().mean()):.2f}',
            flips=int((outputs.argmax(1) != test.expected.argmax(1)).sum()),
            num_images=len(outputs),
            minutes=f'{(time.process_time() - start) / 60:.2f}',
            processor=processor(),
            changes=changes(test.expected, outputs, test.labels),
        )
        append_row(path, found)
        print(*[*found.values()][:-1], sep='; ', flush=True)

    if ('', FLOAT) not in done:
        add('', FLOAT, 0, lambda: model)
    for name, left in todo.items():
        with tempfile.TemporaryDirectory() as scratch:
            images = calibration_images(config, draw(plan.sets[name], own, outside, Path(scratch)))
        for form in left:
            with tempfile.TemporaryDirectory() as scratch:
                arguments = config, weights, model, images, plan.forms[form], Path(scratch)
                add(name, form, len(images), lambda: build(*arguments))  # noqa: B023  called at once


def table(rows: list[dict], plan: Plan) -> str:
    """Markdown: a line a set, then a line a form; of forms, the sets of the right kind that all of them have."""
    found = {(row['calibration'], row['form']): row for row in rows}
    reference = found['', FLOAT]
    forms = [form for form in plan.forms if any(form == row['form'] for row in rows)]
    names = [name for name in plan.sets if any(name == row['calibration'] for row in rows)]
    lines = []
    for name in names:
        cells = [found.get((name, form)) for form in forms]
        lines.append((name, *(f'{row["top1"]} ({row["flips"]})' if row else '' for row in cells)))
    by_set = markdown_table(('calibration', *forms), lines)
    right_kind = plan.right_kind()
    complete = [name for name in right_kind if all((name, form) in found for form in forms)]
    intro = f'Float: {reference["top1"]} of {reference["num_images"]} images. Top-1 (flips).\n\n{by_set}'
    if not complete:
        return intro
    others = [name for name in plan.sets if name not in right_kind]
    mean = {form: np.mean([losses(found[name, form]) for name in complete], axis=0) for form in forms}
    lines = []
    for form in forms:
        flips = np.mean([int(found[name, form]['flips']) for name in complete])
        share = f'{100 * flips / int(reference["num_images"]):.2f}'
        difference = '' if form == forms[0] else str(estimate(mean[form] - mean[forms[0]], 1 - 0.05 / plan.comparisons))
        cells = [found.get((name, form)) for name in others]
        each = [str(estimate(losses(row))) if row else '' for row in cells]
        lines.append((form, str(estimate(mean[form])), share, difference, *each))
    columns = 'form', 'loss', 'flips, %', f'loss beyond that of {forms[0]}', *others
    return f'{intro}\n\nMean of {len(complete)} sets of the right kind, points.\n\n{markdown_table(columns, lines)}'
