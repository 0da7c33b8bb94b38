"""What tools/finetune.py does: a person's photos in; a config, a trained and fused network and a report out.

It writes a config and runs what a hand-written one runs: nothing here is out of reach of the other tools.
"""

import contextlib
import copy
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmpretrain.registry import DATASETS

from .. import cli
from ..checkpoints.load import load_weights
from ..checkpoints.names import License, license_of
from ..data.nested import datasets_of
from ..data.reading import in_batches
from ..deploy import fuse, hub, reparam
from ..deploy.classifier import open_classifier
from ..deploy.runtime import is_run
from ..files import write_text
from ..text import hint, quoted
from . import plot_recipe
from . import train as training
from .finetuning import calibration, page
from .finetuning import config as writing
from .finetuning import photos as reading
from .finetuning import recipe as numbers
from .finetuning import report as reporting
from .finetuning.photos import Photos
from .finetuning.plan import RANDOM, Options, Plan
from .finetuning.scores import Scores, score_photos
from .start import give_branches
from .test import evaluate

CONFIG, OPTIONS, FUSED, RECIPE, HUB = 'config.py', 'options.json', 'fused.pth', 'recipe.png', 'hub'
_OWN = License('they are yours: trained from random numbers')
VAL_FRACTION = 0.2
FORMS = dict(none='fused', norm='norm', branches='branched')  # of :attr:`Plan.form`, by :attr:`Options.unfuse`
_BATCH_OF_PHOTOS = 32  # for the statistics of branches that nobody trains on


def finetune(
    photos: str | Path,
    work_dir: str | Path | None = None,
    *,
    resume: bool = False,
    dry_run: bool = False,
    command: str = 'mobileone_ext.finetune',
    **options: Any,
) -> dict[str, Any]:
    """Train a network on a person's photos, test it, fuse it and report; what it does is said.

    Args:
        photos: a folder with a folder for each class, or with train/ and val/ of these; or a CSV file of file,label.
        work_dir: where all goes; None is work_dirs/finetune_NAME.
        resume: go on with the run in ``work_dir``, if there is one.
        dry_run: write the config and draw the recipe alone.
        command: the line that is being run, for the config's reader.
        options: ``epochs``, ``weights`` and the others of :class:`Options`; ``image_size`` is its ``size``.

    Returns:
        The report, ``right_after`` in percent and others, or an empty one of a dry run.

    Raises:
        OSError, ValueError: for whatever would fail later, before the first step.
        TypeError: for another keyword.
    """
    if 'image_size' in options:  # as other functions and the tool have it
        options['size'] = options.pop('image_size')
    known = {field.name for field in dataclasses.fields(Options)}
    for name in options.keys() - known:
        raise TypeError(f'finetune takes no {name!r}{hint(name, known)}')
    asked = Options(str(photos), work_dir=None if work_dir is None else str(work_dir), **options)
    resume = resume and (asked.folder / OPTIONS).exists()
    if resume:
        check_resumed(asked, {name: getattr(asked, name) for name in ('photos', *options)})
    else:
        plan = make_plan(asked, command)
        print(*plan.photos.notes, summary(plan), sep='\n')
        print(f'config: {write_plan(plan)}')
    if dry_run:
        print(f'recipe: {draw_recipe(asked.folder)}')
        return {}
    report = run(asked.folder, resume)
    print(result(report))
    return report


def make_plan(options: Options, command: str = 'tools/finetune.py') -> Plan:
    """Check ``options``, the photos and the weights, and choose what follows from them.

    Args:
        command: the line that is being run, for the config's reader.

    Raises:
        OSError, ValueError: for whatever would fail later; nothing is written.
    """
    check_folder(options)
    arch, weights, form = choose_weights(options)
    photos = choose_photos(options)
    if options.others and len(photos.val.photos) < calibration.MIN_PHOTOS:
        few = f'--others: fewer than {calibration.MIN_PHOTOS} validation photos (here {len(photos.val.photos)}) set no '
        few += 'threshold, so none of these photos will be refused; --val sets more aside'
        photos = replace(photos, notes=(*photos.notes, few))
    counts = Counter(label for photo in photos.train.photos for label in photo.labels)
    threshold = max(counts.values()) / len(photos.train.photos) if options.balance else None
    shown = len(photos.train.photos)
    if threshold:
        shown = numbers.balanced_count([counts[name] for name in photos.classes], threshold)
    batch_size = options.batch_size or numbers.fitting_batch_size(shown)
    if form == 'fused':
        options = replace(options, unfuse=options.unfuse or numbers.fitting_unfuse(batch_size))
        form = FORMS[options.unfuse]
    lr = options.lr or numbers.scaled_lr(numbers.LR_FROM_SCRATCH if weights == RANDOM else numbers.LR[form], batch_size)
    recipe = numbers.make_recipe(shown, options.epochs, batch_size, lr)
    options = replace(options, arch=arch, weights=weights, batch_size=batch_size, lr=lr)
    threshold = threshold and float(f'{threshold:.3g}')
    return Plan(photos, recipe, options, form, threshold, fitting_workers(shown), command)


