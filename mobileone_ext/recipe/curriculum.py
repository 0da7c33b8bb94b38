"""Progressive learning: image size and augmentation strength grow in stages.

MobileOne, arXiv 2206.04040, section 3.3. Which stage an epoch belongs to is
computed from the epoch, so a resumed run needs no state of its own.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import TRANSFORMS

from ..registry import HOOKS
from .strength import at_size, at_strength, output_size
from .workers import end_workers

_STAGE_KEYS = ('epoch', 'size', 'strength')


class Stage(NamedTuple):
    """From ``epoch`` on: image ``size`` (pixels, or a fraction of the pipeline's own) and ``strength`` (0 .. 1)."""

    epoch: int
    size: int | float | None
    strength: float | None


def read_stages(stages: Sequence[dict], max_epochs: int) -> list[Stage]:
    """The checked stages of a run of ``max_epochs`` epochs, in order.

    Args:
        stages: dicts with ``epoch`` (counted from 0; a float is a fraction of
            ``max_epochs``) and, the same ones in every stage, ``size`` (int:
            pixels, float: a fraction of the pipeline's own) and ``strength``
            (0 .. 1).

    Where fractions of a very short run fall on one epoch, the last one counts.

    Raises:
        ValueError: for an unknown or missing key, a number out of range,
            stages out of order, a stage never reached, or one that changes nothing.
    """
    if not stages:
        raise ValueError('curriculum: stages is empty')
    read = []
    for number, stage in enumerate(stages):
        where = f'curriculum: stage {number} {dict(stage)}'
        unknown = [key for key in stage if key not in _STAGE_KEYS]
        if unknown:
            raise ValueError(f'{where}: unknown key {unknown[0]!r}; known are {", ".join(_STAGE_KEYS)}')
        if 'epoch' not in stage or len(stage) == 1:
            raise ValueError(f'{where}: needs epoch and size or strength')
        if set(stage) != set(stages[0]):
            raise ValueError(f'{where}: every stage must have the same keys, the first has {", ".join(stages[0])}')
        stage = Stage(_epoch(stage['epoch'], max_epochs, where), stage.get('size'), stage.get('strength'))
        if stage.size is not None and (isinstance(stage.size, bool) or stage.size <= 0):
            raise ValueError(f'{where}: size must be pixels (int) or a fraction (float) above 0')
        if stage.strength is not None and not 0 <= stage.strength <= 1:
            raise ValueError(f'{where}: strength must lie in 0 .. 1')
        if number == 0 and stage.epoch != 0:
            raise ValueError(f'{where}: the first stage must begin at epoch 0')
        if read and stage[1:] == read[-1][1:]:
            raise ValueError(f'{where}: changes nothing')
        if read and stage.epoch == read[-1].epoch and isinstance(stages[number]['epoch'], float):
            read.pop()
        elif read and stage.epoch <= read[-1].epoch:
            raise ValueError(f'{where}: must begin after epoch {read[-1].epoch}, where the stage before it begins')
        read.append(stage)
    return read


def _epoch(epoch: int | float, max_epochs: int, where: str) -> int:
    if isinstance(epoch, float):
        if not 0 <= epoch < 1:
            raise ValueError(f'{where}: a fractional epoch must lie in 0 .. 1')
        return min(round(epoch * max_epochs), max_epochs - 1)
    if not 0 <= epoch < max_epochs:
        raise ValueError(f'{where}: never reached, the run has epochs 0 .. {max_epochs - 1}')
    return epoch


def stage_at(epoch: int, stages: Sequence[Stage]) -> Stage:
    """The stage that ``epoch`` (from 0) belongs to."""
    return [stage for stage in stages if stage.epoch <= epoch][-1]


def stage_pipeline(pipeline: list[dict], stage: Stage) -> list[dict]:
    """The pipeline config of ``stage``.

    Raises:
        ValueError: if the pipeline has nothing to resize or no augmentation to scale.
    """
    if stage.size is not None:
        pipeline = at_size(pipeline, stage.size)
    if stage.strength is not None:
        pipeline = at_strength(pipeline, stage.strength)
    return pipeline


def pipelines(dataset, config: dict) -> Iterator[tuple[object, list[dict]]]:
    """Every data set with a pipeline inside ``dataset``, with that pipeline's config.

    Args:
        dataset: the built data set, maybe a wrapper of others.
        config: what it was built from.
    """
    if hasattr(dataset, '_dataset'):  # mmengine's num_batch_per_epoch
        yield from pipelines(dataset._dataset, config)
    elif hasattr(dataset, 'datasets'):
        for child, child_config in zip(dataset.datasets, config['datasets']):
            yield from pipelines(child, child_config)
    elif hasattr(dataset, 'dataset'):
        yield from pipelines(dataset.dataset, config['dataset'])
    elif 'pipeline' in config:
        yield dataset, config['pipeline']
    else:
        raise ValueError(f'curriculum: the config of {type(dataset).__name__} has no pipeline')


@HOOKS.register_module()
class CurriculumHook(Hook):
    """Train each epoch with the image size and augmentation strength of its stage.

    Every stage is built and checked before training. TensorBoard gets
    ``image_size`` and ``augment_strength``.

    Args:
        stages: see :func:`read_stages`.
    """

    priority = 'HIGH'

    def __init__(self, stages: Sequence[dict]):
        self.stage_dicts = stages

    def before_train(self, runner) -> None:
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError('curriculum: needs training by epochs, train_cfg=dict(by_epoch=True, ...)')
        self.stages = read_stages(self.stage_dicts, runner.max_epochs)
        loader, config = runner.train_dataloader, runner.cfg.get('train_dataloader')
        if not config:  # a loader made by hand, as mmpretrain's vis_scheduler does
            self.sizes, self.built = {}, {stage: [] for stage in self.stages}
            print_log('curriculum: no config of a loader, so images stay as they are', 'current', logging.WARNING)
            return
        targets = list(pipelines(loader.dataset, config['dataset']))
        self.built, previous = {}, None
        for stage in self.stages:
            configs = [stage_pipeline(pipeline, stage) for _, pipeline in targets]
            if configs == previous:
                raise ValueError(f'curriculum: the stage from epoch {stage.epoch} on changes nothing')
            self.built[stage] = [
                (dataset, Compose([TRANSFORMS.build(transform) for transform in config]))
                for (dataset, _), config in zip(targets, configs)
            ]
            previous = configs
        self.sizes = {
            stage: output_size(stage_pipeline(targets[0][1], stage)) for stage in self.stages if stage.size is not None
        }

    def before_train_epoch(self, runner) -> None:
        stage = stage_at(runner.epoch, self.stages)
        changed = [(dataset, pipeline) for dataset, pipeline in self.built[stage] if dataset.pipeline is not pipeline]
        if changed:
            for dataset, pipeline in changed:
                dataset.pipeline = pipeline
            end_workers(runner.train_dataloader)  # those keep the pipeline that they were started with
            name = stage_label(self.sizes.get(stage), stage.strength)
            runner.logger.info(f'curriculum: epoch {runner.epoch} (from 0) trains at {name}')
        if stage in self.sizes:
            runner.message_hub.update_scalar('train/image_size', self.sizes[stage])
        if stage.strength is not None:
            runner.message_hub.update_scalar('train/augment_strength', float(stage.strength))


def stage_label(size: int | None, strength: float | None) -> str:
    """``160 px, augmentation 0.3``, for console and plots; ``size`` in pixels."""
    parts = []
    if size is not None:
        parts.append(f'{size} px')
    if strength is not None:
        parts.append(f'augmentation {strength:g}')
    return ', '.join(parts)
