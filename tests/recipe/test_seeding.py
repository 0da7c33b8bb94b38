"""Every draw of a sample has its own augmentation, in every loop, whatever repeats it; resumable bit for bit."""

import multiprocessing
import random

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, data_options
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, InfiniteSampler, RepeatDataset
from mmengine.runner import Runner as PlainRunner
from mmpretrain.datasets import KFoldDataset, RepeatAugSampler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset

from mobileone_ext import cli
from mobileone_ext.engine.runner import Runner
from mobileone_ext.recipe.seeding import Draws, number_draws, seed_generators

pytestmark = pytest.mark.filterwarnings('ignore')
SIZE = 12


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Noise(BaseDataset):
    """Samples that tell their number and what the generators gave."""

    def __init__(self, lazy_init=False):
        super().__init__(pipeline=[self.augment], serialize_data=False, lazy_init=lazy_init)

    def load_data_list(self):
        return [dict(number=number) for number in range(SIZE)]

    def get_cat_ids(self, idx):
        return [0] if idx else [1]  # the first image is the only one of its class

    @staticmethod
    def augment(results):
        return results['number'], draw()


DATASETS = {
    'plain': Noise,
    'RepeatDataset': lambda: RepeatDataset(Noise(), 3),
    'ClassBalancedDataset': lambda: ClassBalancedDataset(Noise(), 1.0),
    'ConcatDataset': lambda: ConcatDataset([Noise(), Noise()]),
    'KFoldDataset': lambda: KFoldDataset(dict(type=Noise, lazy_init=False), num_splits=3),
    'Subset': lambda: Subset(Noise(), [3, 3, 5, 3]),
    'Repeat of Concat of Repeat': lambda: RepeatDataset(dict(type=ConcatDataset, datasets=[dict(type=Noise)] * 2), 2),
}
SAMPLERS = {
    'DefaultSampler': dict(type='DefaultSampler', shuffle=True),
    'RepeatAugSampler': dict(type='RepeatAugSampler', num_repeats=4),
    'InfiniteSampler': dict(type='InfiniteSampler', shuffle=True),
}


class OwnBatches:
    """A batch sampler as others write them: no ``sampler``, tuples, batches of many sizes."""

    def __init__(self, batches):
        self.batch_list = batches

    def __iter__(self):
        return iter(self.batch_list)

    def __len__(self):
        return len(self.batch_list)


def take(loader, batches, epoch=0):
    """``(number, noise)`` of the samples in the next ``batches`` batches, as an epoch's hook starts them."""
    loader.batch_sampler.epoch = epoch
    actual = []
    for batch, _ in zip(loader, range(batches)):
        actual.extend(batch)
    return actual


def loader_of(dataset, sampler, workers=0, seed=1, **options):
    loader = DataLoader(
        dataset, batch_size=4, num_workers=workers, collate_fn=list, sampler=sampler(dataset), drop_last=True, **options
    )
    assert number_draws(loader, seed) and not number_draws(loader, seed)
    return loader


@pytest.mark.parametrize('name', DATASETS)
def test_copies_of_an_image_differ(name):
    def sampler(dataset):
        return RandomSampler(dataset, replacement=True, generator=torch.Generator().manual_seed(0))

    actual = take(loader_of(DATASETS[name](), sampler), 6) + take(loader_of(DATASETS[name](), sampler), 6, epoch=1)
    numbers = [number for number, _ in actual]
    assert len(set(numbers)) < len(numbers)
    for values in zip(*(noise for _, noise in actual)):
        assert len(set(values)) == len(actual)


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize('workers', [1, 2])
def test_draws_do_not_depend_on_workers(name, workers):
    kind = dict(RepeatAugSampler=RepeatAugSampler, InfiniteSampler=InfiniteSampler).get(name)

    def sampler(dataset):
        options = {key: value for key, value in SAMPLERS[name].items() if key != 'type'}
        return kind(dataset, seed=3, **options) if kind else RandomSampler(dataset, generator=torch.Generator())

    alone, many = (loader_of(RepeatDataset(Noise(), 2), sampler, count) for count in (0, workers))
    expected = take(alone, 3)
    assert take(many, 3) == expected
    assert len({noise for _, noise in expected}) == 12


def test_batches_of_ones_own_making():
    batches = [(0, 0, 0), (1,), (0, 2)]
    actual = {}
    for workers in (0, 2):
        loader = DataLoader(Noise(), batch_sampler=OwnBatches(batches), num_workers=workers, collate_fn=list)
        number_draws(loader, 1)
        assert len(loader) == 3 and loader.batch_sampler.batch_list is batches
        actual[workers] = take(loader, 3)
    assert actual[0] == actual[2]
    assert [number for number, _ in actual[0]] == [0, 0, 0, 1, 0, 2]
    assert len({noise for _, noise in actual[0]}) == 6


