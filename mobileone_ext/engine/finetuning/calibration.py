"""Scores that mean what they say, and below which of them a photo is none of the classes: pure functions of logits.

The temperature is that of Guo et al., On Calibration of Modern Neural Networks (2017). Logits are (N, classes), the
truth (N, classes) whether a photo has a label; a photo without any is a stranger, none of the classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...text import quoted
from .scores import Scores

MIN_PHOTOS = 100  # fewer set no threshold
MIN_ANSWERS = 20  # of fewer no precision can be told
BINS = 15
USUAL = 0.5  # the threshold of one of several labels for which none was found
POINTS = 200  # of a curve, at most, in a report
_RANGE = 0.05, 20.0  # of a temperature


def scores_of(logits: np.ndarray, temperature: float, multi_label: bool) -> np.ndarray:
    """(N, classes), 0 .. 1: the softmax of ``logits / temperature``, or with several labels the sigmoid of each."""
    scaled = logits.astype(float) / temperature
    if multi_label:
        return np.exp(-np.logaddexp(0, -scaled))
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def best_temperature(logits: np.ndarray, truth: np.ndarray, multi_label: bool) -> float:
    """The temperature of the largest likelihood, within 0.05 .. 20; 1 where all photos are right, which tells nothing.

    The likelihood is concave in 1 / temperature: its slope, the labels' logits less those to be expected, falls.
    """
    right = ((logits > 0) == truth).all() if multi_label else truth[np.arange(len(truth)), logits.argmax(1)].all()
    if right:
        return 1.0
    low, high = np.log(_RANGE)
    while high - low > 1e-6:
        middle = (low + high) / 2
        surplus = ((truth - scores_of(logits, np.exp(middle), multi_label)) * logits).sum()
        low, high = (low, middle) if surplus > 0 else (middle, high)  # surer than said: a lower temperature
    return float(np.exp((low + high) / 2))


def answers(scores: np.ndarray, truth: np.ndarray, multi_label: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scores of what is answered, and whether that is right: of each photo's best class, or of each label."""
    if multi_label:
        return scores.ravel(), truth.ravel()
    best = scores.argmax(1)
    rows = np.arange(len(scores))
    return scores[rows, best], truth[rows, best]


def reliability(scores: np.ndarray, right: np.ndarray) -> list[tuple[float, float, int]]:
    """``(mean score, share that is right, n)`` of ``scores`` (N,) in each of ``BINS`` equal parts of 0 .. 1."""
    part = np.minimum((scores * BINS).astype(int), BINS - 1)
    members = [part == number for number in range(BINS)]
    return [(float(scores[m].mean()), float(right[m].mean()), int(m.sum())) for m in members if m.any()]


