"""Progressive learning: image size and augmentation strength grow in stages.

MobileOne, arXiv 2206.04040, section 3.3. Which stage an epoch belongs to is
computed from the epoch, so a resumed run needs no state of its own.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import TRANSFORMS

from ..data.nested import innermost
from ..registry import HOOKS
from .run import end_workers
from .strength import at_size, at_strength, output_size


class Stage(NamedTuple):
    """From ``epoch`` on: image ``size`` (pixels, or a fraction of the pipeline's own) and ``strength`` (0 .. 1)."""

    epoch: int
    size: int | float | None = None
    strength: float | None = None


def read_stages(stages: Sequence[dict], max_epochs: int) -> list[Stage]:
    """The checked stages of a run of ``max_epochs`` epochs, in order.

    Args:
        stages: dicts with ``epoch`` (counted from 0; a float is a fraction of
            ``max_epochs``) and, the same ones in every stage, ``size`` (int:
            pixels, float: a fraction of the pipeline's own) and ``strength``
            (0 .. 1).

    Where fractions of a very short run fall on one epoch, the last one counts.

    Raises:
        ValueError: for stages that would not do what they say: a number out of range, stages out of order or
            never reached; TypeError for an unknown key or a missing epoch.
    """
    read: list[Stage] = []
    for number, stage in enumerate(stages):
        place = f'curriculum: stage {number} {dict(stage)}'
        epoch, size, strength = Stage(**stage)
        begin = min(round(epoch * max_epochs), max_epochs - 1) if isinstance(epoch, float) else epoch
        if set(stage) != set(stages[0]) or len(stage) == 1:
            raise ValueError(f'{place}: needs an epoch and the same ones of size and strength as the first')
        if not (size is None or size > 0) or not (strength is None or 0 <= strength <= 1):
            raise ValueError(f'{place}: size must be above 0, strength in 0 .. 1')
        if not 0 <= epoch < (1 if isinstance(epoch, float) else max_epochs):
            raise ValueError(f'{place}: never reached, the run has epochs 0 .. {max_epochs - 1} (fractions 0 .. 1)')
        if read and begin == read[-1].epoch and isinstance(epoch, float):
            read.pop()
        if begin <= read[-1].epoch if read else begin != 0:
            raise ValueError(f'{place}: the first stage begins at epoch 0, another one after that before it')
        read.append(Stage(begin, size, strength))
    return read


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


def pipelines(dataset, config: dict) -> list[tuple[Any, list[dict]]]:
    """Every data set of images inside ``dataset``, with its pipeline's config.

    Args:
        dataset: the built data set, maybe a wrapper of others.
        config: what it was built from.
    """
    return [(built, part['pipeline']) for built, part in zip(innermost(dataset), innermost(config))]


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
        targets = pipelines(loader.dataset, config['dataset'])
        self.built = {
            stage: [
                (dataset, Compose([TRANSFORMS.build(transform) for transform in stage_pipeline(pipeline, stage)]))
                for dataset, pipeline in targets
            ]
            for stage in self.stages
        }
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
    parts = [] if size is None else [f'{size} px']
    return ', '.join(parts if strength is None else [*parts, f'augmentation {strength:g}'])
