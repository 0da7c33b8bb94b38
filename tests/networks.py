"""Random MobileOnes for the tests: every number away from its initial value."""

from functools import lru_cache

import torch
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
def randomise_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random statistics and affine parameters in every batch norm; fresh ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
            module.num_batches_tracked.fill_(7)
    return model


@lru_cache(maxsize=2)
def random_state(variant: str, form: str) -> dict:
    """The state dict (own names) of a random classifier; don't write to it."""
    torch.manual_seed(0)
    model = randomise_norms(classifier(variant))
    if form == 'fused':
        model.backbone.switch_to_deploy()
    return model.state_dict()
