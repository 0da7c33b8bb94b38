"""Which way of giving photos their size suits photos that are not square: behind ``python -m research.fit``.

Square photos are cut: of each the middle, as it is, 4:3 or 2:1, wide or tall, which its name decides. Every fit trains
and is measured on the same cut photos; what is measured is told apart by the proportions.
"""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.engine import finetune
from mobileone_ext.engine.finetune import CONFIG, FUSED, Options
from mobileone_ext.engine.finetuning.scores import score_photos
from research.training import append_row, read_rows

FITS = ('crop', 'pad', 'squash')
PROPORTIONS = (1.0, 4 / 3, 2.0)  # of the longer side to the shorter one
COLUMNS = ('fit', 'seed', 'proportions', 'num_images', 'top1')


def proportion_of(name: str) -> float:
    """Of the photo of this file name."""
    return PROPORTIONS[zlib.crc32(name.encode()) // 2 % len(PROPORTIONS)]


def cut(photos: Path, folder: Path) -> None:
    """The middle of each of ``photos``, class folders of square ones, in ``folder``."""
    for path in sorted(path for path in photos.glob('*/*') if path.is_file()):
        out = folder / path.parent.name / f'{path.stem}.png'
        out.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            side, short = image.width, round(image.width / proportion_of(out.name))
            first = (side - short) // 2
            box = (
                (0, first, side, first + short)
                if zlib.crc32(out.name.encode()) % 2
                else (first, 0, first + short, side)
            )
            image.convert('RGB').crop(box).save(out)


def run_fit(options: Options) -> list[dict]:
    """Train and measure; a row with ``COLUMNS`` for each part of the photos, and for all."""
    if not (options.folder / CONFIG).exists():
        finetune.write_plan(finetune.make_plan(options))
    finetune.run(options.folder, resume=True)
    config = cli.load_config(str(options.folder / CONFIG))
    found = score_photos(config, str(options.folder / FUSED))
    right = (found.predicted == found.truth).all(1)
    of_photos = np.array([proportion_of(Path(path).name) for path in found.paths])
    parts = {f'{proportion:.2f}': of_photos == proportion for proportion in PROPORTIONS}
    return [
        dict(
            fit=options.fit,
            seed=options.seed,
            proportions=name,
            num_images=int(part.sum()),
            top1=f'{100 * right[part].mean():.2f}',
        )
        for name, part in {**parts, 'all': of_photos > 0}.items()
    ]


def run_all(photos: Path, val: Path, out: Path, seeds: list[int], **options) -> list[dict]:
    """Run what is not yet in ``out``/rows.csv; all its rows."""
    path = out / 'rows.csv'
    for name, source in (('train', photos), ('val', val)):
        if not (out / 'photos' / name).exists():
            cut(source, out / 'photos' / name)
    for seed in seeds:
        for fit in FITS:
            if (fit, str(seed)) not in {(row['fit'], row['seed']) for row in read_rows(path)}:
                options = dict(options, unfuse='none', seed=seed, work_dir=str(out / f'{fit}_{seed}'))
                chosen = Options(str(out / 'photos'), fit=fit, **options)
                for row in run_fit(chosen):
                    append_row(path, row)
    return read_rows(path)