def check_folder(options: Options) -> None:
    """Raise ValueError if the run's folder holds other things, or lies among the photos."""
    if is_run(options.photos):
        raise ValueError(f"{options.photos}: is a run's folder, not photos")
    folder, photos = options.folder, Path(options.photos).absolute()
    if photos == folder or (photos.is_dir() and photos in folder.parents):
        raise ValueError(f'{folder}: would lie among the photos and be taken for a class; --work-dir names another')
    lists = {f'{name}.{suffix}' for name in ('train', 'val', 'test') for suffix in ('txt', 'json')}
    leftovers = {CONFIG, OPTIONS, RECIPE, *lists}  # those of a dry run may go
    if folder.exists() and not {entry.name for entry in folder.iterdir()} <= leftovers:
        raise ValueError(f'{folder}: is not empty; --resume goes on with the run in it, --work-dir names another')


def choose_weights(options: Options) -> tuple[str, str, str]:
    """The arch, what to start from and the form that this has.

    Raises:
        OSError, ValueError: for weights that cannot be read or are of another arch.
    """
    if options.weights == RANDOM:
        if options.freeze >= 0:
            raise ValueError(f'--freeze {options.freeze} with --weights none: random weights must be trained')
        return options.arch or 's0', RANDOM, 'branched'
    source = options.weights or f'apple/mobileone_{options.arch or "s0"}-fused'
    weights = load_weights(source)
    arch = weights.structure.variant
    if arch is None or options.arch not in (None, arch):
        raise ValueError(
            f'{source}: holds {weights.structure}, --arch asks for {options.arch or "a published variant"}; '
            'leave --arch out, or name other weights'
        )
    path = Path(source)
    return arch, str(path.absolute()) if path.is_file() else source, weights.form


def choose_photos(options: Options) -> Photos:
    """The photos, checked, and split where they are not.

    Raises:
        OSError, ValueError: see :mod:`mobileone_ext.engine.finetuning.photos`.
    """
    fraction, place = read_val(options.val)
    photos = reading.without_unwritable(reading.read_photos(Path(options.photos), place))
    if photos.val and options.val and place is None:
        raise ValueError(f'--val {options.val}: {options.photos} has photos to measure on already; leave --val out')
    photos, digests = reading.without_unreadable(photos, options.size, options.fit == 'pad')
    if options.others:
        photos = reading.with_others(photos, Path(options.others), digests)
    photos = reading.without_contradictions(photos, digests)
    if photos.val:
        return reading.without_repeats(photos, digests)
    return reading.split(photos, fraction, options.seed, digests)


def read_val(val: str | None) -> tuple[float, Path | None]:
    """``--val`` as a fraction and a place, of which the other is for nothing.

    Raises:
        ValueError: for a fraction outside 0 .. 1.
    """
    if val is None:
        return VAL_FRACTION, None
    try:
        fraction = float(val)
    except ValueError:
        return VAL_FRACTION, Path(val)
    if not 0 < fraction < 1:
        raise ValueError(f'--val {val}: a fraction lies between 0 and 1; a folder is named by its path')
    return fraction, None


def fitting_workers(num_photos: int) -> int:
    """Processes that load photos: those of one batch or two need none."""
    return 0 if num_photos < 100 else min(4, os.cpu_count() or 1)


def write_plan(plan: Plan) -> Path:
    """Write config, lists of photos and options into the run's folder; the config's path."""
    folder = plan.options.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in writing.annotation_files(plan.photos).items():
        write_text(text, folder / name)
    strangers = [photo.path for photo in plan.photos.others.photos] if plan.photos.others else []
    started = dict(as_started(plan), notes=plan.photos.notes, folder=os.path.realpath(folder), strangers=strangers)
    write_text(json.dumps(started, indent=2) + '\n', folder / OPTIONS)
    path = folder / CONFIG
    write_text(writing.config_text(plan), path)
    return path


