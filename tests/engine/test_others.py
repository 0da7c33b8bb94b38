"""Networks of others: mmpretrain's own MobileOne config, and a ResNet through train, load_from, test and ablate."""

import json
from pathlib import Path

import mmpretrain
import pytest
import torch
from conftest import TINY, data_options, only_line

from mobileone_ext import cli
from mobileone_ext.data.classes import num_classes

CONFIGS = Path(mmpretrain.__file__).parent / '.mim/configs'
pytestmark = pytest.mark.filterwarnings('ignore:.*instance named of:UserWarning')

RESNET = """
_base_ = '{base}'
model = dict(
    backbone=dict(_delete_=True, type='ResNet_CIFAR', depth=18, base_channels=4, stem_channels=4),
    head=dict(in_channels=32),
)
train_cfg = dict(max_epochs=1)
param_scheduler = []
"""


@pytest.fixture
def resnet(tmp_path):
    path = tmp_path / 'resnet.py'
    path.write_text(RESNET.format(base=Path(TINY).resolve()))
    return path


def test_mmpretrains_own_config_trains_an_epoch(digits, run_tool, tmp_path):
    """Only sizes are cut down: its schedule (to an epoch), hooks, EMA and preprocessor are as they come."""
    options = [
        'train_dataloader.dataset.data_prefix=train',
        'val_dataloader.dataset.data_prefix=val',
        'model.head.num_classes=10',
        'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0',
    ]
    config = tmp_path / 'theirs.py'
    config.write_text(
        f"_base_ = '{CONFIGS}/mobileone/mobileone-s0_8xb32_in1k.py'\n"
        'model = dict(backbone=dict(arch=dict(_delete_=True, num_blocks=[1, 1, 1, 1], '
        'width_factor=[0.125, 0.125, 0.0625, 0.0625], num_conv_branches=[1, 1, 1, 1], '
        'num_se_blocks=[0, 0, 0, 0])), head=dict(in_channels=32))\n'
        "pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]\n"
        'train_dataloader = dict(dataset=dict(_delete_=True, type="CustomDataset", indices=96, pipeline=pipeline))\n'
        'val_dataloader = dict(dataset=dict(_delete_=True, type="CustomDataset", indices=60, pipeline=pipeline))\n'
        'for loader in (train_dataloader, val_dataloader):\n    loader["dataset"]["data_root"] = "data"\n'
    )
    arguments = ['--epochs', 1, '--data', digits, '--work-dir', tmp_path / 'run', '--cfg-options', *options]
    code, text = run_tool('train', config, *arguments)
    assert code == 0, text
    saved = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=True)
    assert saved['meta']['iter'] == 3 and 'accuracy/top1' in text


def test_a_resnet_trains_loads_tests_and_does_not_fuse(resnet, digits, run_tool, tmp_path):
    options = ['--cfg-options', *data_options(digits)]
    code, text = run_tool('train', resnet, '--work-dir', tmp_path / 'first', '--seed', 0, *options)
    assert code == 0, text
    checkpoint = tmp_path / 'first/epoch_1.pth'
    code, text = run_tool(
        'test', resnet, checkpoint, '--work-dir', tmp_path / 't', '--out', tmp_path / 'm.json', *options
    )
    assert code == 0, text
    assert json.loads((tmp_path / 'm.json').read_text())['num_images'] == 360
    more = [f'load_from={checkpoint}', 'optim_wrapper.optimizer.lr=0']
    code, text = run_tool('train', resnet, '--work-dir', tmp_path / 'second', '--no-validate', *options, *more)
    assert code == 0 and 'from state_dict (EMA)' in text, text
    first, second = (torch.load(tmp_path / f'{n}/epoch_1.pth', weights_only=True) for n in ('first', 'second'))
    key = 'backbone.layer1.0.conv1.weight'
    assert torch.equal(first['state_dict'][key], second['state_dict'][key])
    code, text = run_tool('reparam', resnet, checkpoint, tmp_path / 'fused.pth', *options)
    assert code == 1 and 'ResNet_CIFAR, which has no switch_to_deploy()' in only_line(text)


TIMM = """
_base_ = '{base}'
model = dict(
    _delete_=True,
    type='TimmClassifier',
    model_name='test_resnet',
    num_classes=1000,
    loss=dict(type='CrossEntropyLoss'),
    data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=1000, mean=[0, 0, 0], std=[255, 255, 255]),
)
train_dataloader = dict(dataset=dict(indices=64), num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = val_dataloader
custom_hooks = []  # mmengine's average doesn't find the keys of timm's networks
train_cfg = dict(max_epochs=1)
param_scheduler = []
"""


@pytest.mark.apps
def test_a_network_of_timms_trains_with_ones_own_classes_and_deploys(digits, run_tool, tmp_path):
    pytest.importorskip('timm')
    (tmp_path / 'timm.py').write_text(TIMM.format(base=Path(TINY).resolve()))
    train = ['--data', digits, '--classes-from-data', '--work-dir', tmp_path / 'run', '--no-validate']
    code, text = run_tool('train', tmp_path / 'timm.py', *train)
    assert code == 0 and '10 classes of' in text, text
    saved, checkpoint = tmp_path / 'run/timm.py', tmp_path / 'run/epoch_1.pth'
    code, text = run_tool('test', saved, checkpoint, '--work-dir', tmp_path / 't')
    assert code == 0 and 'on 360 images' in text, text
    assert num_classes(cli.load_config(str(saved))) == 10
    pytest.importorskip('onnx')
    code, text = run_tool('export', saved, checkpoint, tmp_path / 'timm.onnx', '--size', 32)
    assert code == 0, text
    code, text = run_tool('test', saved, tmp_path / 'timm.onnx', '--work-dir', tmp_path / 't')
    assert code == 0 and 'on 360 images' in text, text


@pytest.mark.slow
def test_a_study_of_a_resnet_is_tested_instead_of_fused(resnet, digits, run_tool, tmp_path):
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    with open(resnet, 'a') as file:
        for loader in loaders:
            file.write(f"{loader} = dict(num_workers=0, dataset=dict(data_root='{digits}'))\n")
    study = tmp_path / 'study.py'
    study.write_text("title = 'T'\nvariants = {'one': {}}\n")
    code, text = run_tool('ablate', study, '--base', resnet, '--seeds', 0, '--work-dir', tmp_path / 'work')
    assert code == 0, text
    assert '| one |' in (tmp_path / 'work/results.md').read_text()
    assert not (tmp_path / 'work/one/seed0/fused.pth').exists()
