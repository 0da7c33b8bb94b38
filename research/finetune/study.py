"""What fine-tuning by the defaults is worth on photos: the study behind ``python -m research.finetune``.

One split, several training seeds. Arms, all by ``mobileone_ext.engine.finetune``:

    default        from fused ImageNet weights, with a batch norm in each block
    fused          the fused network itself
    frozen stages  the same, stem and stages 1 .. 3 as they are
    from scratch   random weights, with branches, for about the same time

and, without training a network, a logistic regression on the features of the ImageNet weights.
"""

import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mmengine.runner import Runner

from mobileone_ext import cli
from mobileone_ext.checkpoints.layouts import BACKBONE
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.engine import finetune
from mobileone_ext.engine.finetune import CONFIG, Options
from mobileone_ext.engine.finetuning.photos import PhotoList
from mobileone_ext.engine.finetuning.recipe import make_recipe
from mobileone_ext.engine.finetuning.split import stratified_split
from mobileone_ext.text import markdown_table
from research.training import append_row, read_rows

ARMS = {
    'default': dict(),
    'fused': dict(unfuse='none'),
    'frozen stages': dict(unfuse='none', freeze=3),
    'from scratch': dict(weights='none', epochs=0.3),  # of the epochs: a step with branches takes longer
}
REGRESSION = 'logistic regression'
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of the regression's regularization (C), chosen inside the training part


def make_plan(options: Options, test_photos: Path | None) -> finetune.Plan:
    """The tool's plan; where there is a list of ``test_photos`` (a path a line), these are measured on."""
    plan = finetune.make_plan(options)
    if test_photos is None:
        return plan
    root, listed = plan.photos.train.root, set(test_photos.read_text(encoding='utf-8').splitlines())
    result = sorted(plan.photos.train.photos + plan.photos.val.photos)
    train = [photo for photo in result if photo.path not in listed]
    val = [photo for photo in result if photo.path in listed]
    photos = replace(plan.photos, train=PhotoList(root, train), val=PhotoList(root, val))
    recipe = make_recipe(len(train), options.epochs, plan.recipe.batch_size, plan.recipe.lr)
    return replace(plan, photos=photos, recipe=recipe)


def run_arm(options: Options, arm: str, seed: int, out: Path, test_photos: Path | None) -> dict:
    """One run of ``arm``, as a row; the photos are those of ``options.seed``, ``seed`` the training's."""
    changed = dict(ARMS[arm], work_dir=str(out / f'{arm.replace(" ", "_")}_{seed}'))
    if 'epochs' in changed:
        changed['epochs'] = max(1, round(changed['epochs'] * options.epochs))
    options = replace(options, **changed)
    plan = make_plan(options, test_photos)
    finetune.write_plan(replace(plan, options=replace(plan.options, seed=seed), workers=0))
    wall, cpu = time.perf_counter(), time.process_time()
    report = finetune.run(options.folder)
    return dict(
        arm=arm,
        seed=seed,
        top1=f'{report["right_after"]:.2f}',
        num_images=report['num_images'],
        minutes=f'{(time.perf_counter() - wall) / 60:.1f}',
        cpu_minutes=f'{(time.process_time() - cpu) / 60:.1f}',
    )


def try_lr(options: Options, lr: float, out: Path, test_photos: Path | None) -> dict:
    """One run of the fused network at ``lr`` inside the training part, a fifth of which measures; as a row."""
    options = replace(options, unfuse='none', lr=lr, work_dir=str(out / f'lr_{lr:g}'))
    plan = make_plan(options, test_photos)
    result = plan.photos.train
    classes = [photo.labels[0] for photo in result.photos]
    parts = stratified_split(classes, range(len(classes)), finetune.VAL_FRACTION, options.seed)
    train, val = (PhotoList(result.root, [result.photos[index] for index in part]) for part in parts)
    recipe = make_recipe(len(train.photos), options.epochs, plan.recipe.batch_size, lr)
    photos = replace(plan.photos, train=train, val=val)
    finetune.write_plan(replace(plan, photos=photos, recipe=recipe))
    report = finetune.run(options.folder)
    return dict(lr=f'{lr:g}', top1=f'{report["right_after"]:.2f}', num_images=report['num_images'])


