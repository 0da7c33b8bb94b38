"""Random MobileOnes for the tests: every number away from its initial value."""

from functools import lru_cache

import torch
from conftest import randomize_norms
from mmpretrain.registry import MODELS
from torch import nn

import mobileone_ext.backbone  # noqa: F401  (registers MobileOne)


def classifier(arch, num_classes=1000, kind='mobileone_ext.MobileOne', **options) -> nn.Module:
    """An mmpretrain ``ImageClassifier`` in eval mode; ``kind`` is the backbone's registered type."""
    model = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(type=kind, arch=arch, **options),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=num_classes, in_channels=width(arch)),
        )
    )
    return model.eval()


def width(arch) -> int:
    """Channels of the last stage."""
    last = arch['width_factor'][-1] if isinstance(arch, dict) else dict(s0=2.0, s1=2.5).get(arch, 4.0)
    return int(512 * last)


@torch.no_grad()
def spread_norms(model: nn.Module, images: torch.Tensor, seed: int = 0) -> nn.Module:
    """Random affine parameters, and statistics near those of ``images``, in every batch norm.

    Statistics that have nothing to do with the input let the activations of a deep
    network grow until float32 compares badly.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    randomize_norms(model, seed)
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    generator = torch.Generator().manual_seed(seed)
    for norm in norms:
        norm.momentum = 0.1
        norm.running_mean.add_(norm.running_var.sqrt() * (torch.rand(len(norm.bias), generator=generator) - 0.5))
        norm.running_var.mul_(torch.rand(len(norm.bias), generator=generator) + 0.5)
    return model.eval()


@lru_cache(maxsize=6)
def random_state(variant: str, form: str) -> dict:
    """The state dict (own names) of a random classifier; don't write to it."""
    torch.manual_seed(0)
    model = spread_norms(classifier(variant), torch.randn(4, 3, 64, 64))
    if form == 'fused':
        model.backbone.switch_to_deploy()
    return model.state_dict()
