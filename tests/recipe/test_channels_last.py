"""The memory layout of training, and the networks that would crash in it."""

from types import SimpleNamespace

import mmpretrain.models
import pytest
import torch
from torch import nn

from mobileone_ext.backbone import MobileOne
from mobileone_ext.recipe import channels_last
from mobileone_ext.recipe.channels_last import ChannelsLastHook, unsafe_convolution


@pytest.mark.parametrize(
    ('options', 'safe'),
    [
        (dict(in_channels=3, kernel_size=1, stride=2), False),
        (dict(in_channels=4, kernel_size=1, stride=(1, 2)), False),
        (dict(in_channels=15, kernel_size=1, stride=3), False),
        (dict(in_channels=3, kernel_size=1), True),
        (dict(in_channels=3, kernel_size=3, stride=2), True),
        (dict(in_channels=16, kernel_size=1, stride=2), True),
        (dict(in_channels=4, kernel_size=1, stride=2, groups=4), True),
        (dict(in_channels=3, kernel_size=1, stride=2, device='meta'), True),
    ],
    ids=str,
)
def test_what_would_corrupt_memory_keeps_its_layout(options, safe, monkeypatch):
    said = []
    monkeypatch.setattr(channels_last, 'print_log', lambda message, *_: said.append(message))
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(out_channels=16, **options))
    assert unsafe_convolution(model) == (None if safe else '1')
    if options.get('device') is None:
        ChannelsLastHook().before_run(SimpleNamespace(model=model))
        assert (model[0].weight.stride()[1] == 1) == safe
        assert [message.split(',')[0] for message in said] == ([] if safe else ['channels_last is left out: 1'])


def test_our_network_is_safe_and_mmpretrains_is_not():
    model = MobileOne('s0')
    ChannelsLastHook().before_run(SimpleNamespace(model=model))
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last) for weight in model.parameters() if weight.dim() == 4
    )
    theirs = mmpretrain.models.MobileOne('s0')
    assert unsafe_convolution(theirs) == 'stage0.branch_scale.conv'
    assert unsafe_convolution(mmpretrain.models.ResNet_CIFAR(18, base_channels=4, stem_channels=4)) is not None
    assert unsafe_convolution(mmpretrain.models.ResNet(50)) is None
