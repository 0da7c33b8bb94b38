"""Randomness that depends on the seed, the epoch and the sample, and on nothing else.

Default seeding of loader workers repeats the same augmentation every epoch, or,
with persistent workers, depends on how long they have lived: neither can be
resumed. Here every sample is augmented from a stream of its own, so a run is the
same for any number of workers, and the same when it is resumed at an epoch.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from ..registry import HOOKS


def seed_generators(*entropy: int) -> None:
    """Seed Python, NumPy and torch from non-negative integers; other integers, other streams."""
    words = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


class SampleSeeder:
    """A pipeline step that seeds the generators by (seed, epoch, sample index).

    Seed and epoch lie in shared memory: workers that live on see them change.
    """

    def __init__(self):
        self._state = torch.zeros(2, dtype=torch.int64).share_memory_()

    def set(self, seed: int, epoch: int) -> None:
        self._state.copy_(torch.tensor([seed, epoch]))

    def __call__(self, results: dict) -> dict:
        seed_generators(*self._state.tolist(), results['sample_idx'])
        return results


def built_pipelines(dataset) -> Iterator:
    """The ``Compose`` of every data set inside ``dataset``, wrapped or concatenated."""
    if hasattr(dataset, 'pipeline'):
        yield dataset.pipeline
    for inner in getattr(dataset, 'datasets', [getattr(dataset, 'dataset', None)]):
        if inner is not None:
            yield from built_pipelines(inner)


@HOOKS.register_module()
class SeedEpochHook(Hook):
    """Seed an epoch's augmentation and the model's own randomness at its start.

    Runs after hooks that rebuild a pipeline, and puts its step first in it.
    """

    priority = 'LOW'

    def __init__(self):
        self._seeder = SampleSeeder()

    def before_train_epoch(self, runner) -> None:
        self._seeder.set(runner.seed, runner.epoch)
        for pipeline in built_pipelines(runner.train_dataloader.dataset):
            if pipeline.transforms[:1] != [self._seeder]:
                pipeline.transforms.insert(0, self._seeder)
        seed_generators(runner.seed, runner.epoch, get_rank())
