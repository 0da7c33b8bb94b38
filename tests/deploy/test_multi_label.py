"""A network that gives every label a score of its own, through all tools that say what changed."""

import json

import onnx
import pytest
import torch
from conftest import ROOT, TINY, data_options

from mobileone_ext import cli
from mobileone_ext.deploy.fuse import build_model

LINES = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(num_classes=10, to_onehot=True),
    head=dict(_delete_=True, type='MultiLabelLinearClsHead', num_classes=10, in_channels=32),
)
val_evaluator = dict(_delete_=True, type='AveragePrecision')
test_evaluator = val_evaluator
"""
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture
def written(tmp_path):
    """The config and a checkpoint."""
    config = tmp_path / 'config.py'
    config.write_text(LINES.format(base=str(ROOT / TINY)))
    checkpoint = tmp_path / 'several.pth'
    torch.save(dict(state_dict=build_model(cli.load_config(str(config)), 'branched').state_dict()), checkpoint)
    return config, checkpoint


def test_fused_exported_tested_and_quantized(written, digits, run_tool, tmp_path):
    config, checkpoint = written
    options = ['--cfg-options', *data_options(digits)]
    report, out = tmp_path / 'report.json', tmp_path / 'metrics.json'
    fused, file, int8 = (tmp_path / name for name in ('fused.pth', 'net.onnx', 'int8.onnx'))
    for name, *arguments in (
        ('reparam', config, checkpoint, fused, '--report', report),
        ('export', config, fused, file, '--size', 32, '--images', digits / 'val', '--num-images', 20),
        ('test', config, file, '--against', fused, '--out', out, '--work-dir', tmp_path / 'log'),
        ('quantize', config, fused, int8, '--calib', digits / 'train', '--num-calib', 10, '--size', 32, '--evaluate'),
    ):
        code, text = run_tool(name, *arguments, *options)
        assert code == 0, text
    told = json.loads(report.read_text())
    assert told['changed_predictions'] == 0 and told['num_images'] == 360 and 'top1_before' not in told
    assert 'multi-label/mAP' in json.loads(out.read_text())
    onnx.checker.check_model(str(int8))
    photo, scores = next((digits / 'val').rglob('*.png')), []
    for network in ((config, fused), (fused,), (file,), (int8,)):  # the last three say themselves what they are
        code, text = run_tool('predict', *network, photo, '--top', 10, '--out', tmp_path / 'predicted.json')
        assert code == 0, text
        best = json.loads((tmp_path / 'predicted.json').read_text())[0]['predictions']
        scores.append([one['score'] for one in sorted(best, key=lambda one: one['index'])])
    for found, tolerance in zip(scores[1:], (1e-5, 1e-4, 0.1)):
        assert found == pytest.approx(scores[0], abs=tolerance)
    code, text = run_tool('compare', fused, int8, '--images', digits / 'val', '--num-images', 10)
    assert code == 0 and '10 images: ' in text and 'logits differ by' in text, text
