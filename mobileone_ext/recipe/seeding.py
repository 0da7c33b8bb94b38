"""Randomness that depends on the seed and on the place in the run, and on nothing else.

Default seeding of loader workers repeats the same augmentation every epoch, or,
with persistent workers, depends on how long they have lived: neither can be
resumed. Here every draw of a sample is augmented from a stream of its own. Draws are
counted where the loader hands out indices, so an image that a data set or a sampler
repeats is augmented anew each time, whatever stands between loader and image; and a run
is the same for any number of workers, and the same when it is resumed.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dist import get_dist_info, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from torch.utils.data import DataLoader, get_worker_info

from ..registry import HOOKS


def seed_generators(*entropy: int) -> None:
    """Seed Python, NumPy and torch, all devices, from non-negative integers; other integers, other streams."""
    words = _words(entropy)
    _seed_cpu(words)
    torch.manual_seed(words[2])


def _words(entropy: tuple[int, ...]) -> list[int]:
    return np.random.SeedSequence(entropy).generate_state(3).tolist()


def _seed_cpu(words: list[int]) -> None:
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])


class Draws(list):
    """The indices of one batch; ``entropy`` holds, for each, what its augmentation is seeded with."""

    def __init__(self, indices, entropy: list[tuple[int, ...]]):
        super().__init__(indices)
        self.entropy = entropy


class NumberedBatches:
    """A batch sampler that numbers what the one inside it draws.

    The count begins anew with an epoch. Within one it goes on when the sampler is iterated
    again, as a loop that goes by iterations does, and as such a loop does when it is resumed.
    """

    def __init__(self, batches, seed: int):
        self.batches, self.seed, self.epoch = batches, seed, 0
        self._count, self._counted_epoch = 0, 0
        sampler = getattr(batches, 'sampler', None)
        if hasattr(sampler, 'skip'):  # how the maintained fork's loop goes on after a resume
            self._skip, sampler.skip = sampler.skip, self.skip

    def skip(self, count: int) -> None:
        """Go on behind the first ``count`` draws of this process."""
        self._skip(count)
        self._count = count

    def __iter__(self) -> Iterator[Draws]:
        rank, world_size = get_dist_info()
        if self._counted_epoch != self.epoch:
            self._count, self._counted_epoch = 0, self.epoch
        for indices in self.batches:
            indices = list(indices)
            # Samplers deal the draws out to the ranks in turns.
            numbers = range(self._count * world_size + rank, (self._count + len(indices)) * world_size, world_size)
            self._count += len(indices)
            yield Draws(indices, [(self.seed, self.epoch, number) for number in numbers])

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str):
        if name == 'batches':  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.batches, name)


class SeededItems:
    """``dataset.__getitems__``, which a loader calls with a batch's indices: each sample from its own stream."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __call__(self, indices) -> list:
        if not isinstance(indices, Draws):
            return [self.dataset[index] for index in indices]
        samples = []
        with untouched_generators():
            for index, entropy in zip(indices, indices.entropy):
                _seed_cpu(_words(entropy))
                samples.append(self.dataset[index])
        return samples


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Without workers, augmentation runs in the process whose generators the model draws from."""
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def number_draws(loader, seed: int) -> bool:
    """Let ``loader`` augment every draw from a stream of its own; whether that was still to do.

    Loaders that keep no order of their own (of iterable data sets) stay as they are.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.batch_sampler, NumberedBatches | None):
        return False
    # A plain assignment is what DataLoader refuses once it is built.
    object.__setattr__(loader, 'batch_sampler', NumberedBatches(loader.batch_sampler, seed))
    loader.dataset.__getitems__ = SeededItems(loader.dataset)
    return True


@HOOKS.register_module()
class SeedEpochHook(Hook):
    """Give augmentation its epoch, and seed the model's own randomness at every step.

    Our Runner numbers a loader's draws before a loop sees it; in another's, this hook does.
    """

    priority = 'LOW'

    def before_train_epoch(self, runner) -> None:
        loader = runner.train_dataloader
        late = number_draws(loader, runner.seed)
        if isinstance(getattr(loader, 'batch_sampler', None), NumberedBatches):
            loader.batch_sampler.epoch = runner.epoch
        if late and hasattr(runner.train_loop, 'dataloader_iterator'):
            print_log(
                'augmentation depends on the number of workers and is not resumed bit for bit: a loop that goes by '
                'iterations needs mobileone_ext.engine.runner.Runner (tools/train.py)',
                logger='current',
                level=logging.WARNING,
            )

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        seed_generators(runner.seed, runner.iter, get_rank())
