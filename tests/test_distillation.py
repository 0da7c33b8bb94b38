"""A student of a frozen teacher: the loss, what is trained and saved, and what doesn't fit."""

import pytest
import timm
import torch
from conftest import ROOT, TINY, data_options
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from mobileone_ext import cli
from mobileone_ext.checkpoints.load import load_weights
from mobileone_ext.distillation import renormalize, soft_target_loss
from mobileone_ext.registry import MODELS


@pytest.fixture
def config(digits, tiny_run) -> Config:
    """The tiny digits run with a finished tiny run as its teacher."""
    config = cli.load_config(str(ROOT / TINY), dict(option.split('=') for option in data_options(digits)[:3]))
    config.train_dataloader.num_workers = 0
    config.train_dataloader.persistent_workers = False
    config.model.teacher = config.model.copy()
    config.model.update(type='mobileone_ext.DistilledClassifier', teacher_checkpoint=str(tiny_run / 'epoch_4.pth'))
    config.model.update(temperature=2.0, soft_weight=0.25)
    return config


def build(config):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(config.model)
        model.init_weights()
    return model


def test_soft_target_loss_by_hand():
    logits, targets = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    student, teacher = (torch.exp(x / 3) / torch.exp(x / 3).sum(1, keepdim=True) for x in (logits, targets))
    expected = 9 * (teacher * (teacher / student).log()).sum(1).mean()
    torch.testing.assert_close(soft_target_loss(logits, targets, 3.0), expected)


def test_loss_is_the_weighted_sum_and_the_teacher_stays_as_it_is(config, tiny_run):
    model = build(config).eval()
    images, samples = torch.randn(4, 3, 32, 32), [DataSample().set_gt_label(i) for i in range(4)]
    losses = model.loss(images, samples)
    logits = model(images)
    hard = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    teacher = model.teacher
    torch.testing.assert_close(losses['loss'], 0.75 * hard)
    torch.testing.assert_close(losses['soft_loss'], 0.25 * soft_target_loss(logits, teacher(images), 2.0))
    assert not teacher.train(False).training and not any(p.requires_grad for p in teacher.parameters())
    stored = load_weights(str(tiny_run / 'epoch_4.pth')).state
    assert all(torch.equal(tensor, stored[key]) for key, tensor in teacher.state_dict().items())


def test_the_teacher_gets_images_normalized_its_own_way(config):
    config.model.teacher.data_preprocessor.update(mean=[127.5] * 3, std=[127.5] * 3)
    model = build(config)
    pixels = torch.randint(0, 256, (2, 3, 8, 8)).float()
    own, other = model.data_preprocessor, model.teacher.data_preprocessor
    images = (pixels - own.mean) / own.std
    torch.testing.assert_close(renormalize(images, own, other), pixels / 127.5 - 1)


def test_training_saves_the_student_alone(config, tmp_path):
    from mobileone_ext.engine import train as training

    config.work_dir, config.train_cfg.max_epochs = str(tmp_path), 1
    config.param_scheduler, config.train_dataloader.dataset.indices = [], 64
    training.skip_validation(config)
    config.default_hooks.checkpoint.save_best = None
    runner = training.train(config)
    checkpoint = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    student = Config(config.to_dict()).model
    for key in ('teacher', 'teacher_checkpoint', 'temperature', 'soft_weight'):
        student.pop(key)
    student.type = 'ImageClassifier'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        expected = MODELS.build(student).state_dict().keys()
    assert checkpoint['state_dict'].keys() == expected
    assert {key[len('module.') :] for key in checkpoint['ema_state_dict'] if key != 'steps'} == set(expected)
    assert runner.iter == 2


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(teacher_checkpoint=None), 'no weights'),
        (dict(temperature=0.0), 'temperature=0.0, .*: above 0'),
        (dict(soft_weight=1.5), 'soft_weight=1.5: .* in 0 .. 1'),
        (dict(teacher=dict(type='TimmClassifier', model_name='resnet18')), 'epoch_4.pth: '),
    ],
)
def test_what_does_not_fit(config, change, message):
    config.model.pop('teacher') if 'teacher' in change else None
    config.model.update(change)
    with pytest.raises(ValueError, match=message):
        build(config)


@pytest.mark.parametrize('by_timm', [True, False], ids=['checkpoint_path', 'teacher_checkpoint'])
def test_a_teacher_of_timm_keeps_its_weights(by_timm, config, tmp_path):
    """timm's networks have an ``init_weights`` of their own, which zeroes the residual branches of a ResNet."""
    network = timm.create_model('resnet10t', num_classes=10, zero_init_last=False)
    path = str(tmp_path / 'teacher.pth')
    torch.save(network.state_dict(), path)
    config.model.pop('teacher')
    config.model.teacher = dict(type='TimmClassifier', model_name='resnet10t', num_classes=10)
    config.model.teacher_checkpoint = None if by_timm else path
    if by_timm:
        config.model.teacher.checkpoint_path = path
    model = build(config)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.teacher(images), network.eval()(images))
    assert model.loss(images, [DataSample().set_gt_label(0)] * 2)['soft_loss'] > 0


def test_another_number_of_classes(config):
    config.model.teacher = dict(type='TimmClassifier', model_name='mobilenetv3_small_050', num_classes=7)
    config.model.teacher.init_cfg = dict(type='Constant', val=0, layer='BatchNorm2d')
    config.model.teacher_checkpoint = None
    model = build(config)
    with pytest.raises(ValueError, match='tells 7 classes apart, the student 10'):
        model.loss(torch.randn(2, 3, 32, 32), [DataSample().set_gt_label(0)] * 2)
