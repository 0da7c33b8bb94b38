"""What a run will do, read from the objects that a config builds, without training a step."""

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.hooks import EMAHook, ParamSchedulerHook

from ..config import building
from ..data.check import prepare_data
from ..data.images import spread
from ..pictures import in_picture, picture
from ..recipe.curriculum import CurriculumHook, Stage, pipelines, stage_at, stage_label
from ..recipe.schedule import ema_decay, named_groups
from ..recipe.seeding import seed_generators
from ..recipe.strength import output_size
from .dry_run import BATCHES, DryRunner, build_training

_MOST_STEPS = 200_000  # a longer run is not followed step by step


class Epoch(NamedTuple):
    """An epoch's start: EMA decay, image size in pixels, strength."""

    ema: float | None
    size: int | None
    strength: float | None


class Span(NamedTuple):
    """Epochs ``first`` .. ``last`` (from 0) with one pipeline, and images from it (H, W, 3), uint8, RGB."""

    first: int
    last: int
    name: str
    images: list[np.ndarray]

    @property
    def epochs(self) -> str:
        return f'epochs {self.first}-{self.last}' if self.last > self.first else f'epoch {self.first}'


class Preview(NamedTuple):
    """The epochs and stages of a run; ``stand_in`` says what data was missing, or is empty.

    ``steps`` an epoch; ``lr`` and ``weight_decay`` (by group) have a value for each.
    """

    epochs: list[Epoch]
    stages: list[Span]
    stand_in: str
    steps: int
    lr: list[float]
    weight_decay: dict[str, list[float]]


def preview(config: Config, images: int = 8) -> Preview:
    """Build the run of ``config`` and walk through its epochs.

    Where the training images are missing, a photograph that comes with
    matplotlib stands in.

    Args:
        images: how many training images to augment for each stage, the same ones.
    """
    config = copy.deepcopy(config)
    config.visualizer = None
    if config.setdefault('randomness', {}).get('seed') is None:
        config.randomness.seed = 0
    stand_in = _missing_data(config)
    with tempfile.TemporaryDirectory() as work_dir, building(config.filename or 'the config'):
        runner = build_training(config, work_dir, data=not stand_in)
        if len(runner.train_dataloader) * runner.max_epochs > _MOST_STEPS:
            config.train_dataloader.num_batch_per_epoch = BATCHES
            runner = build_training(config, work_dir, data=not stand_in)
        runner.optim_wrapper.step()  # changes nothing without gradients; schedulers warn if none came first
        return _walk(runner, config, images)._replace(stand_in=stand_in)


