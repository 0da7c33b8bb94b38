"""Metrics of saturated scores, and of images that lack some of the classes, against a literal computation."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, data_options
from mmengine.evaluator import Evaluator
from mmpretrain.registry import METRICS, MODELS
from mmpretrain.structures import DataSample

from mobileone_ext import cli
from mobileone_ext.deploy.compare import top_accuracies
from mobileone_ext.engine import evaluation
from mobileone_ext.engine.evaluation import average_precisions, hand_on_logits, make_literal
from mobileone_ext.engine.runner import Runner

pytestmark = pytest.mark.filterwarnings('ignore')

CLASSES = list('abcde')


def measured(metric, logits, truth, head='LinearClsHead'):
    """What a metric of this config says of logits (N, classes), as a run's evaluator has it."""
    model = torch.nn.Sequential(MODELS.build(dict(type=head, num_classes=logits.shape[1], in_channels=1)))
    hand_on_logits(model)
    hand_on_logits(model)  # as for the test loop of a run that also validates
    evaluator = Evaluator([METRICS.build(one) for one in (metric if isinstance(metric, list) else [metric])])
    evaluator.dataset_meta = dict(classes=CLASSES[: logits.shape[1]])
    for one in evaluator.metrics:
        make_literal(one)
    samples = [DataSample().set_gt_label(label) for label in truth]
    for start in range(0, len(samples), 7):
        evaluator.process(model[0]._get_predictions(logits[start : start + 7], samples[start : start + 7]))
    return evaluator.evaluate(len(samples))


