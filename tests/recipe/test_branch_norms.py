"""Initial weights of skip and scale branches."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger

from mobileone_ext.backbone import MobileOne

KAIMING = dict(type='Kaiming', layer=['Conv2d'])


@pytest.fixture(autouse=True)
def quiet():
    """mmengine logs a line for every parameter that it initializes."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def test_norms_of_skip_and_scale_alone_are_set():
    net = MobileOne('mu0', init_cfg=[KAIMING, dict(type='mobileone_ext.BranchNorms', skip=0.25, scale=-0.5)])
    net.init_weights()
    seen = set()
    for name, parameter in net.named_parameters():
        if 'norm' in name:
            kind = next((kind for kind in ('branch_norm', 'branch_scale') if kind in name), 'branch_conv_list')
            values = dict(branch_norm=0.25, branch_scale=-0.5, branch_conv_list=1.0)
            expected = values[kind] if name.endswith('weight') else 0.0
            assert torch.equal(parameter, torch.full_like(parameter, expected)), name
            seen.add(kind)
    assert len(seen) == 3


def test_a_norm_without_weights_is_refused():
    with pytest.raises(ValueError, match=r'BranchNorms: .*branch_scale.norm has no weight'):
        MobileOne(
            'mu0', norm_cfg=dict(type='BN', affine=False), init_cfg=[dict(type='mobileone_ext.BranchNorms')]
        ).init_weights()
