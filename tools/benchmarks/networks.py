"""The classifiers whose training is measured.

mmpretrain's network can't train in channels_last on CPU as it is (a strided 1x1 convolution over the image corrupts
memory in its backward pass); for the comparison in that format the stem's scale branch picks its pixels first.
"""

from collections.abc import Callable

import torch
from torch import nn

from .classifier import Classifier


def _own(**options) -> Callable[[str], nn.Module]:
    def build(arch: str) -> nn.Module:
        from mobileone_ext.backbone import MobileOne

        net = Classifier(MobileOne(arch, **options), arch)
        return net.to(memory_format=torch.channels_last)

    return build


def _mmpretrain(arch: str) -> nn.Module:
    from mmpretrain.models import MobileOne as Reference

    return Classifier(Reference(arch), arch)


def _mmpretrain_channels_last(arch: str) -> nn.Module:
    net = _mmpretrain(arch).to(memory_format=torch.channels_last)
    branch = net.backbone.stage0.branch_scale
    branch.conv.stride = (1, 1)
    branch.register_forward_pre_hook(lambda module, inputs: inputs[0][:, :, ::2, ::2])
    return net


def _timm(arch: str) -> nn.Module:
    import timm

    return timm.create_model(f'mobileone_{arch}')


NETWORKS: dict[str, Callable[[str], nn.Module]] = {
    'branches': _own(train_impl='branches'),
    'moments': _own(train_impl='moments'),
    'auto': _own(train_impl='auto'),
    'fused': _own(deploy=True),
    'mmpretrain': _mmpretrain,
    'mmpretrain channels_last': _mmpretrain_channels_last,
    'timm': _timm,
}