def calibration_error(scores: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error, 0 .. 1: how far score and share lie apart in :func:`reliability`, by n."""
    bins = reliability(scores, right)
    return sum(abs(score - share) * count for score, share, count in bins) / sum(count for *_, count in bins)


def reject_curve(scores: np.ndarray, right: np.ndarray) -> list[tuple[float, float, float]]:
    """``(threshold, share that is answered, precision of that)`` for each distinct score, the highest first."""
    order = np.argsort(-scores, kind='stable')
    scores, hits = scores[order], right[order].cumsum()
    last = np.append(scores[:-1] != scores[1:], True).nonzero()[0]
    return [(float(scores[i]), (i + 1) / len(scores), float(hits[i] / (i + 1))) for i in last]


def threshold_for(precision: float, scores: np.ndarray, right: np.ndarray) -> float | None:
    """The score at which the most is answered with ``precision``; None where fewer than ``MIN_ANSWERS`` would be."""
    curve = [row for row in reject_curve(scores, right) if row[1] * len(scores) >= MIN_ANSWERS - 0.5]
    return next((threshold for threshold, _, found in reversed(curve) if found >= precision), None)


@dataclass(frozen=True)
class Calibration:
    """What a network's file says of its scores.

    Attributes:
        temperature: by which logits are divided; None for too few photos.
        threshold: the least score of an answer, with several labels one for each; None where none is set.
        note: why there is none, or not for all labels; empty if nothing is to be said.
    """

    temperature: float | None = None
    threshold: float | list[float] | None = None
    note: str = ''

    @property
    def said(self) -> dict[str, Any]:
        """What there is of the two, as the metadata have it."""
        both = dict(temperature=self.temperature, threshold=self.threshold)
        return {name: value for name, value in both.items() if value is not None}


def calibrate(
    logits: np.ndarray,
    truth: np.ndarray,
    classes: Sequence[str],
    multi_label: bool,
    precision: float,
    strangers: np.ndarray,
) -> Calibration:
    """Temperature and threshold by photos of the classes, the threshold also by the logits of ``strangers``."""
    if len(logits) < MIN_PHOTOS:
        few = f'{len(logits)} photos are too few to calibrate scores by, or to set a threshold: it takes {MIN_PHOTOS}'
        return Calibration(note=few)
    temperature = best_temperature(logits, truth, multi_label)
    scores = scores_of(np.concatenate([logits, strangers]), temperature, multi_label)
    known = np.concatenate([truth, np.zeros(strangers.shape, dtype=bool)])
    reach = f'reaches a precision of {precision:g} with {MIN_ANSWERS} answers or more'
    if not multi_label:
        threshold = threshold_for(precision, *answers(scores, known, False))
        return Calibration(temperature, threshold, '' if threshold is not None else f'no threshold {reach}')
    found = [threshold_for(precision, scores[:, label], known[:, label]) for label in range(len(classes))]
    missing = [name for name, value in zip(classes, found) if value is None]
    if len(missing) == len(classes):
        return Calibration(temperature, None, f'no threshold of a label {reach}')
    note = f'no threshold {reach} for {quoted(missing)}: {USUAL} stays' if missing else ''
    return Calibration(temperature, [USUAL if value is None else value for value in found], note)


def report_of(
    found: Calibration, precision: float, measured: Scores, num_photos: int, same: bool, strangers: np.ndarray
) -> dict:
    """What a report has of ``found``, as plain data; shares, scores and errors are 0 .. 1.

    Args:
        measured: photos with their logits.
        num_photos: how many photos calibrated.
        same: these are the ``measured`` ones.
        strangers: logits of photos of none of the classes.
    """
    multi_label, temperature = measured.multi_label, found.temperature or 1.0
    before = answers(scores_of(measured.logits, 1.0, multi_label), measured.truth, multi_label)
    scores, right = after = answers(scores_of(measured.logits, temperature, multi_label), measured.truth, multi_label)
    curve, least = reject_curve(*after), np.asarray(0 if found.threshold is None else found.threshold)
    answered = scores >= (np.tile(least, len(scores) // least.size) if least.ndim else least)
    refused = (scores_of(strangers, temperature, multi_label) < least).all(1)
    return dict(
        temperature=found.temperature,
        threshold=found.threshold,
        note=found.note,
        precision=precision,
        num_photos=num_photos,
        same_photos=same,
        ece_before=calibration_error(*before),
        ece_after=calibration_error(*after),
        answered=float(answered.mean()),
        right_of_answered=float(right[answered].mean()) if answered.any() else None,
        others=dict(num=len(strangers), refused=float(refused.mean())) if len(strangers) else None,
        reliability=reliability(*after),
        reject=[curve[int(i)] for i in np.unique(np.linspace(0, len(curve) - 1, POINTS).astype(int))],
    )


def sentences(said: dict, classes: Sequence[str]) -> list[str]:
    """What a report tells of its scores in words; ``said`` is of :func:`report_of`."""
    found, threshold, others = [], said['threshold'], said['others']
    if said['temperature']:
        found.append(
            f'Logits are divided by {said["temperature"]:.2f}, the temperature that {said["num_photos"]} validation '
            f'photos are likeliest with; expected calibration error {said["ece_before"]:.3f} before, '
            f'{said["ece_after"]:.3f} after.'
        )
    if threshold is not None:
        share, right = (f'{100 * (said[name] or 0):.1f} %' for name in ('answered', 'right_of_answered'))
        found.append(f'For a precision of {said["precision"]:g}, ')
        if isinstance(threshold, list):
            each = ', '.join(f'{name} {least:.2f}' for name, least in zip(classes, threshold))
            found[-1] += f'the least score of each label is: {each}. {right} of what reaches it is right.'
        else:
            found[-1] += (
                f'the answer below a score of {threshold:.2f} is "unknown": {share} of the photos are answered, '
            )
            found[-1] += f'{right} of these right.'
    if others:
        refused = 'none is refused, since no threshold is set'
        if threshold is not None:
            refused = f'{100 * others["refused"]:.1f} % are refused'
        found.append(f'Of {others["num"]} photos of none of the classes {refused}.')
    if said['note']:
        found.append(said['note'][0].upper() + said['note'][1:] + '.')
    if said['same_photos'] and said['temperature']:
        found.append('The photos that are measured on set these numbers, so expect a little less on others.')
    return found
