"""Photos that a person should look at: near-duplicates by a network's features, labels that scores speak against."""

from typing import NamedTuple

import numpy as np
import torch

from .scores import Scores

NEIGHBORS, RATIO = 10, 0.5
_BLOCK = 256  # photos that are compared with all others at a time


class Pair(NamedTuple):
    """Two photos by their indices, the first the smaller, and the cosine of their features."""

    first: int
    second: int
    similarity: float


def near_duplicates(features: np.ndarray, ratio: float = RATIO) -> list[Pair]:
    """Pairs of photos that lie much closer than photos do around there; the closest first.

    A pair counts if its distance is at most ``ratio`` of that of either's tenth neighbor (of the last, among fewer):
    no distance means the same to every network, and photos of a class lie close in one that was trained on it.

    Args:
        features: (N, C), N at least 2; directions are compared. The time is N^2 C, the memory that of ``features``.
    """
    directions = torch.nn.functional.normalize(torch.from_numpy(features))
    count = min(NEIGHBORS, len(directions) - 1)
    found, around = [], []
    for start in range(0, len(directions), _BLOCK):
        cosines = directions[start : start + _BLOCK] @ directions.T
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = -2  # itself
        near, places = cosines.topk(count)
        around.append(_distance(near[:, -1]))
        found.append((near, places))
    limit = ratio * torch.cat(around)
    near, places = (torch.cat(parts) for parts in zip(*found))
    first = torch.arange(len(near))[:, None].expand_as(places)
    close = (_distance(near) <= torch.minimum(limit[first], limit[places])) & (first < places)
    pairs = map(Pair, first[close].tolist(), places[close].tolist(), near[close].tolist())
    return sorted(pairs, key=lambda pair: -pair.similarity)


def _distance(cosine: torch.Tensor) -> torch.Tensor:
    return (2 - 2 * cosine).clamp_min(0).sqrt()


def doubtful(result: Scores) -> list[tuple[int, int]]:
    """Photos whose one label is in doubt, and the class that they seem to be; the least likely label first.

    Such a photo is as sure of another class as that class's own photos are in the mean (confident learning: Northcutt
    et al., JAIR 2021). The scores must be those of photos that the network was not trained on.
    """
    if result.multi_label:
        return []
    label, count = result.truth.argmax(1), np.maximum(result.truth.sum(0), 1)
    usual = np.where(result.truth.any(0), (result.scores * result.truth).sum(0) / count, np.inf)
    own = result.scores[np.arange(len(label)), label]
    others = np.where((result.scores >= usual) & ~result.truth & (result.scores > own[:, None]), result.scores, 0)
    seems = others.argmax(1)
    margin = others.max(1, initial=0) - own
    order = np.argsort(-margin, kind='stable')
    return [(index, int(seems[index])) for index in order.tolist() if others[index].any()]
