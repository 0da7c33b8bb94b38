"""Every config is read, builds, and trains one step."""

import pytest
import torch
from conftest import ROOT
from mmpretrain.structures import DataSample

from mobileone_ext.cli import load_config
from mobileone_ext.deploy import build_model

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS)
def test_config_builds_and_learns(path):
    config = load_config(path)
    model = build_model(config, 'branched').train()
    samples = [DataSample().set_gt_label(label) for label in (1, 2)]
    losses = model.loss(torch.randn(2, 3, 64, 64), samples)
    losses['loss'].backward()
    assert torch.isfinite(losses['loss'])
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
