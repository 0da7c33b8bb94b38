"""Stages as pure functions, and the sizes of real batches from a real loader."""

import math

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, data_options
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import TRANSFORMS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mobileone_ext import cli
from mobileone_ext.engine import train as training
from mobileone_ext.recipe.checkpointing import PlainCheckpointHook
from mobileone_ext.recipe.curriculum import CurriculumHook, read_stages, stage_at
from mobileone_ext.recipe.run import end_workers
from mobileone_ext.recipe.strength import at_size, at_strength, output_size

PAPER = [dict(epoch=0, size=160), dict(epoch=37, size=192), dict(epoch=112, size=224)]
FRACTIONS = [dict(epoch=0.0, size=160), dict(epoch=37 / 300, size=192), dict(epoch=112 / 300, size=224)]


@pytest.mark.parametrize('stages', [PAPER, FRACTIONS])
@pytest.mark.parametrize('epoch, size', [(0, 160), (36, 160), (37, 192), (111, 192), (112, 224), (299, 224)])
def test_stage_at(stages, epoch, size):
    assert stage_at(epoch, read_stages(stages, 300)).size == size


@pytest.mark.parametrize('max_epochs, begins', [(300, [0, 37, 112]), (30, [0, 4, 11]), (3, [0, 1]), (1, [0])])
def test_fractions_keep_the_shape_of_a_short_run(max_epochs, begins):
    stages = read_stages(FRACTIONS, max_epochs)
    assert [stage.epoch for stage in stages] == begins
    assert stages[-1].size == 224


def test_a_late_fraction_is_reached_in_a_short_run():
    stages = read_stages([dict(epoch=0.0, size=160), dict(epoch=0.9, size=224)], 2)
    assert [stage.epoch for stage in stages] == [0, 1]


@pytest.mark.parametrize(
    'stages, message',
    [
        ([dict(epoch=0)], 'needs an epoch'),
        ([dict(epoch=1, size=160)], 'begins at epoch 0'),
        ([dict(epoch=0, size=0)], 'above 0'),
        ([dict(epoch=0, strength=1.5)], '0 .. 1'),
        ([dict(epoch=0, size=160), dict(epoch=5, strength=0.3)], 'the same ones of size and strength'),
        ([dict(epoch=0, size=160), dict(epoch=5, size=192), dict(epoch=5, size=224)], 'after that before it'),
        ([dict(epoch=0, size=160), dict(epoch=10, size=192)], 'never reached'),
        ([dict(epoch=0, size=160), dict(epoch=1.5, size=192)], 'fractions 0 .. 1'),
    ],
)
def test_bad_stages(stages, message):
    with pytest.raises(ValueError, match=message):
        read_stages(stages, 10)


def test_size_keeps_the_proportion_of_earlier_transforms():
    pipeline = [
        dict(type='ResizeEdge', scale=256, edge='short'),
        dict(type='RandomCrop', crop_size=(224, 224)),
        dict(type='torchvision/RandomErasing', scale=(0.02, 0.33)),
    ]
    smaller = at_size(pipeline, 160)
    assert [smaller[0]['scale'], smaller[1]['crop_size'], smaller[2]['scale']] == [183, (160, 160), (0.02, 0.33)]
    assert at_size(pipeline, 5 / 7) == smaller
    assert output_size(pipeline) == 224
    with pytest.raises(ValueError, match='nothing to resize'):
        at_size([dict(type='RandomFlip', prob=0.5)], 160)


def test_strength_of_each_augmentation():
    operations = [
        dict(type='Rotate', angle=30.0, prob=0.6),
        dict(type='Posterize', bits=4, prob=0.4),
        dict(type='Solarize', thr=156, prob=1.0),
        dict(type='Shear', magnitude=0.2, prob=0.5),
        dict(type='Equalize'),
    ]
    pipeline = [
        dict(type='mmpretrain.AutoAugment', policies=[operations]),
        dict(type='RandAugment', policies=[dict(type='Invert')], num_policies=1, magnitude_level=9),
        dict(type='RandomErasing', erase_prob=0.25),
        dict(type='RandomFlip', prob=0.5),
    ]
    auto, rand, erasing, flip = at_strength(pipeline, 0.5)
    assert auto['policies'] == [
        [
            dict(type='Rotate', angle=15.0, prob=0.3),
            dict(type='Posterize', bits=6, prob=0.2),
            dict(type='Solarize', thr=206, prob=0.5),
            dict(type='Shear', magnitude=0.1, prob=0.25),
            dict(type='Equalize', prob=0.25),
        ]
    ]
    assert (rand['magnitude_level'], rand['policies'][0]['prob']) == (4.5, 0.25)
    assert erasing['erase_prob'] == 0.125
    assert flip['prob'] == 0.5
    with pytest.raises(ValueError, match='no augmentation to scale'):
        at_strength(pipeline[3:], 0.5)


