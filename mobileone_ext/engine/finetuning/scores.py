"""Scores of a network for each photo of a test set, and what they say about classes."""

from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from ...checkpoints.load import load_weights
from ...data.classes import is_multi_label
from ...deploy import fuse
from ...text import with_progress


@dataclass(frozen=True)
class Scores:
    """What a network says about photos.

    Attributes:
        paths: of the photos.
        truth: (N, classes), whether a photo has a label.
        scores: (N, classes), 0 .. 1: softmax, or with several labels a sigmoid for each.
        classes: names.
        multi_label: whether a photo may have several labels.
        logits: (N, classes), what ``scores`` are made of.
    """

    paths: list[str]
    truth: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]
    multi_label: bool
    logits: np.ndarray | None = None

    @property
    def predicted(self) -> np.ndarray:
        """(N, classes): the best class, or with several labels those above one half."""
        if self.multi_label:
            return self.scores > 0.5
        return np.eye(len(self.classes), dtype=bool)[self.scores.argmax(1)]


@torch.no_grad()
def score_photos(config: Config, checkpoint: str, photos: str = 'test_dataloader') -> Scores:
    """Scores of the network in ``checkpoint`` on the config's test set, or the data of another loader."""
    weights = load_weights(checkpoint)
    model = fuse.load_model(config, weights).to(get_device())
    loader = Runner.build_dataloader(config[photos])
    multi_label = is_multi_label(config)
    paths, labels, outputs = [], [], []
    for batch in with_progress(loader, 'scoring photos'):
        paths += [sample.img_path for sample in batch['data_samples']]
        labels += [sample.gt_label.tolist() for sample in batch['data_samples']]
        outputs.append(model(model.data_preprocessor(batch)['inputs']).float().cpu())
    logits = torch.cat(outputs)
    scores = (logits.sigmoid() if multi_label else logits.softmax(1)).numpy()
    truth = np.zeros(scores.shape, dtype=bool)
    for row, of_photo in zip(truth, labels):
        row[of_photo] = True
    return Scores(paths, truth, scores, tuple(loader.dataset.metainfo['classes']), multi_label, logits.numpy())


@dataclass(frozen=True)
class ClassResult:
    """A class by name: its photos, how many of them were found and how many of those named so are right, percent."""

    name: str
    count: int
    recall: float | None
    precision: float | None


def by_class(result: Scores) -> list[ClassResult]:
    """Each class's result; None where there is nothing to divide by."""
    rows, predicted = [], result.predicted
    for index, name in enumerate(result.classes):
        true, said = result.truth[:, index], predicted[:, index]
        right = int((true & said).sum())
        rows.append(ClassResult(name, int(true.sum()), _percent(right, true.sum()), _percent(right, said.sum())))
    return rows


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / int(whole) if whole else None


def confusion(result: Scores) -> np.ndarray:
    """(classes, classes): photos of the class of the row that were taken for the class of the column."""
    count = len(result.classes)
    pairs = result.truth.argmax(1) * count + result.scores.argmax(1)
    return np.bincount(pairs, minlength=count**2).reshape(count, count)


def sureness(result: Scores) -> np.ndarray:
    """(N,) how sure each photo's error is, 0 .. 1: the best score of another label than its own; with several labels
    the largest distance of a score from the truth."""
    return np.abs(result.truth - result.scores).max(1) if result.multi_label else (result.scores - result.truth).max(1)


def worst(result: Scores, count: int = 24) -> list[int]:
    """Photos with a wrong prediction, the surest error first."""
    wrong = np.flatnonzero((result.truth != result.predicted).any(1))
    return wrong[np.argsort(-sureness(result)[wrong], kind='stable')][:count].tolist()
