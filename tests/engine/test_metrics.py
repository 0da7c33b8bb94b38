"""tools/test.py prints and writes whatever a config's metrics return, by class name, for any network."""

import io
import json

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, data_options, only_line
from mmpretrain.registry import MODELS
from PIL import Image

from mobileone_ext import cli
from mobileone_ext.data.check import fit_metrics
from mobileone_ext.engine.metrics import as_plain, draw_matrices, show

pytestmark = pytest.mark.filterwarnings('ignore')

ALONE = "dict(type='Accuracy',topk=1)", {'accuracy/top1': float}
SINGLE = {
    "dict(type='Accuracy',topk=(1,5),thrs=(0.,0.5))": {
        'accuracy/top1_thr-0.00': float,
        'accuracy/top5_thr-0.50': float,
    },
    "dict(type='ConfusionMatrix')": {'confusion_matrix/result': (10, 10)},
    "dict(type='ConfusionMatrix',prefix='second')": {'second/result': (10, 10)},
    "dict(type='SingleLabelMetric',average=None)": {'single-label/precision_classwise': (10,)},
    "dict(type='SingleLabelMetric',average='micro')": {'single-label/recall_micro': float},
    "dict(type='SingleLabelMetric',average=None,items=('support',))": {'single-label/support_classwise': (10,)},
    "dict(type='RetrievalRecall',topk=(1,5))": {'retrieval/Recall@5': float},
    "dict(type='RetrievalAveragePrecision',topk=10)": {'retrieval/mAP@10': float},
}
MULTI = {
    "dict(type='MultiLabelMetric',average=None)": {'multi-label/f1-score_classwise': (10,)},
    "dict(type='AveragePrecision',average=None)": {'multi-label/AP_classwise': (10,)},
    "dict(type='AveragePrecision')": {'multi-label/mAP': float},
}


def together(metrics):
    """A list of these metrics, as text, and what is expected of all of them."""
    return f'[{", ".join(metrics)}]', {key: kind for expected in metrics.values() for key, kind in expected.items()}


@pytest.fixture
def test(run_tool, tiny_run, tmp_path, digits):
    """Runs tools/test.py with a config that adds some lines to the tiny one; the metrics written, and the text."""

    def run(*lines, checkpoint=tiny_run / 'epoch_4.pth', options=()):
        out, config = tmp_path / 'metrics.json', tmp_path / 'config.py'
        config.write_text('\n'.join([f'_base_ = {str(ROOT / TINY)!r}', *lines]))
        arguments = ('--out', out, '--work-dir', tmp_path, '--cfg-options', *data_options(digits), *options)
        code, text = run_tool('test', config, checkpoint, *arguments)
        return json.loads(out.read_text(), parse_constant=pytest.fail) if code == 0 else None, text

    return run


def evaluator_line(text):
    return f'test_evaluator = {text.replace("dict(", "dict(_delete_=True, ", 1) if text.startswith("dict") else text}'


def fits(value, kind):
    return isinstance(value, float) if kind is float else np.array(value).shape == kind


@pytest.mark.parametrize('evaluator, expected', [ALONE, together(SINGLE)], ids=['one', 'many'])
def test_single_label_metrics(test, tmp_path, evaluator, expected):
    names = "test_dataloader = dict(dataset=dict(metainfo=dict(classes=list('abcdefghij'))))"
    metrics, text = test(evaluator_line(evaluator), names)
    assert metrics, text
    for key, kind in expected.items():
        assert fits(metrics[key], kind), metrics
        if kind is float:
            assert f'{metrics[key]:.2f}' in text
    assert metrics['num_images'] == 360 and metrics['classes'] == list('abcdefghij')
    pictures = list(tmp_path.glob('metrics_*.png'))
    assert bool(pictures) == ('ConfusionMatrix' in evaluator)
    for picture in pictures:
        assert picture.name in text and Image.open(picture).width > 300
    matrix = metrics.get('confusion_matrix/result')
    if matrix:
        assert sum(map(sum, matrix)) == 360
        row = next(line for line in text.splitlines() if '0 a' in line)
        assert str(matrix[0][0]) in row


def test_multi_label_metrics(test):
    head = "head=dict(_delete_=True, type='MultiLabelLinearClsHead', num_classes=10, in_channels=32)"
    model = f'model = dict(data_preprocessor=dict(num_classes=10, to_onehot=True), {head})'
    evaluator, expected = together(MULTI)
    metrics, text = test(evaluator_line(evaluator), model)
    assert metrics, text
    for key, kind in expected.items():
        assert fits(metrics[key], kind), metrics


