"""mmpretrain's metrics on scores of which many are 0 or 1, and on images that lack some of the classes.

A softmax or sigmoid in float32 leaves no order among such scores, so metrics of an order are given logits. A mean over
classes is one over those that there are images of.
"""

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmpretrain.evaluation import (
    Accuracy,
    AveragePrecision,
    ConfusionMatrix,
    MultiLabelMetric,
    MultiTasksMetric,
    RetrievalAveragePrecision,
    RetrievalRecall,
    SingleLabelMetric,
)
from torch import Tensor, nn

from ..data.classes import labels, quoted

LOGITS = 'pred_logit'  # of a sample, beside its pred_score
_SAID = '_said_to_be_absent'
_BY_CLASS = (AveragePrecision, MultiLabelMetric, SingleLabelMetric)
_RETRIEVAL = (RetrievalAveragePrecision, RetrievalRecall)
_OF_AN_ORDER = (Accuracy, ConfusionMatrix, *_BY_CLASS, *_RETRIEVAL)


def hand_on_logits(model: nn.Module) -> None:
    """Let the heads of ``model`` put logits beside the scores of a sample."""
    for head in model.modules():
        predict = getattr(head, '_get_predictions', None)
        if predict is not None and not hasattr(predict, LOGITS):
            head._get_predictions = _with_logits(predict)


def _with_logits(predict: Callable) -> Callable:
    def with_logits(logits: Tensor, samples: list | None) -> list:
        predicted = predict(logits, samples)
        for sample, own in zip(predicted, logits):
            sample.set_field(own, LOGITS)
        return predicted

    setattr(with_logits, LOGITS, True)
    return with_logits


def make_literal(metric: BaseMetric) -> None:
    """Let ``metric`` compute, in place, what its name says; one that is not known here stays as it is."""
    if isinstance(metric, MultiTasksMetric):
        for inner in [one for group in metric._metrics.values() for one in group]:
            make_literal(inner)
    if isinstance(metric, _RETRIEVAL) and not hasattr(np, 'in1d'):
        metric.process = _with_in1d(metric.process)
    thresholds = [getattr(metric, 'thr', None), *getattr(metric, 'thrs', ())]
    if isinstance(metric, _OF_AN_ORDER) and not any(thresholds):
        metric.process = _on_logits(metric.process)
    if isinstance(metric, Accuracy):
        metric.calculate = accuracy
    elif isinstance(metric, AveragePrecision):
        metric.calculate = _average_precision(metric)
    elif isinstance(metric, _BY_CLASS):
        metric.calculate = _over_present(metric)


def _with_in1d(process: Callable) -> Callable:
    """``process`` of a metric that calls ``numpy.in1d``, which NumPy 2.4 took away: there meanwhile, and gone again."""

    def with_in1d(*args) -> None:
        np.in1d = np.isin
        try:
            process(*args)
        finally:
            del np.in1d

    return with_in1d


def _on_logits(process: Callable) -> Callable:
    def on_logits(data_batch, data_samples: list[dict]) -> None:
        process(
            data_batch,
            [
                {**sample, 'pred_score': sample.get(LOGITS, sample['pred_score'])} if 'pred_score' in sample else sample
                for sample in data_samples
            ],
        )

    return on_logits


def accuracy(pred: Tensor, target: Tensor, topk: tuple[int, ...] = (1,), thrs: tuple[float | None, ...] = (0.0,)):
    """``Accuracy.calculate``, where a threshold of 0 drops nothing but NaN.

    mmpretrain's drops scores that are too small for float32.
    """
    return Accuracy.calculate(pred, target, topk, _literal(thrs))


def _literal(thresholds: tuple[float | None, ...]) -> list[float | None]:
    """A probability is above 0, so this threshold is none for logits either."""
    return [-math.inf if threshold == 0 else threshold for threshold in thresholds]


def average_precisions(pred: Tensor, target: Tensor) -> Tensor:
    """Average precision of each label (classes,) in percent, sum of (R_n - R_{n-1}) P_n over the distinct scores.

    Args:
        pred: (N, classes), scores or logits.
        target: (N, classes), 1 for a label that an image has, 0, or -1 for one that does not count.

    NaN for a label that no image has. Images of one score count at once, so their order is nothing.
    """
    precisions = torch.full((pred.shape[1],), math.nan, dtype=torch.float64)
    for label, (scores, truth) in enumerate(zip(pred.T, target.T)):
        scores, order = scores[truth > -1].sort(descending=True)
        hits = (truth[truth > -1][order] == 1).double().cumsum(0)
        last = torch.ones_like(scores, dtype=torch.bool)  # of the images of its score
        last[:-1] = scores[:-1] != scores[1:]
        precision = hits[last] / (1 + last.nonzero()[:, 0])
        gained = hits[last].diff(prepend=hits.new_zeros(1))
        if len(hits) and hits[-1]:
            precisions[label] = 100 * (gained * precision).sum() / hits[-1]
    return precisions


def _average_precision(metric: BaseMetric) -> Callable:
    def calculate(pred: Tensor, target: Tensor, average: str | None = 'macro') -> Tensor:
        precisions = average_precisions(pred, target)
        _say_what_is_absent(metric, precisions.isnan())
        return precisions if average is None else precisions.nanmean()

    return calculate


def _over_present(metric: BaseMetric) -> Callable:
    """The ``calculate`` of a metric that gives precision, recall, F1 and support, of each class or their means."""
    calculate = metric.calculate

    def of_each(precision: Tensor, recall: Tensor, f1: Tensor, support: Tensor) -> tuple:
        absent = support == 0
        _say_what_is_absent(metric, absent)
        return *(torch.where(absent, math.nan, one) for one in (precision, recall, f1)), support

    def over_present(*args, average: str | None = 'macro', **options):
        if 'thrs' in options:
            options['thrs'] = _literal(options['thrs'])
        if average == 'micro':
            return calculate(*args, average=average, **options)
        metrics = calculate(*args, average=None, **options)
        results = [of_each(*one) for one in (metrics if isinstance(metrics, list) else [metrics])]
        if average == 'macro':
            results = [(*(one.nanmean() for one in figures), support.sum()) for *figures, support in results]
        return results if isinstance(metrics, list) else results[0]

    return over_present


def _say_what_is_absent(metric: BaseMetric, absent: Tensor) -> None:
    names = [
        name
        for name, missing in zip(labels((metric.dataset_meta or {}).get('classes'), len(absent)), absent)
        if missing
    ]
    if names and getattr(metric, _SAID, None) != names:
        setattr(metric, _SAID, names)
        print_log(
            f'{type(metric).__name__}: no image has the label {quoted(names)}: left out of the mean',
            'current',
            logging.WARNING,
        )
