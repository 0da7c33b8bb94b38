"""How much does int8 owe to the photos that it was calibrated with? The study behind ``python -m research.int8``.

Eight sets, each quantized with the defaults, all measured in one pass over the config's test set: of the data set's
own training photos (all classes or half of them; 32, 100 and 200), of photos from elsewhere, and of textures, which a
careless user takes: the middle eighth of those photos, enlarged.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.utils import get_git_hash
from PIL import Image
from torch import Tensor, nn

from mobileone_ext.data.images import find_images
from mobileone_ext.data.pixels import Preprocessing
from mobileone_ext.deploy.formats.base import Request
from mobileone_ext.deploy.quantization import Options
from mobileone_ext.deploy.quantization.calibrate import quantize
from mobileone_ext.deploy.quantization.quantize import Job, measure_accuracy, write
from mobileone_ext.text import markdown_table
from research.sessions import in_exact_integers

ZOOM = 8  # of textures


class Calibration(NamedTuple):
    """A draw of ``count`` photos of ``source``: ``own``, ``half`` or ``other half`` (of its classes), ``outside`` or
    ``textures``."""

    source: str
    count: int
    seed: int = 0


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


def quantize_all(
    config: Config, weights: str, model: nn.Module, own: Path, outside: Path, options: Options, out: Path, names: list
) -> dict[str, Path]:
    """The int8 file of each set, in ``out``; those that are there already are kept."""
    files = {}
    for name in names:
        files[name] = out / f'{name.replace(", ", "_").replace(" ", "-")}_{options.weight_bits}.onnx'
        if not files[name].exists():
            scratch = out / 'textures'
            scratch.mkdir(exist_ok=True)
            images = calibration_images(config, draw(SETS[name], own, outside, scratch))
            job = Job(config, weights, request=Request(size=images.shape[-1]))
            write(job, quantize(model, images, options), files[name])
            print(f'{files[name]}: written', flush=True)
    return files


def measure(config: Config, weights: str, files: dict[str, Path], options: Options) -> list[dict]:
    """A row for the float network and for each file: top-1, what it loses, and flips on the config's test set."""
    networks = {name: in_exact_integers(path.read_bytes()) for name, path in files.items()}
    job = Job(config, weights)
    reference, *found = measure_accuracy(job, job.test_images, networks)
    shared = dict(num_images=reference['num_images'], commit=get_git_hash(digits=7))
    kind = f'{options.weight_bits} bits a {"channel" if options.per_channel else "layer"}'
    rows = [dict(weights=kind, calibration='float', top1=f'{reference["top1"]:.2f}', loss='', flips='', **shared)]
    for row in found:
        loss = f'{reference["top1"] - row["top1"]:.2f}'
        own = dict(calibration=row['name'], top1=f'{row["top1"]:.2f}', loss=loss, flips=row['flips'])
        rows.append(dict(weights=kind, **own, **shared))
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: a line a set."""
    reference, *others = ([row[key] for key in ('calibration', 'top1', 'loss', 'flips')] for row in rows)
    reference[-1] = f'of {rows[0]["num_images"]}'
    return markdown_table(('calibration', 'top-1', 'loss', 'flips'), [reference, *others])
