"""Classifiers of mmpretrain that are no MobileOne: predicted and exported as they are; int8 says that it knows none."""

import json

import pytest
import torch
from conftest import TINY, data_options, only_line
from mmengine.config import Config
from mmpretrain.registry import MODELS
from torch import nn

from mobileone_ext import cli
from mobileone_ext.deploy import export, fuse

pytestmark = pytest.mark.filterwarnings('ignore')

GAP = dict(type='GlobalAveragePooling')
SMALL_VIT = dict(embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=32)
MODEL = {
    'MobileNetV2': dict(
        backbone=dict(type='MobileNetV2', widen_factor=0.25),
        neck=GAP,
        head=dict(type='LinearClsHead', num_classes=10, in_channels=1280),
    ),
    'RepVGG': dict(  # has branches, which are fused
        backbone=dict(
            type='RepVGG',
            arch=dict(num_blocks=[1] * 4, width_factor=[0.125] * 3 + [0.0625], group_layer_map=None, se_cfg=None),
        ),
        neck=GAP,
        head=dict(type='LinearClsHead', num_classes=10, in_channels=32),
    ),
    'ViT': dict(  # no neck, and a head of its own
        backbone=dict(type='VisionTransformer', arch=SMALL_VIT, img_size=32, patch_size=8),
        neck=None,
        head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=32),
    ),
    'MobileNetV3': dict(  # a head of several layers
        backbone=dict(type='MobileNetV3', arch='small_050'),
        neck=GAP,
        head=dict(
            type='StackedLinearClsHead', num_classes=10, in_channels=288, mid_channels=[32], act_cfg=dict(type='ReLU')
        ),
    ),
}


@pytest.fixture(params=MODEL)
def written(request, digits, tmp_path):
    config = cli.load_config(TINY, dict(option.split('=', 1) for option in data_options(digits)))
    for part, value in MODEL[request.param].items():
        config.model[part] = value
    config.custom_hooks = []
    torch.manual_seed(0)
    model = fuse.build_model(config, 'branched')
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=config.pretty_text)), tmp_path / 'net.pth')
    config.dump(tmp_path / 'config.py')
    return tmp_path / 'config.py', tmp_path / 'net.pth', request.param


def test_predict_export_test_and_compare_take_them(written, digits, run_tool, tmp_path):
    config, checkpoint, _ = written
    photo = sorted((digits / 'val').glob('*/*.png'))[7]
    options = ('--format', 'onnx', '--size', 32, '--images', digits / 'val', '--num-images', 20)
    code, text = run_tool('export', config, checkpoint, tmp_path / 'net.onnx', *options)
    assert code == 0 and '20 images: 0 predictions changed' in text and 'multiply-adds at 32 x 32' in text, text
    results = []
    for network in ((config, checkpoint), (checkpoint,), (config, tmp_path / 'net.onnx'), (tmp_path / 'net.onnx',)):
        code, text = run_tool('predict', *network, photo, '--out', tmp_path / 'out.json')
        assert code == 0, text
        results.append([best['score'] for best in json.loads((tmp_path / 'out.json').read_text())[0]['predictions']])
    for found in results:
        assert found == pytest.approx(results[0], rel=1e-3)
    code, text = run_tool('test', config, tmp_path / 'net.onnx', '--against', checkpoint, '--work-dir', tmp_path / 'w')
    assert code == 0 and '0 predictions changed' in text, text
    arguments = (checkpoint, tmp_path / 'net.onnx', '--images', digits / 'val', '--num-images', 20)
    code, text = run_tool('compare', *arguments)
    assert code == 0 and '20 images: 0 predictions changed; logits differ by' in text, text


def test_quantize_says_that_it_knows_mobileone_alone(written, digits, run_tool, tmp_path):
    config, checkpoint, name = written
    for out in ((tmp_path / 'int8.onnx',), ('--prepare', tmp_path / 'prepared.pth')):
        code, text = run_tool('quantize', config, checkpoint, *out, '--calib', digits / 'val', '--size', 32)
        kind = dict(ViT='VisionTransformer').get(name, name)
        assert code == 1 and f'the backbone is {kind}: int8 knows the blocks of MobileOne alone' in only_line(text)
    assert not list(tmp_path.glob('int8*')) and not list(tmp_path.glob('prepared*'))


def test_a_head_of_several_outputs(digits, tmp_path):
    """It predicts, by what it makes of them; a file has one output."""

    class TwoOutputs(MODELS.get('mmpretrain.LinearClsHead')):
        def forward(self, feats):
            return super().forward(feats), super().forward(feats)

        def predict(self, feats, data_samples=None):
            return self._get_predictions(sum(self(feats)), data_samples)

    MODELS.register_module(module=TwoOutputs, force=True)
    model = dict(type='ImageClassifier', **MODEL['MobileNetV2'], data_preprocessor=dict(mean=[0.0], std=[1.0]))
    config = Config(dict(model=dict(model, head=dict(model['head'], type='TwoOutputs'))))
    network = fuse.build_model(config, 'branched')
    nn.init.normal_(network.head.fc.weight)
    torch.save(network.state_dict(), tmp_path / 'net.pth')
    from mobileone_ext.deploy.classifier import open_classifier

    classify, pixels = open_classifier(tmp_path / 'net.pth', config), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = (2 * network(pixels)[0]).softmax(1)
        torch.testing.assert_close(torch.from_numpy(classify(pixels.numpy())), expected)
    assert not classify.gives_logits
    with pytest.raises(
        ValueError, match='onnx cannot hold this network: its head gives a tuple, where logits are needed'
    ):
        export.write(export.DeployNet(network), tmp_path / 'net.onnx', export.Request(size=32))
