"""Every config is read, builds, and trains one step."""

import pytest
import torch
from conftest import ROOT
from mmpretrain.structures import DataSample

from mobileone_ext.cli import load_config
from mobileone_ext.deploy.fuse import build_model

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS)
def test_config_builds_and_learns(path):
    config = load_config(path)
    teacher = config.model.get('teacher')
    if teacher:  # its weights are not there
        config.model.teacher_checkpoint, teacher.init_cfg = None, dict(type='Kaiming', layer='Conv2d')
    model = build_model(config, 'branched').train()
    if teacher:
        model.init_weights()
    samples = [DataSample().set_gt_label(label) for label in (1, 2)]
    losses = model.loss(torch.randn(2, 3, 64, 64), samples)
    loss = sum(losses.values())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
