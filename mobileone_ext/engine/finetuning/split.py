"""Which photos to measure on: a stratified split that a seed decides and nothing else."""

import zlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def stratified_split(
    classes: Sequence[str], groups: Sequence[Hashable], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices to train on and to measure on, each in order.

    Every class with two groups or more is on both sides, about ``fraction`` of it in the second.
    A class draws from a stream of its own, so that photos of one class move nothing in another.

    Args:
        classes: of each photo, by name.
        groups: what must stay together, e.g. the digest of the photo's bytes.
        fraction: between 0 and 1.
        seed: 0 or more.
    """
    members: dict[str, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, (name, group) in enumerate(zip(classes, groups)):
        members[name][group].append(index)
    measured = []
    for name, grouped in members.items():
        draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
        in_order = list(grouped.values())
        together = [in_order[i] for i in draw.permutation(len(grouped))]
        target, taken = fraction * sum(map(len, together)), 0
        for number, group in enumerate(together[:-1]):  # one group at least to train on
            if number and taken + len(group) / 2 > target:
                break
            measured += group
            taken += len(group)
    chosen = set(measured)
    return [index for index in range(len(classes)) if index not in chosen], sorted(measured)


def rarest(labels: Sequence[Sequence[str]]) -> list[str]:
    """The rarest label of each photo, by which a photo with several is put into a class; ``''`` for none."""
    counts: dict[str, int] = defaultdict(int)
    for names in labels:
        for name in names:
            counts[name] += 1
    return [min(names, key=lambda name: (counts[name], name), default='') for names in labels]