def test_what_autoaugment_lays_bare_gets_the_color_asked_for():
    image = np.full((40, 40, 3), 255, np.uint8)
    for hparams, color in ((dict(), [104, 116, 124]), (dict(hparams=dict(pad_val=[1, 2, 3])), [1, 2, 3])):
        policy = [dict(type='Rotate', angle=30.0, prob=1.0)]
        transform = TRANSFORMS.build(dict(type='mobileone_ext.AutoAugment', policies=[policy], **hparams))
        assert transform(dict(img=image))['img'][0, 0].tolist() == color


@pytest.mark.parametrize('augmentation', ['AutoAugment', 'RandAugment'])
def test_strength_moves_pixels_in_proportion(augmentation):
    """Preset policies, built and run: nothing at strength 0, and more at 1 than at 0.3."""
    presets = dict(
        AutoAugment=dict(type='AutoAugment', policies='imagenet'),
        RandAugment=dict(type='RandAugment', policies='timm_increasing', num_policies=2, magnitude_level=9),
    )
    image = np.asarray(Image.linear_gradient('L').convert('RGB'))
    moved = []
    for strength in (0, 0.3, 1):
        np.random.seed(0)
        (config,) = at_strength([presets[augmentation]], strength)
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            transform = TRANSFORMS.build(config)
        results = [transform(dict(img=image.copy()))['img'] for _ in range(100)]
        moved.append(np.mean([np.abs(result.astype(int) - image).mean() for result in results]))
    assert moved[0] == 0
    assert 3 * moved[1] < moved[2]