def _walk(runner: DryRunner, config: Config, images: int) -> Preview:
    """What the hooks and schedulers of ``runner`` do from epoch to epoch; arguments as of :func:`preview`."""
    curriculum, ema, scheduler = (
        next((hook for hook in runner.hooks if isinstance(hook, kind)), None)
        for kind in (CurriculumHook, EMAHook, ParamSchedulerHook)
    )
    if curriculum:
        curriculum.before_train(runner)
    if ema:
        ema.before_run(runner)
    loader, steps = runner.train_dataloader, len(runner.train_dataloader)
    dataset, pipeline = pipelines(loader.dataset, config.train_dataloader.dataset)[0]
    stages, sizes = (curriculum.stages, curriculum.sizes) if curriculum else ([Stage(0)], {})
    groups = named_groups(runner.model, runner.optim_wrapper.param_groups)
    epochs, spans, lr, weight_decay = [], [], [], {name: [] for name in groups}
    for epoch in range(runner.max_epochs):
        runner.train_loop._epoch = epoch
        stage = stage_at(epoch, stages)
        size = sizes.get(stage, output_size(pipeline))
        if stage.epoch == epoch:
            if curriculum:
                curriculum.before_train_epoch(runner)
            seed_generators(runner.seed, epoch)
            pictures = [_rgb(dataset[i], runner.model.data_preprocessor) for i in spread(range(len(dataset)), images)]
            spans.append(Span(epoch, epoch, stage_label(size, stage.strength), pictures))
        spans[-1] = spans[-1]._replace(last=epoch)
        decay = ema_decay(ema, epoch, -(-len(dataset) // loader.batch_size)) if ema else None
        epochs.append(Epoch(decay, size, stage.strength))
        for step in range(steps):
            lr.append(runner.optim_wrapper.param_groups[0]['lr'])
            for name, group in groups.items():
                weight_decay[name].append(group['weight_decay'])
            if scheduler:
                scheduler.after_train_iter(runner, step)
        if scheduler:
            scheduler.after_train_epoch(runner)
    return Preview(epochs, spans, '', steps, lr, weight_decay)


def _missing_data(config: Config) -> str:
    """Which training images are not there; empty if they are."""
    try:
        prepare_data(config, 'train_dataloader')
    except (ValueError, OSError) as error:
        return str(error).split(';')[0]
    return ''


def _rgb(sample: dict, preprocessor) -> np.ndarray:
    """A packed sample's image (H, W, 3) in RGB."""
    image = sample['inputs'].numpy().transpose(1, 2, 0)
    return image[..., ::-1] if preprocessor.to_rgb else image


def summary(recipe: Preview) -> list[str]:
    """A line for each stage: its epochs, image size, strength, learning rate and weight decay from first to last.

    Where the highest or lowest value lies between, it stands between.
    """
    lines = []
    for stage in recipe.stages:
        last = recipe.epochs[stage.last]
        begin, end = stage.first * recipe.steps, (stage.last + 1) * recipe.steps - 1
        decay = ', '.join(
            f'{_course(values[begin : end + 1])} of {name.replace("_", " and ")}'
            for name, values in recipe.weight_decay.items()
        )
        lines.append(
            f'{stage.epochs}: {stage.name or "own pipeline"}; lr {_course(recipe.lr[begin : end + 1])}; '
            f'weight decay {decay}; EMA decay {"none" if last.ema is None else f"{last.ema:.4f}"}'
        )
    return lines


def _course(values: Sequence[float]) -> str:
    """The first value, the extreme ones between in their order, the last; once where all are alike."""
    first, last = values[0], values[-1]
    between = sorted({values.index(value) for value in (min(values), max(values)) if value not in (first, last)})
    shown = [f'{value:.3g}' for value in (first, *(values[index] for index in between), last)]
    return ' -> '.join(value for value, before in zip(shown, ['', *shown]) if value != before)


def draw(recipe: Preview, title: str, path: Path) -> None:
    """Curves over the epochs above, a row of augmented images for each stage below; a file at ``path``.

    Raises:
        ValueError: for a suffix of a format that matplotlib does not write.
    """
    curves = {
        'learning rate': {'': recipe.lr},
        'weight decay': recipe.weight_decay,
        'EMA decay': {'': [epoch.ema for epoch in recipe.epochs]},
        'image size in px': {'': [epoch.size for epoch in recipe.epochs]},
        'augmentation strength': {'': [epoch.strength for epoch in recipe.epochs]},
    }
    curves = {name: lines for name, lines in curves.items() if None not in next(iter(lines.values()))}
    columns = len(recipe.stages[0].images)
    title, groups = in_picture(title), [in_picture(name) for name in recipe.weight_decay]
    with picture(path, (13, 3.2 + 1.8 * len(recipe.stages)), [title, *groups]) as figure:
        above, below = figure.subfigures(2, 1, height_ratios=[3.2, 1.8 * len(recipe.stages)])
        for axis, (name, lines) in zip(above.subplots(1, len(curves), squeeze=False)[0], curves.items()):
            handles = []
            for values in lines.values():
                if len(values) > len(recipe.epochs):
                    handles += axis.plot(np.arange(len(values)) / recipe.steps, values)
                else:
                    handles.append(axis.stairs(values, baseline=None))
            axis.set(title=name, xlabel='epoch')
            axis.grid(alpha=0.3)
            if len(lines) > 1:
                axis.legend(handles, groups)
            elif min(values) == max(values):
                axis.set(ylim=(0.999 * values[0], 1.001 * values[0]), yticks=values[:1], yticklabels=[f'{values[0]:g}'])
        largest = max(image.shape[0] for stage in recipe.stages for image in stage.images)
        cells = below.subplots(len(recipe.stages), columns, squeeze=False)
        for row, stage in zip(cells, recipe.stages):
            row[0].set_title(f'{stage.epochs}: {stage.name}', loc='left', fontsize=10)
            for cell, image in zip(row, stage.images):
                cell.imshow(image)
                cell.set(xlim=(0, largest), ylim=(largest, 0))
                cell.axis('off')
        figure.suptitle(title)