def saturated(count=200, classes=5, scale=1e4, seed=0):
    """Logits that lie so far apart that a softmax or sigmoid of float32 has 0 and 1 alone, and labels."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(count, classes)) * scale).float()
    return logits, rng.integers(0, classes, count).tolist()


def rank(row, label):
    return sum(float(other) > float(row[label]) for other in row)


@pytest.mark.parametrize('topk', [1, (1, 5), (2, 3)])
@pytest.mark.parametrize('options', [{}, dict(thrs=None), dict(thrs=0.0)])
def test_top_k(topk, options):
    logits, truth = saturated()
    found = measured(dict(type='Accuracy', topk=topk, **options), logits, truth)
    for k in [topk] if isinstance(topk, int) else topk:
        right = [rank(row, label) < k for row, label in zip(logits, truth)]
        assert found[f'accuracy/top{k}'] == pytest.approx(100 * np.mean(right), abs=1e-4)
        assert k < 5 or found['accuracy/top5'] == 100


def test_top_k_of_tools_that_compare_networks():
    logits, truth = saturated(classes=8)
    ranks = [rank(row, label) for row, label in zip(logits, truth)]
    expected = [100 * np.mean([place < k for place in ranks]) for k in (1, 5)]
    assert top_accuracies(logits, torch.tensor(truth)) == pytest.approx(expected, abs=1e-4)


def test_a_threshold_of_ones_own_stays_one_of_probability():
    logits = torch.tensor([[0.0, 1.0], [3.0, 0.0]])  # 0.27 and 0.73, 0.95 and 0.05
    found = measured(dict(type='Accuracy', topk=(1, 2), thrs=(0.0, 0.9)), logits, [1, 0])
    assert found == {
        'accuracy/top1_thr-0.00': 100, 'accuracy/top1_thr-0.90': 50,
        'accuracy/top2_thr-0.00': 100, 'accuracy/top2_thr-0.90': 50,
    }  # fmt: skip


def counts(logits, truth):
    """Of each class: hits, predictions, images."""
    predicted = [max(range(len(row)), key=lambda label: float(row[label])) for row in logits]
    return [
        (sum(p == t == label for p, t in zip(predicted, truth)), predicted.count(label), truth.count(label))
        for label in range(logits.shape[1])
    ]


@pytest.mark.parametrize('average', ['macro', 'micro', None])
@pytest.mark.parametrize('absent', [(), (1,), (0, 4)])
def test_precision_recall_f1_and_support(average, absent):
    logits, truth = saturated()
    logits -= logits.amax()  # none above 0
    keep = [number for number, label in enumerate(truth) if label not in absent]
    logits, truth = logits[keep], [truth[number] for number in keep]
    items = ('precision', 'recall', 'f1-score', 'support')
    found = measured(dict(type='SingleLabelMetric', average=average, items=items), logits, truth)
    found = [found['single-label/' + item + {None: '_classwise', 'micro': '_micro'}.get(average, '')] for item in items]
    table = counts(logits, truth)
    if average == 'micro':
        table = [tuple(map(sum, zip(*table)))]
    nan = (math.nan,) * 3
    rows = [(h / p, h / n, 2 * h / (p + n), n / 100) if n else (*nan, 0) for h, p, n in table]
    expected = [100 * np.array(column) for column in zip(*rows)]
    if average is not None:
        expected = [*map(np.nanmean, expected[:3]), np.sum(expected[3])]
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def average_precision(scores, truth):
    """By the definition: over the distinct scores, from the highest."""
    found, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        said = [label for score, label in zip(scores, truth) if score >= threshold]
        recall = sum(said) / sum(truth)
        found += (recall - before) * sum(said) / len(said)
        before = recall
    return 100 * found


def test_average_precision_by_its_definition():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (40, 3)) / 5  # many the same
    truth = rng.integers(0, 2, (40, 3))
    found = average_precisions(torch.from_numpy(scores), torch.from_numpy(truth))
    assert found.tolist() == pytest.approx([average_precision(*c) for c in zip(scores.T.tolist(), truth.T.tolist())])
    order = torch.randperm(40)
    again = average_precisions(torch.from_numpy(scores)[order], torch.from_numpy(truth)[order])
    torch.testing.assert_close(again, found)
    truth[:5] = -1
    found = average_precisions(torch.from_numpy(scores), torch.from_numpy(truth))
    kept = zip(scores[5:].T.tolist(), truth[5:].T.tolist())
    assert found.tolist() == pytest.approx([average_precision(*column) for column in kept])


@pytest.mark.parametrize('average', ['macro', None])
def test_labels_that_no_image_has_are_left_out_and_named(average, monkeypatch):
    said = []
    monkeypatch.setattr(evaluation, 'print_log', lambda message, *_: said.append(message))
    logits, _ = saturated()
    rng = np.random.default_rng(2)
    truth = [sorted(set(rng.choice([0, 2, 3, 4], 2).tolist())) for _ in logits]
    metrics = [dict(type='AveragePrecision', average=average), dict(type='MultiLabelMetric', average=average)]
    found = measured(metrics, logits, truth, 'MultiLabelLinearClsHead')
    columns = [[label in labels for labels in truth] for label in range(5)]
    assert [message.split(': ', 1)[1] for message in said] == ["no image has the label 'b': left out of the mean"] * 2
    scores = logits.T.tolist()
    expected = [average_precision(s, t) if any(t) else math.nan for s, t in zip(scores, columns)]
    recall = [
        np.mean([x > 0 for x, y in zip(s, t) if y]) * 100 if any(t) else math.nan for s, t in zip(scores, columns)
    ]
    if average:
        assert found['multi-label/mAP'] == pytest.approx(np.nanmean(expected))
        assert found['multi-label/recall'] == pytest.approx(np.nanmean(recall))
    else:
        np.testing.assert_allclose(found['multi-label/AP_classwise'], expected)
        np.testing.assert_allclose(found['multi-label/recall_classwise'], recall, rtol=1e-6)


def test_retrieval():
    logits, truth = saturated()
    names = dir(np)
    found = measured(dict(type='RetrievalRecall', topk=3), logits, truth)['retrieval/Recall@3']
    assert found == pytest.approx(100 * np.mean([rank(row, label) < 3 for row, label in zip(logits, truth)]), abs=1e-4)
    assert dir(np) == names


def test_confusion_matrix():
    logits, truth = saturated()
    matrix = measured(dict(type='ConfusionMatrix'), logits, truth)['confusion_matrix/result']
    assert [int(matrix[label, label]) for label in range(5)] == [hits for hits, _, _ in counts(logits, truth)]


def test_a_run_measures_so(run_tool, tiny_run, digits, tmp_path):
    """tools/test.py on a checkpoint whose head is so sure that all but one score are 0."""
    checkpoint = torch.load(tiny_run / 'epoch_4.pth', weights_only=True)
    state = checkpoint['state_dict']
    for key in ('head.fc.weight', 'head.fc.bias'):
        state[key] = state[key] * 1e5
    torch.save(
        dict(state_dict=state, meta=dict(dataset_meta=checkpoint['meta']['dataset_meta'])), tmp_path / 'sure.pth'
    )
    out, options = tmp_path / 'metrics.json', data_options(digits)
    code, text = run_tool(
        'test', TINY, tmp_path / 'sure.pth', '--out', out, '--work-dir', tmp_path, '--cfg-options', *options
    )
    assert code == 0, text
    found = json.loads(out.read_text())
    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in options))
    model = MODELS.build(config.model).eval()
    model.load_state_dict(state)
    ranks = []
    for batch in Runner.build_dataloader(config.test_dataloader):
        data = model.data_preprocessor(batch)
        with torch.no_grad():
            logits = model(data['inputs'])
        assert (logits.softmax(1).topk(2).values[:, 1] == 0).float().mean() > 0.9
        ranks += [rank(row, int(sample.gt_label)) for row, sample in zip(logits, data['data_samples'])]
    for k in (1, 5):
        assert found[f'accuracy/top{k}'] == pytest.approx(100 * np.mean([r < k for r in ranks]), abs=1e-4)
