"""Images a second of one core on their way into training and validation: ours, mmpretrain's and torchvision's.

Reading (from memory that the system has filled before), decoding, random resized crop
and flip, or resize and center crop, up to a uint8 tensor (3, H, W). All pipelines take
turns on the same images with the same random crops where they draw alike, and their seconds are those of the
processor, which other work on the machine does not lengthen much. "Antialiased" ones resize as Pillow does; the
others take the nearest two pixels of a row, whatever lies between.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.utils import get_git_hash
from PIL import Image

from mobileone_ext.data.images import find_images
from mobileone_ext.data.resize import QUALITY, resize_file
from mobileone_ext.files import check_writable, csv_text, write_text
from mobileone_ext.provenance import machine
from mobileone_ext.text import markdown_table, with_progress

TASKS = ('training', 'validation')
PACKAGES = ('simplejpeg', 'mmcv', 'mmpretrain', 'cv2', 'PIL', 'torch', 'torchvision')
JPEG_QUALITY = 95
COLUMNS = ('images', 'task', 'size', 'pipeline', 'antialiased', 'images_per_s', 'rounds', 'commit')


class Case(NamedTuple):
    images: str
    task: str
    size: int
    pipeline: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('images', metavar='DIR', help='folder of JPEG files')
    parser.add_argument('--count', type=int, default=100, metavar='N', help='how many of the files (100)')
    parser.add_argument(
        '--image-sizes',
        '--sizes',
        dest='sizes',
        type=int,
        nargs='+',
        default=[160, 224],
        metavar='PX',
        help='(160 224)',
    )
    parser.add_argument(
        '--repeats', '--rounds', dest='rounds', type=int, default=7, metavar='N', help='turns of each pipeline (7)'
    )
    parser.add_argument(
        '--resample',
        type=int,
        nargs=2,
        default=[500, 375],
        metavar=('WIDTH', 'HEIGHT'),
        help="the same images at this size as well, by default ImageNet's most frequent one (500 375)",
    )
    parser.add_argument(
        '--short-edge',
        type=int,
        default=292,
        metavar='PX',
        help='and these as tools/resize_dataset.py writes them (292)',
    )
    parser.add_argument(
        '--out', default='work_dirs/benchmark_pipeline', metavar='DIR', help='for pipeline.csv and pipeline.md'
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write it to ``args.out``."""
    if min(args.count, args.rounds, args.short_edge, *args.sizes, *args.resample) < 1:
        raise ValueError('--count, --rounds, --sizes, --resample and --short-edge: at least 1')
    files = find_images([args.images])[: args.count]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / 'pipeline.csv')
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sets = [files, resample(files, args.resample, Path(folder))]
        sets.append(resize_once(sets[1], args.short_edge))
        cases = [(images, task, size) for images in sets for task in TASKS for size in args.sizes]
        for images, task, size in with_progress(cases, 'pipelines'):
            name = photos_label(images)
            for pipeline, seconds in measure(PIPELINES, images, task, size, args.rounds).items():
                rate = len(images) / median(seconds)
                case = Case(name, task, size, pipeline)._asdict()
                rows.append(dict(case, antialiased=ANTIALIASED[pipeline], images_per_s=rate, rounds=len(seconds)))
    report = f'{machine(*PACKAGES)}; one core, {len(files)} images\n\n{as_markdown(rows)}'
    print(report)
    write_text(as_csv(rows), out / 'pipeline.csv')
    write_text(report, out / 'pipeline.md')
    print(f'written: {out}/pipeline.csv, .md')


def resample(files: Sequence[Path], size: Sequence[int], folder: Path) -> list[Path]:
    """Copies of ``files`` at ``size`` (width, height) in ``folder``."""
    copies = []
    for number, file in enumerate(files):
        image = Image.open(file).convert('RGB').resize(size, Image.Resampling.LANCZOS)
        copies.append(folder / f'{number}.jpg')
        image.save(copies[-1], quality=JPEG_QUALITY)
    return copies


def resize_once(files: Sequence[Path], short_edge: int) -> list[Path]:
    """Copies of ``files`` beside them, as tools/resize_dataset.py makes them."""
    copies = [file.with_name(f'resized_{file.name}') for file in files]
    for file, copy in zip(files, copies):
        resize_file(file, copy, short_edge, QUALITY)
    return copies