def draw_recipe(folder: Path) -> Path:
    """Draw what the run in ``folder`` will do."""
    preview = plot_recipe.preview(cli.load_config(str(folder / CONFIG)))
    print('\n'.join(plot_recipe.summary(preview)))
    plot_recipe.draw(preview, str(folder / CONFIG), folder / RECIPE)
    return folder / RECIPE


def as_started(plan: Plan) -> dict:
    """The options, each with the value that it came to, given or not."""
    photos = plan.photos
    val = plan.options.val or (VAL_FRACTION if photos.val.root == photos.train.root else str(photos.val.root))
    return {name: resolved(name, value) for name, value in dataclasses.asdict(replace(plan.options, val=val)).items()}


def resolved(name: str, value):
    """What the option ``name`` stands for, in whatever words: a file or folder by its real path, a fraction as such."""
    if name == 'val':
        with contextlib.suppress(ValueError):
            return float(value)
    is_path = (name in ('photos', 'val', 'others') and value) or (name == 'weights' and os.path.isfile(value))
    return os.path.realpath(value) if is_path else value


def check_resumed(options: Options, given: dict) -> None:
    """Raise ValueError if one of the options ``given`` means something else than the run in the folder started with.

    A path means the same where it was, or where it lies from a folder that has moved.
    """
    before = json.loads((options.folder / OPTIONS).read_text(encoding='utf-8'))
    for name, value in given.items():
        was = before.get(name, getattr(Options, name, None))
        meant = [resolved(name, one) for one in (was, moved(was, before, options.folder))]
        if name != 'work_dir' and resolved(name, value) not in meant:
            flag = name.replace('_', '-')
            raise ValueError(
                f'{options.folder}: was started with {flag} {was}, not {resolved(name, value)}; '
                f'leave it out to go on, or start anew with --work-dir'
            )


def moved(value, before: dict, folder: Path):
    """``value``, if it is a path, as it lies from a run's ``folder`` today; its options ``before`` name the old."""
    if not isinstance(value, str) or not os.path.isabs(value) or 'folder' not in before:
        return value
    return os.path.normpath(folder / os.path.relpath(value, before['folder']))


def find_strangers(folder: Path, started: dict) -> tuple[list[Path], list[str]]:
    """Photos of none of the classes, where they were or, if their place is gone, where it lies from the run's folder.

    Returns:
        The photos, and a note if some are gone.

    Raises:
        ValueError: if all of them are.
    """
    root = started.get('others')
    if not root:
        return [], []
    if not os.path.exists(root):
        root = moved(root, started, folder)
    paths = [str(Path(root, path)) for path in started['strangers']]
    there, notes = leave_out(paths, 'others')
    return [Path(paths[index]) for index in there], notes


def run(folder: Path, resume: bool = False) -> dict:
    """Train, test, fuse and report by the config in ``folder``; the report.

    Args:
        resume: go on from the newest checkpoint, if there is one.
    """
    path, fused = str(folder / CONFIG), str(folder / FUSED)
    started = json.loads((folder / OPTIONS).read_text(encoding='utf-8'))
    find_strangers(folder, started)  # before anything is written
    checkpoint = _train(path, resume)
    config = _for_testing(path)
    strangers, gone = find_strangers(folder, started)
    gone += leave_out_missing(config)
    metrics = evaluate(copy.deepcopy(config), load_weights(checkpoint))
    before = score_photos(config, checkpoint)
    deployed = reparam.convert(
        config,
        checkpoint,
        fused,
        evaluate=not before.multi_label,
        max_flips=len(before.paths) // 100,
        accept_fused=True,
    )
    after, calibrated = calibrate(config, fused, started.get('precision', Options.precision), strangers)
    terms = license_of(started['weights']) if started['weights'] != RANDOM else _OWN
    notes = [*started['notes'], *gone, *write_hub(folder, config, checkpoint, after, terms)]
    looks = page.look_at_photos(config, fused)
    report = reporting.make_report(config, folder, checkpoint, deployed, metrics, before, after, looks, notes)
    report.update(license=terms.text, calibration=calibrated)
    reporting.write_report(report, after, folder)
    page.write_html(report, after, looks, folder)
    return report


def leave_out_missing(config: Config) -> list[str]:
    """Take photos that are gone out of the data sets of ``config``; notes on them.

    Raises:
        ValueError: if a data set has none left.
    """
    notes = []
    for dataset, option in datasets_of(config, 'train_dataloader', 'val_dataloader', 'test_dataloader'):
        built = DATASETS.build(dict(dataset, pipeline=[]))
        paths = [built.get_data_info(index)['img_path'] for index in range(len(built))]
        there, said = leave_out(paths, option)
        if said:
            dataset.indices = there
            notes += said
    return [*dict.fromkeys(notes)]