class Mean(BaseModel):
    """The smallest thing that trains."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs, data_samples, mode):
        return dict(loss=self.scale * torch.stack([image.float().mean() for image in inputs]).mean())


class Record(Hook):
    """The sizes of the batches of each epoch, and their pixels in the upper left corner."""

    def __init__(self):
        self.sizes, self.corners = {}, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for image in data_batch['inputs']:
            self.sizes.setdefault(runner.epoch, set()).add(tuple(image.shape[1:]))
            self.corners.setdefault(runner.epoch, set()).update(image[:, 0, 0].tolist())


def record(run):
    return next(hook for hook in run.hooks if isinstance(hook, Record))


def sizes_seen(run):
    return record(run).sizes


PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=28),
    dict(type='AutoAugment', policies='imagenet'),
    dict(type='PackInputs'),
]
STAGES = [
    dict(epoch=0, size=20, strength=0.3),
    dict(epoch=2, size=24, strength=0.7),
    dict(epoch=5, size=1.0, strength=1.0),
]
SIZES = {epoch: size for epochs, size in (((0, 1), 20), ((2, 3, 4), 24), ((5, 6), 28)) for epoch in epochs}


@pytest.fixture
def runner(tmp_path):
    """Makes a Runner over eight pictures, with the curriculum and a recorder."""
    for index in range(8):
        (tmp_path / f'data/{index % 2}').mkdir(parents=True, exist_ok=True)
        Image.linear_gradient('L').resize((40, 36)).convert('RGB').save(tmp_path / f'data/{index % 2}/{index}.png')

    made = []

    def make(stages=STAGES, pipeline=PIPELINE, wrapper=None, resume_from=None, **loader):
        dataset = dict(type='CustomDataset', data_root=str(tmp_path / 'data'), pipeline=pipeline)
        if wrapper:
            dataset = dict(type=wrapper, times=1, dataset=dataset)
        run = Runner(
            Mean(),
            str(tmp_path / 'work'),
            train_dataloader=dict(dataset=dataset, batch_size=4, sampler=dict(type='DefaultSampler'), **loader),
            train_cfg=dict(by_epoch=True, max_epochs=7),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            custom_hooks=[CurriculumHook(stages), PlainCheckpointHook(), Record()],
            load_from=resume_from and str(tmp_path / 'work' / resume_from),
            resume=resume_from is not None,
            default_scope='mmpretrain',
            experiment_name=f'{tmp_path.name}, {loader}, {resume_from}',
            log_level='WARNING',
            cfg=dict(train_dataloader=dict(dataset=dataset)),
        )
        made.append(run)
        return run

    yield make
    for run in made:  # mmengine's Runner leaves it to garbage collection, which waits for each
        end_workers(getattr(run.train_loop, 'dataloader', None))


@pytest.mark.parametrize(
    'loader',
    [
        dict(num_workers=0),
        dict(num_workers=2),
        dict(num_workers=2, persistent_workers=True),
        dict(num_workers=1, persistent_workers=True, wrapper='RepeatDataset'),
        dict(num_workers=0, num_batch_per_epoch=1),
    ],
)
def test_batches_have_the_size_of_their_stage(runner, loader):
    run = runner(**loader)
    run.train()
    assert sizes_seen(run) == {epoch: {(size, size)} for epoch, size in SIZES.items()}


@pytest.mark.parametrize('persistent', [False, True])
def test_batches_have_the_strength_of_their_stage(runner, persistent):
    """Pictures have the value 3 in the corner; inverted, 252: never at strength 0, always at 1."""
    invert = dict(type='AutoAugment', policies=[[dict(type='Invert', prob=1.0)]])
    stages = [dict(epoch=0, strength=0), dict(epoch=2, strength=1), dict(epoch=5, strength=0)]
    run = runner(stages, [PIPELINE[0], invert, PIPELINE[-1]], num_workers=1, persistent_workers=persistent)
    run.train()
    assert record(run).corners == {epoch: {252 if 2 <= epoch < 5 else 3} for epoch in range(7)}


def test_a_run_resumed_in_the_middle_of_a_stage_goes_on_in_it(runner):
    runner(num_workers=0).train()
    for epoch in (1, 3, 6):
        run = runner(num_workers=2, persistent_workers=True, resume_from=f'epoch_{epoch}.pth')
        run.train()
        assert sizes_seen(run) == {later: {(size, size)} for later, size in SIZES.items() if later >= epoch}


def test_tensorboard_shows_size_strength_and_weight_decay(digits, tmp_path):
    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
    config.train_dataloader.update(num_workers=0, persistent_workers=False)
    config.train_dataloader.dataset.pipeline.insert(2, dict(type='AutoAugment', policies='imagenet'))
    stages = [STAGES[0], dict(STAGES[2], epoch=2)]
    config.custom_hooks.append(dict(type='mobileone_ext.CurriculumHook', stages=stages))
    annealing = dict(type='CosineAnnealingParamScheduler', param_name='weight_decay', eta_min_ratio=0.1, T_max=4, end=4)
    config.param_scheduler.append(annealing)
    config.default_hooks.logger.interval = 1
    config.work_dir = str(tmp_path)
    training.skip_validation(config)
    config.default_hooks.checkpoint.save_best = None
    training.train(config)

    (events,) = tmp_path.rglob('events.out.tfevents.*')
    scalars = EventAccumulator(str(events)).Reload()
    values = {
        tag: [event.value for event in scalars.Scalars(tag)]
        for tag in ('image_size', 'augment_strength', 'weight_decay/bias_weight', 'weight_decay/norm', 'lr')
    }
    steps = 8  # 240 images in batches of 32
    assert values['image_size'] == [20] * 2 * steps + [32] * 2 * steps
    assert values['augment_strength'] == pytest.approx([0.3] * 2 * steps + [1.0] * 2 * steps)
    expected = [1e-4 * (0.55 + 0.45 * math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert values['weight_decay/bias_weight'][::steps] == pytest.approx(expected)
    assert set(values['weight_decay/norm']) == {0}
    assert len(values['lr']) == 4 * steps


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(pipeline=[PIPELINE[0], PIPELINE[-1]]), 'nothing to resize'),
        (dict(pipeline=[PIPELINE[0], PIPELINE[1], PIPELINE[-1]]), 'no augmentation to scale'),
        (dict(stages=[dict(epoch=0, size=28), dict(epoch=99, size=20)]), 'never reached'),
        (dict(stages=[dict(epoch=0, sise=28)]), "unexpected keyword argument 'sise'"),
        (dict(stages=[dict(size=28)]), "missing .* 'epoch'"),
    ],
)
def test_a_curriculum_that_does_not_fit_stops_at_the_start(runner, options, message):
    run = runner(num_workers=0, **options)
    with pytest.raises((ValueError, TypeError), match=message):
        run.train()
    assert sizes_seen(run) == {}