def choose_lr(options: Options, lrs: Iterable[float], out: Path, test_photos: Path | None) -> None:
    """Try those of ``lrs`` that are not yet in ``out``/choice_of_lr.csv, a row each."""
    rows = out / 'choice_of_lr.csv'
    for lr in lrs:
        if f'{lr:g}' not in [row['lr'] for row in read_rows(rows)]:
            append_row(rows, try_lr(options, lr, out, test_photos))


def regress(options: Options, out: Path, test_photos: Path | None) -> dict:
    """Top-1 of a logistic regression on the pooled features of the weights; its strength by cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    options = replace(options, work_dir=str(out / 'regression'))
    finetune.write_plan(make_plan(options, test_photos))
    config = cli.load_config(str(options.folder / CONFIG))
    wall, cpu = time.perf_counter(), time.process_time()
    train, train_labels = features(config, config.train_dataloader.dataset.ann_file)
    test, test_labels = features(config, config.test_dataloader.dataset.ann_file)
    model = LogisticRegressionCV(Cs=STRENGTHS, cv=5, max_iter=2000, use_legacy_attributes=False)
    fitted = make_pipeline(StandardScaler(), model).fit(train, train_labels)
    return dict(
        arm=REGRESSION,
        seed=0,
        top1=f'{100 * fitted.score(test, test_labels):.2f}',
        num_images=len(test),
        minutes=f'{(time.perf_counter() - wall) / 60:.1f}',
        cpu_minutes=f'{(time.process_time() - cpu) / 60:.1f}',
    )


@torch.no_grad()
def features(config, ann_file: str) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features (N, C) of the config's ``load_from`` and labels (N,) of the photos in ``ann_file``, as tested."""
    from mobileone_ext.deploy.fuse import build_model

    weights = load_weights(config.load_from)
    model = build_model(config, weights.form)
    state = {key[len(BACKBONE) :]: value for key, value in weights.state.items() if key.startswith(BACKBONE)}
    model.backbone.load_state_dict(state)
    loader = dict(config.test_dataloader, dataset=dict(config.test_dataloader.dataset, ann_file=ann_file))
    result, labels = [], []
    for batch in Runner.build_dataloader(loader):
        batch = model.data_preprocessor(batch)
        result.append(model.neck(model.backbone(batch['inputs']))[-1])
        labels += [int(sample.gt_label) for sample in batch['data_samples']]
    return torch.cat(result).numpy(), np.array(labels)


def run_all(
    options: Options, out: Path, arms: Iterable[str], seeds: Iterable[int], test_photos: Path | None = None
) -> None:
    """Run what is not yet in ``out``/runs.csv, a row each."""
    runs = out / 'runs.csv'
    for arm in arms:
        for seed in [0] if arm == REGRESSION else seeds:
            if (arm, str(seed)) not in {(row['arm'], row['seed']) for row in read_rows(runs)}:
                if arm == REGRESSION:
                    append_row(runs, regress(options, out, test_photos))
                else:
                    append_row(runs, run_arm(options, arm, seed, out, test_photos))


def table(rows: list[dict]) -> str:
    """Markdown: a line an arm, mean and standard deviation over the seeds."""
    lines = []
    for arm in (*ARMS, REGRESSION):
        mine = sorted((row for row in rows if row['arm'] == arm), key=lambda row: int(row['seed']))
        if not mine:
            continue
        values = [float(row['top1']) for row in mine]
        std = f'{statistics.stdev(values):.2f}' if len(values) > 1 else '-'
        each = ', '.join(f'{value:.1f}' for value in values)
        minutes = statistics.mean(float(row['cpu_minutes']) for row in mine)
        lines.append((arm, len(values), f'{statistics.mean(values):.2f}', std, each, f'{minutes:.1f}'))
    return markdown_table(('', 'n', 'top-1 mean', 'std', 'each seed', 'CPU minutes a run'), lines)