def test_the_models_randomness_is_left_alone():
    """Without workers augmentation runs in the same process."""
    loader = loader_of(Noise(), RandomSampler)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    loader.dataset.__getitems__(next(iter(loader.batch_sampler)))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert [state[0], state[1]] == [after[0], after[1]]
    loader.dataset.__getitems__(Draws([0], [(1, 2, 3)]))
    assert draw() != draw()


def test_epochs_seeds_and_passes_differ():
    streams = []
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        loader = loader_of(Noise(), lambda dataset: range(SIZE), seed=seed)
        streams.append(take(loader, 3, epoch))
        streams.append(take(loader, 3, epoch))  # a loop by iterations begins again
        streams.append(take(loader_of(Noise(), lambda dataset: range(SIZE), seed=seed), 3, epoch))
    assert len({noise for stream in streams for _, noise in stream}) == 6 * SIZE
    for first, _, again in zip(streams[::3], streams[1::3], streams[2::3]):
        assert first == again


def test_ranks_draw_their_own(monkeypatch):
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr('mobileone_ext.recipe.seeding.get_dist_info', lambda rank=rank: (rank, 2))
        drawn.append(take(loader_of(Noise(), lambda dataset: range(SIZE)), 3))
    assert len({noise for stream in drawn for _, noise in stream}) == 2 * SIZE


def test_generators_are_seeded_by_every_number():
    drawn = set()
    for entropy in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
        seed_generators(*entropy)
        first = draw()
        draw()
        seed_generators(*entropy)
        assert draw() == first
        drawn.update(first)
    assert len(drawn) == 12


def run(digits, work_dir, loop, workers, sampler='DefaultSampler', resume=None, kind=Runner):
    """Train; the weights, and the images of the last batch."""
    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
    config.work_dir, config.experiment_name = str(work_dir), f'{work_dir}{loop}{workers}{resume}'
    config.randomness.seed = 5
    config.custom_hooks, config.param_scheduler = [], None
    config.model.head.pop('cal_acc', None)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.test_cfg = config.test_dataloader = config.test_evaluator = None
    inner = config.train_dataloader.dataset
    inner.indices = 12
    config.train_dataloader = dict(
        dataset=dict(type='RepeatDataset', times=3, dataset=inner),
        sampler=SAMPLERS[sampler],
        collate_fn=dict(type='default_collate'),
        num_workers=workers,
        persistent_workers=workers > 0,
        batch_size=8,
        drop_last=True,
    )
    if loop == 'iterations':
        config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=7, val_interval=100)
        config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=3, by_epoch=False)
    else:
        config.train_cfg.max_epochs = 2
    if resume:
        config.load_from, config.resume = str(resume), True
    images = []
    runner = kind.from_cfg(config)
    step = runner.model.train_step
    runner.model.train_step = lambda data, optim_wrapper: images.append(data['inputs']) or step(data, optim_wrapper)
    runner.train()
    assert kind is PlainRunner or not multiprocessing.active_children()  # a garbage collection would wait for them
    return runner.model.state_dict(), images


@pytest.mark.parametrize(
    'loop, sampler',
    [
        ('epochs', 'DefaultSampler'),
        pytest.param('epochs', 'RepeatAugSampler', marks=pytest.mark.slow),
        pytest.param('iterations', 'DefaultSampler', marks=pytest.mark.slow),
        ('iterations', 'InfiniteSampler'),
    ],
)
def test_a_run_is_the_same_with_workers_and_resumed(digits, tmp_path, monkeypatch, loop, sampler):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # mmengine waits when a finite sampler begins again
    expected, images = run(digits, tmp_path / 'a', loop, 0, sampler)
    batch = torch.cat(images)
    assert len(torch.unique(batch.flatten(1), dim=0)) > 0.7 * len(batch)  # 8 x 8 pixels have few crops
    state, with_workers = run(digits, tmp_path / 'b', loop, 2, sampler)
    assert all(torch.equal(one, other) for one, other in zip(images, with_workers, strict=True))
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    saved = tmp_path / 'a' / ('epoch_1.pth' if loop == 'epochs' else 'iter_3.pth')
    state, rest = run(digits, tmp_path / 'c', loop, 2, sampler, resume=saved)
    assert 0 < len(rest) < len(images)
    assert all(torch.equal(one, other) for one, other in zip(images[-len(rest) :], rest, strict=True))
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_hook_alone_is_enough_for_epochs(digits, tmp_path):
    """In mmengine's own Runner, as other tools use it."""
    expected, images = run(digits, tmp_path / 'a', 'epochs', 0)
    _, actual = run(digits, tmp_path / 'b', 'epochs', 0, kind=PlainRunner)
    assert all(torch.equal(one, other) for one, other in zip(images, actual, strict=True))


def test_batch_sampler_of_torch_is_numbered_too():
    loader = DataLoader(Noise(), batch_sampler=BatchSampler([1, 1, 1], 2, False), collate_fn=list)
    number_draws(loader, 0)
    assert [len(batch) for batch in loader] == [2, 1]