def test_a_measured_checkpoint_is_not_averaged(test, digits):
    """Whoever's hook and wherever it stands: an average begins with the weights, and would be a second network."""
    lines = "default_hooks = dict(average=dict(type='mmpretrain.EMAHook'))"
    metrics, text = test("custom_hooks = [dict(type='mmpretrain.EMAHook')]", lines)
    assert metrics, text
    assert 'Start testing on EMA model' not in text


def test_a_network_that_is_no_mobileone(test, tmp_path):
    model = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4, out_indices=(3,)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=10, in_channels=32),
        data_preprocessor=dict(num_classes=10, mean=[0, 0, 0], std=[255, 255, 255], to_rgb=True),
    )
    line = f'model = dict(_delete_=True, **{model})'
    state, file = MODELS.build(model).state_dict(), tmp_path / 'resnet.pth'
    torch.save(dict(state_dict=state), file)
    metrics, text = test(line, checkpoint=file)
    assert metrics, text
    assert 'not a MobileOne' in text and 0 <= metrics['accuracy/top1'] <= 100
    state['surplus'] = state.pop('head.fc.bias')
    torch.save(dict(state_dict=state), file)
    metrics, text = test(line, checkpoint=file)
    assert metrics is None and 'head.fc.bias' in only_line(text) and 'surplus' in only_line(text)


def printed(metrics, classes):
    printed = io.StringIO()
    show(metrics, classes, width=200, file=printed)
    return printed.getvalue()


@pytest.mark.parametrize('count', [2, 3, 20, 21, 1000])
def test_any_number_of_classes(count, tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (count, count))
    matrix[0, 1] = 777
    names = [f'kind {i}' for i in range(count)]
    metrics = as_plain({'m/result': torch.from_numpy(matrix), 'AP_classwise': rng.random(count), 'num_images': 5})
    text = printed(metrics, names)
    assert '777' in text and 'kind 0' in text and len(text.splitlines()) < 120
    (picture,) = draw_matrices(metrics, names, tmp_path / 'out.json')
    assert picture == tmp_path / 'out_m.png' and max(Image.open(picture).size) <= 2000


def test_values_of_every_kind():
    metrics = {
        'a': np.float32(1.5), 'b': torch.tensor(2), 'c': np.int64(3), 'd': float('nan'),
        'e': {'f': {'g': torch.ones(2)}},
        'h': [torch.tensor(1.0), None], 'i': np.array([[1, 2], [3, 4]]), 'j': (True, 'text'), 'k': float('inf'),
        'l': object, 'num_images': 3, 1: 2,
    }  # fmt: skip
    plain = as_plain(metrics)
    assert plain == {
        'a': 1.5, 'b': 2, 'c': 3, 'd': None, 'e': {'f': {'g': [1.0, 1.0]}}, 'h': [1.0, None], 'i': [[1, 2], [3, 4]],
        'j': [True, 'text'], 'k': None, 'l': str(object), 'num_images': 3, '1': 2,
    }  # fmt: skip
    json.dumps(plain, allow_nan=False)
    text = printed(plain, None)
    assert 'nan' in text and 'e/f/g' in text and '1.50' in text


@pytest.mark.parametrize(
    'topk, count, expected, said',
    [((1, 5), 3, (1,), True), ((1, 5), 5, (1, 5), False), (5, 2, 2, True), ((5,), 3, (1,), True), (1, 2, 1, False)],
)
def test_top_k_fits_the_classes(topk, count, expected, said, capsys):
    config = cli.load_config(TINY)
    config.val_evaluator = [dict(type='Accuracy', topk=topk), dict(type='ConfusionMatrix')]
    fit_metrics(config, 'val_evaluator', count)
    assert config.val_evaluator[0].topk == expected
    assert ('val_evaluator: Accuracy' in capsys.readouterr().out) == said


def test_a_metric_told_of_other_classes():
    config = cli.load_config(TINY)
    config.val_evaluator = dict(type='ConfusionMatrix', num_classes=7)
    with pytest.raises(ValueError, match='ConfusionMatrix has num_classes=7, the head has 10'):
        fit_metrics(config, 'val_evaluator', 10)