def leave_out(paths: Sequence[str], option: str) -> tuple[list[int], list[str]]:
    """Indices of the ``paths`` that are there, and a note on the others if there are such.

    Raises:
        ValueError: naming ``option``, if all are gone.
    """
    there = [index for index, path in enumerate(paths) if os.path.isfile(path)]
    missing = [paths[index] for index in sorted({*range(len(paths))} - {*there})]
    if not missing:
        return there, []
    said = f'{len(missing)} photos that were there at the start are gone: {quoted(missing, 3)}'
    if not there:
        raise ValueError(f'{option}: {said}; put them back, and --resume writes the report')
    return there, [said]


def calibrate(config: Config, fused: str, precision: float, strangers: list[Path]) -> tuple[Scores, dict]:
    """Let the checkpoint ``fused`` say its temperature and threshold; its scores, and what the report says of them."""
    measured = score_photos(config, fused)
    same = config.val_dataloader == config.test_dataloader
    validated = measured if same else score_photos(config, fused, 'val_dataloader')
    others = np.empty((0, len(measured.classes)))
    if strangers:
        network = open_classifier(fused, config)
        read = network.preprocessing.read(strangers, [])
        others = np.concatenate([network.outputs(pixels) for _, pixels in in_batches(read, 32)])
    found = calibration.calibrate(
        validated.logits, validated.truth, measured.classes, measured.multi_label, precision, others
    )
    fuse.add_to_meta(fused, **found.said)
    scores = calibration.scores_of(measured.logits, found.temperature or 1, measured.multi_label)
    report = calibration.report_of(found, precision, measured, len(validated.paths), same, others)
    return replace(measured, scores=scores), report


def write_hub(folder: Path, config: Config, checkpoint: str, scores: Scores, terms: License) -> list[str]:
    """Write the folder for timm and transformers; why there is none, if timm cannot build the network."""
    fused = load_weights(folder / FUSED)
    weights = original = replace(load_weights(checkpoint), said=fused.said)
    right = {f'right of {len(scores.paths)} photos': (scores.truth == scores.predicted).all(1).mean() * 100}
    try:
        if weights.form == 'fused' or not weights.structure.use_skip:  # timm has networks with all branches alone
            config = copy.deepcopy(config)
            for name in writing.NORM_ALONE:
                config.model.backbone.pop(name, None)
            branched, photos = fuse.build_model(config, 'branched'), DATASETS.build(config.train_dataloader.dataset)
            weights, _ = give_branches(config.model, branched, fused, photos, _BATCH_OF_PHOTOS)
        hub.write_folder(folder / HUB, config, weights, original, checkpoint, terms, right)
    except ValueError as error:
        return [f'no folder {HUB} for timm and transformers: {error}']
    return []


def _train(path: str, resume: bool) -> str:
    """Train by the config at ``path``; the checkpoint to deploy: the last, or the best of a run that may stop early."""
    config = cli.load_config(path)
    training.train(config, resume=resume)
    stops_early = any(hook['type'] == 'EarlyStoppingHook' for hook in cli.load_config(path).get('custom_hooks', []))
    best = sorted(Path(config.work_dir).glob('best_*.pth'))
    return str(best[-1] if stops_early and best else training.latest_checkpoint(config.work_dir)[0])


def _for_testing(path: str):
    config = cli.load_config(path)
    config.work_dir = str(Path(config.work_dir, 'test'))
    return config


def summary(plan: Plan) -> str:
    """What will be trained on what, on a line."""
    photos, recipe, options = plan.photos, plan.recipe, plan.options
    measured = ' and '.join(f'{len(part.photos)} {name}' for name, part in photos.lists().items())
    weights = 'random weights' if options.weights == RANDOM else options.weights
    return (
        f'{len(photos.classes)} classes, {measured} photos; MobileOne-{options.arch.upper()} ({plan.form}) from '
        f'{weights}; {recipe.epochs} epochs of {recipe.steps_per_epoch} steps of {recipe.batch_size} at '
        f'{options.size} px, lr {recipe.lr:g}'
    )


def result(report: dict) -> str:
    """What came out, and where it is."""
    folder = Path(report['folder'])
    return (
        f'{report["right_after"]:.1f} % of {report["num_images"]} photos right, fused: {folder / FUSED}\n'
        f'report: {folder / reporting.PAGE}, {folder / reporting.REPORT}'
    )
