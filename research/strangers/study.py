"""How many photos of strange kinds a fine-tuned network refuses: the study behind ``python -m research.strangers``.

Two classes are left out, another pair for each seed. The others are split: 60 % train, 20 % set temperature and
threshold, 20 % measure. Half of the strangers measures; of the other half every tenth photo is what ``--others`` gets
in the second arm. Where no threshold reaches the precision none is set, and nothing is refused.
"""

import os
from pathlib import Path

import numpy as np

from mobileone_ext.data.images import find_images
from mobileone_ext.data.reading import in_batches
from mobileone_ext.deploy.classifier import Classifier, open_classifier
from mobileone_ext.engine import finetune
from mobileone_ext.engine.finetune import FUSED, Options
from mobileone_ext.engine.finetuning import calibration
from mobileone_ext.engine.finetuning.split import stratified_split
from research.training import append_row, read_rows

COLUMNS = (
    'seed', 'left_out', 'others', 'temperature', 'threshold', 'num_test', 'top1', 'answered', 'precision',
    'num_strangers', 'refused', 'low', 'high',
)  # fmt: skip
PARTS = ('train', 'val', 'test')


def pair_of(classes: list[str], seed: int) -> list[str]:
    """The classes that are left out: the first two with seed 0, the next two with seed 1, round and round."""
    start = 2 * seed % len(classes)
    return [classes[(start + step) % len(classes)] for step in range(2)]


def link(photos: list[Path], folder: Path) -> None:
    """Links to ``photos`` in ``folder``."""
    folder.mkdir(parents=True)
    for photo in photos:
        os.symlink(photo.absolute(), folder / photo.name)


def lay_out(photos: Path, left_out: list[str], seed: int, folder: Path) -> None:
    """``folder`` with links: photos/PART/CLASS, and others/ and strangers/ of those that are left out."""
    for place in sorted(path for path in photos.iterdir() if path.is_dir()):
        found = [place / name for name in sorted(os.listdir(place))]
        if place.name in left_out:
            halves = stratified_split([place.name] * len(found), found, 0.5, seed)
            for name, half in zip(('others', 'strangers'), halves):
                link([found[index] for index in half], folder / name / f'strange {place.name}')
            continue
        rest, test = stratified_split([place.name] * len(found), found, 0.2, seed)
        train, val = stratified_split([place.name] * len(rest), rest, 0.25, seed)
        for name, part in zip(PARTS, ([rest[i] for i in train], [rest[i] for i in val], test)):
            link([found[index] for index in part], folder / 'photos' / name / place.name)


def logits_of(network: Classifier, folder: Path) -> tuple[np.ndarray, list[str]]:
    """Logits (N, classes) of all photos below ``folder``, and the names of the folders that they lie in."""
    batches = list(in_batches(network.preprocessing.read(find_images(folder), None), 32))
    outputs = np.concatenate([network.outputs(pixels) for _, pixels in batches])
    return outputs, [file.parent.name for files, _ in batches for file in files]


def interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval (Wilson) of a ``share`` of ``count``."""
    z = 1.96
    center, scale = share + z**2 / (2 * count), 1 + z**2 / count
    half = z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return (center - half) / scale, (center + half) / scale


def run_seed(photos: Path, out: Path, seed: int, precision: float, **options) -> list[dict]:
    """Train without the pair of ``seed``; a row with ``COLUMNS`` for each arm."""
    left_out = pair_of(sorted(path.name for path in photos.iterdir() if path.is_dir()), seed)
    folder = out / f'seed_{seed}'
    if not folder.exists():
        lay_out(photos, left_out, seed, folder)
    options = dict(unfuse='none', seed=seed, work_dir=str(folder / 'run'), precision=precision, **options)
    chosen = Options(str(folder / 'photos'), **options)
    if not (chosen.folder / finetune.CONFIG).exists():
        finetune.write_plan(finetune.make_plan(chosen))
    finetune.run(chosen.folder, resume=True)
    network = open_classifier(str(chosen.folder / FUSED))
    classes = list(network.classes or ())
    known = {}
    for part in ('val', 'test'):
        logits, names = logits_of(network, folder / 'photos' / part)
        known[part] = logits, np.array([[name == one for one in classes] for name in names])
    others, strangers = (logits_of(network, folder / name)[0] for name in ('others', 'strangers'))
    rows = []
    for arm, given in (('no', others[:0]), ('yes', others[::10])):
        found = calibration.calibrate(*known['val'], classes, False, precision, given)
        least = found.threshold or 0.0
        temperature = found.temperature or 1.0
        scores, right = calibration.answers(
            calibration.scores_of(known['test'][0], temperature, False), known['test'][1], False
        )
        refused = float((calibration.scores_of(strangers, temperature, False).max(1) < least).mean())
        low, high = interval(refused, len(strangers))
        row = dict(seed=seed, left_out=' and '.join(left_out), others=arm, temperature=temperature, threshold=least)
        row |= dict(num_test=len(scores), top1=right.mean(), answered=(scores >= least).mean())
        row |= dict(precision=right[scores >= least].mean(), num_strangers=len(strangers), refused=refused)
        row |= dict(low=low, high=high)
        rows.append({name: f'{value:.4f}' if isinstance(value, float) else value for name, value in row.items()})
    return rows


def run_all(photos: Path, out: Path, seeds: list[int], precision: float, **options) -> list[dict]:
    """Run what is not yet in ``out``/rows.csv; all its rows."""
    path = out / 'rows.csv'
    for seed in seeds:
        if str(seed) not in {row['seed'] for row in read_rows(path)}:
            for row in run_seed(photos, out, seed, precision, **options):
                append_row(path, row)
    return read_rows(path)