def photos_label(files: Sequence[Path]) -> str:
    """Median size in pixels and mean size in kB."""
    widths, heights = zip(*(Image.open(file).size for file in files))
    kilobytes = mean(file.stat().st_size for file in files) / 1000
    return f'{median(widths):g} x {median(heights):g}, {kilobytes:.0f} kB'


def measure(
    pipelines: dict[str, Callable], files: Sequence[Path], task: str, size: int, rounds: int
) -> dict[str, list[float]]:
    """CPU seconds of each pipeline for all ``files``, ``rounds`` times in turns, after one that isn't counted."""
    calls = {name: build(task, size) for name, build in pipelines.items()}
    seconds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            np.random.seed(number)
            torch.manual_seed(number)
            start = time.process_time()
            for file in files:
                call(file)
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def _openmmlab(task: str, size: int, ours: bool, backend: str, exact: bool = True) -> Callable[[Path], torch.Tensor]:
    """A pipeline of mmpretrain's transforms, or of ours under the same names; ``exact``: mmpretrain's to validate."""
    from mmengine.dataset import Compose
    from mmpretrain.registry import TRANSFORMS

    from mobileone_ext.data import transforms  # noqa: F401  (registers them)

    scope, own = ('mobileone_ext', dict(lazy=True)) if ours else ('mmpretrain', dict(imdecode_backend=backend))
    if task == 'training':
        steps = [
            dict(type=f'{scope}.LoadImageFromFile', **own),
            dict(type=f'{scope}.RandomResizedCrop', scale=size, backend=backend),
            dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
        ]
    else:
        own.pop('lazy', None)
        steps = [
            dict(type=f'{scope}.LoadImageFromFile', **own),
            dict(
                type=f'{"mmpretrain" if exact else scope}.ResizeEdge',
                scale=_short_edge(size),
                edge='short',
                backend=backend,
            ),
            dict(type='mmpretrain.CenterCrop', crop_size=size),
        ]
    steps.append(dict(type='mmpretrain.PackInputs'))
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    return lambda file: pipeline(dict(img_path=str(file)))['inputs']


def _torchvision(task: str, size: int, pillow: bool) -> Callable[[Path], torch.Tensor]:
    """torchvision's transforms of Pillow images, or of the tensors that its own decoder gives."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    if task == 'training':
        steps = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.Resize(_short_edge(size)), v2.CenterCrop(size)]
    if pillow:
        pipeline = v2.Compose([*steps, v2.PILToTensor()])
        return lambda file: pipeline(Image.open(file).convert('RGB'))
    pipeline = v2.Compose(steps)
    return lambda file: pipeline(decode_jpeg(read_file(str(file)), ImageReadMode.RGB))


def _short_edge(size: int) -> int:
    return round(size * 256 / 224)


PIPELINES = {
    'ours, pillow': partial(_openmmlab, ours=True, backend='pillow'),
    'ours, pillow, own ResizeEdge': partial(_openmmlab, ours=True, backend='pillow', exact=False),
    'mmpretrain, pillow': partial(_openmmlab, ours=False, backend='pillow'),
    'torchvision, Pillow images': partial(_torchvision, pillow=True),
    'torchvision, tensors': partial(_torchvision, pillow=False),
    'ours, cv2': partial(_openmmlab, ours=True, backend='cv2'),
    'mmpretrain, cv2': partial(_openmmlab, ours=False, backend='cv2'),
}
ANTIALIASED = {name: not name.endswith('cv2') for name in PIPELINES}


def as_csv(rows: list[dict]) -> str:
    """One line a case, with ``COLUMNS``."""
    commit = get_git_hash(digits=7)
    return csv_text((dict(row, images_per_s=f'{row["images_per_s"]:.1f}', commit=commit) for row in rows), COLUMNS)


def as_markdown(rows: list[dict]) -> str:
    """A table for each set of images: a line a pipeline, a column a task and size."""
    lines = ['Images a second, median.']
    rates = {tuple(row[key] for key in Case._fields): row['images_per_s'] for row in rows}
    columns = list(dict.fromkeys((task, size) for _, task, size, _ in rates))
    for images in dict.fromkeys(case[0] for case in rates):
        table = []
        for pipeline in dict.fromkeys(case[3] for case in rates):
            cells = (f'{rates[images, task, size, pipeline]:.0f}' for task, size in columns)
            table.append((pipeline, 'yes' if ANTIALIASED[pipeline] else 'no', *cells))
        headings = images, 'antialiased', *(f'{task}, {size} px' for task, size in columns)
        lines += ['', markdown_table(headings, table)]
    return '\n'.join(lines) + '\n'
