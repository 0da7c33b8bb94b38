"""Calibrated scores and thresholds: against maximum likelihood by torch, sklearn's curve, counts by hand."""

import numpy as np
import pytest
import torch

from mobileone_ext.engine.finetuning import calibration
from mobileone_ext.engine.finetuning.scores import Scores

NONE = np.empty((0, 4))


def drawn(count: int = 600, temperature: float = 2.5, seed: int = 0, classes: int = 4):
    """Logits that are too sure: labels are drawn by the softmax of logits / temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (count, classes))
    scores = calibration.scores_of(logits, temperature, False)
    labels = np.array([rng.choice(classes, p=row) for row in scores])
    return logits, np.eye(classes, dtype=bool)[labels]


def by_torch(logits, truth, multi_label) -> float:
    """The temperature of the largest likelihood, by LBFGS."""
    beta, z, y = torch.ones((), dtype=torch.float64, requires_grad=True), *map(torch.from_numpy, (logits, truth))
    optimizer = torch.optim.LBFGS([beta], max_iter=200, tolerance_grad=1e-12, line_search_fn='strong_wolfe')

    def loss():
        optimizer.zero_grad()
        if multi_label:
            value = torch.nn.functional.binary_cross_entropy_with_logits(z * beta, y.double())
        else:
            value = torch.nn.functional.cross_entropy(z * beta, y.double().argmax(1))
        value.backward()
        return value

    optimizer.step(loss)
    return 1 / beta.item()


@pytest.mark.parametrize('multi_label', [False, True])
@pytest.mark.parametrize('temperature', [0.4, 1.0, 2.5])
def test_the_temperature_is_the_likeliest(temperature, multi_label):
    logits, truth = drawn(temperature=temperature)
    found = calibration.best_temperature(logits, truth, multi_label)
    assert found == pytest.approx(by_torch(logits, truth, multi_label), rel=1e-4)
    if not multi_label:
        assert found == pytest.approx(temperature, rel=0.15)


@pytest.mark.parametrize('multi_label', [False, True])
def test_scores_are_torch_s(multi_label):
    logits, _ = drawn(20)
    scaled = torch.from_numpy(logits) / 1.7
    expected = scaled.sigmoid() if multi_label else scaled.softmax(1)
    np.testing.assert_allclose(calibration.scores_of(logits, 1.7, multi_label), expected.numpy(), rtol=1e-12)


def test_what_tells_no_temperature_leaves_scores_alone():
    truth = np.eye(4, dtype=bool)[np.arange(120) % 4]
    assert calibration.best_temperature(truth * 3.0, truth, False) == 1.0
    assert calibration.best_temperature(truth * 6.0 - 3, truth, True) == 1.0
    wrong = calibration.best_temperature(truth * 3.0, np.roll(truth, 1, 1), False)
    assert wrong == pytest.approx(20, rel=1e-4)


def test_the_expected_calibration_error_by_hand():
    scores = np.array([0.95, 0.99, 0.5, 0.52, 0.1])
    right = np.array([True, False, True, True, False])
    assert calibration.reliability(scores, right) == [(0.1, 0, 1), (0.51, 1, 2), (pytest.approx(0.97), 0.5, 2)]
    assert calibration.calibration_error(scores, right) == pytest.approx((0.1 + 2 * 0.49 + 2 * 0.47) / 5)


def test_the_reject_curve_is_that_of_precisions():
    from sklearn.metrics import precision_recall_curve

    rng = np.random.default_rng(1)
    scores, right = rng.integers(1, 30, 200) / 30, rng.random(200) < 0.7
    curve = calibration.reject_curve(scores, right)
    precision, _, thresholds = precision_recall_curve(right, scores)
    np.testing.assert_allclose([row[0] for row in curve], thresholds[::-1])
    np.testing.assert_allclose([row[2] for row in curve], precision[:-1][::-1])
    np.testing.assert_allclose([row[1] for row in curve], [(scores >= t).mean() for t in thresholds[::-1]])


def test_the_threshold_answers_the_most_with_its_precision():
    scores = np.linspace(1, 0, 200)
    right = np.arange(200) < 100  # the surest half is right
    found = calibration.threshold_for(0.8, scores, right)
    assert (scores >= found).sum() == 125 and right[scores >= found].mean() == 0.8
    assert calibration.threshold_for(0.4, scores, right) == 0  # the lowest score there was: all are answered
    assert calibration.threshold_for(1.0, scores, right) == scores[99]
    few = np.arange(200) < calibration.MIN_ANSWERS - 1
    assert calibration.threshold_for(0.97, scores, few) is None
    assert (
        calibration.threshold_for(0.5, scores, ~right) == 0 and calibration.threshold_for(0.6, scores, ~right) is None
    )


def test_strangers_raise_the_threshold():
    logits, truth = drawn()
    alone = calibration.calibrate(logits, truth, 'abcd', False, 0.9, NONE)
    strangers = np.random.default_rng(5).normal(0, 4, (40, 4))
    both = calibration.calibrate(logits, truth, 'abcd', False, 0.9, strangers)
    assert both.temperature == alone.temperature and both.threshold > alone.threshold
    scores = [calibration.scores_of(one, both.temperature, False).max(1) for one in (logits, strangers)]
    answered, let_in = ((one >= both.threshold) for one in scores)
    right = truth[np.arange(len(truth)), logits.argmax(1)]
    assert (answered & right).sum() / (answered.sum() + let_in.sum()) >= 0.9


def test_no_threshold_and_why():
    logits, truth = drawn(99)
    few = calibration.calibrate(logits, truth, 'abcd', False, 0.9, NONE)
    assert few.said == {} and '99 photos are too few' in few.note
    logits, truth = drawn(300)
    never = calibration.calibrate(logits, np.roll(truth, 1, 1), 'abcd', False, 0.99, NONE)
    assert never.threshold is None and never.temperature and 'no threshold reaches a precision of 0.99' in never.note


def test_several_labels_have_a_threshold_each():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (400, 3))
    truth = rng.random((400, 3)) < calibration.scores_of(logits, 1.0, True)
    truth[:, 2] = rng.random(400) < 0.1  # which its score knows nothing of
    found = calibration.calibrate(logits, truth, ['a', 'b', 'c'], True, 0.9, np.empty((0, 3)))
    scores = calibration.scores_of(logits, found.temperature, True)
    for label in range(2):
        said = scores[:, label] >= found.threshold[label]
        assert truth[said, label].mean() >= 0.9 > truth[scores[:, label] >= found.threshold[label] - 0.1, label].mean()
    assert found.threshold[2] == calibration.USUAL and "for 'c': 0.5 stays" in found.note


def reported(same: bool = True, strangers=NONE, **changed) -> tuple[dict, str]:
    logits, truth = drawn()
    found = calibration.calibrate(logits, truth, 'abcd', False, 0.9, strangers)
    measured = Scores(['x'] * len(logits), truth, calibration.scores_of(logits, 1, False), 'abcd', False, logits)
    report = calibration.report_of(found, 0.9, measured, len(logits), same, strangers)
    return report, ' '.join(calibration.sentences({**report, **changed}, 'abcd'))


def test_the_report_has_the_figures():
    strangers = np.zeros((50, 4))
    report, text = reported(strangers=strangers)
    assert report['ece_after'] < report['ece_before'] and report['others'] == dict(num=50, refused=1.0)
    assert report['right_of_answered'] >= 0.9 and 0 < report['answered'] < 1
    assert len(report['reject']) <= calibration.POINTS and report['reject'][-1][1] == 1
    assert sum(count for *_, count in report['reliability']) == 600
    assert 'Of 50 photos of none of the classes 100.0 % are refused' in text
    assert 'set these numbers' in text and 'set these numbers' not in reported(same=False)[1]
    unset = reported(strangers=strangers, threshold=None)[1]
    assert 'Of 50 photos of none of the classes none is refused, since no threshold is set.' in unset
    none = reported(threshold=None, temperature=None, others=None, note='few photos')[1]
    assert none == 'Few photos.'
