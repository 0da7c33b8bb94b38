"""MobileOne as a plain network for other people's code: logits, an embedding, or maps. Torch alone.

    model = create_model('mobileone_s0', weights='apple/mobileone_s0-fused')
    encoder = create_model('mobileone_s1', weights='best.pth', features_only=True, out_indices=(1, 2, 3, 4))

Keys are those of this package's checkpoints, ``backbone.`` and ``head.fc.``: any tool reads what such a network saves.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from .arch import ARCHS
from .arguments import check_integer
from .checkpoints.load import Weights, load_weights
from .metadata import Metadata
from .network import MobileOneNet

PREFIX = 'mobileone_'


class FeatureInfo(list):
    """A dict for each map: ``num_chs``, its channels, ``reduction``, pixels of the image to one of the map, and
    ``module``, which gives it. As in timm, :meth:`channels` and :meth:`reduction` list them."""

    def channels(self) -> list[int]:
        return [info['num_chs'] for info in self]

    def reduction(self) -> list[int]:
        return [info['reduction'] for info in self]


class Features(nn.Module):
    """Images (N, C, H, W) -> a list of maps (N, C_i, H / 2^(i+1), W / 2^(i+1)), one for each of ``out_indices``.

    Args:
        out_indices: 0 is the stem, 1 .. 4 are the stages; negative ones count from the end.

    Raises:
        ValueError: for another number.
    """

    def __init__(self, backbone: MobileOneNet, out_indices: Sequence[int]):
        super().__init__()
        places = range(len(backbone.widths))
        last = len(places) - 1
        self.out_indices = sorted({places[check_integer('out_indices', i, -last - 1, last)] for i in out_indices})
        self.backbone, self.metadata = backbone, Metadata()
        self.feature_info = feature_info(backbone, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, stage in enumerate(self.backbone.stages()):
            x = stage(x)
            if index in self.out_indices:
                maps.append(x)
        return maps


class Classifier(nn.Module):
    """Images (N, C, H, W) -> logits (N, num_classes), or with ``num_classes=0`` the mean of the last map, (N, C_4)."""

    def __init__(self, backbone: MobileOneNet, num_classes: int):
        super().__init__()
        self.backbone, self.metadata = backbone, Metadata()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(OrderedDict(fc=nn.Identity()))
        if num_classes:
            fc = self.head.fc = nn.Linear(backbone.out_channels, num_classes)
            nn.init.normal_(fc.weight, std=0.01)  # as mmpretrain's head
            nn.init.zeros_(fc.bias)
        self.feature_info = feature_info(backbone, range(len(backbone.widths)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.backbone(x)[-1]).flatten(1))


def feature_info(backbone: MobileOneNet, indices: Sequence[int]) -> FeatureInfo:
    return FeatureInfo(
        dict(num_chs=backbone.widths[i], reduction=2 ** (i + 1), module=f'backbone.stage{i}') for i in indices
    )


def create_model(
    name: str,
    weights: str | Path | None = None,
    num_classes: int = 1000,
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3, 4),
    in_chans: int = 3,
) -> Classifier | Features:
    """A MobileOne, in training mode, with random weights or those of a checkpoint.

    Args:
        name: ``'mobileone_s0'`` .. ``'mobileone_s4'``, ``'mobileone_mu0'`` .. ``'mobileone_mu2'``.
        weights: a file of any layout and form, the name of published weights (docs/checkpoints.md) or an address; the
            network has their form, branched or fused. None: with branches, initialized as for training.
        num_classes: of the head, which has new weights if those of the file are for another number; 0: no head.
        features_only: give maps instead of logits.
        out_indices: which maps, see :class:`Features`.
        in_chans: channels of the image.

    Returns:
        A :class:`Classifier` or :class:`Features`; its ``feature_info`` tells channels and reductions, and ``metadata``
        what the checkpoint says of itself: labels, how photos are prepared.

    Raises:
        OSError, ValueError: for an unknown name, and for weights that cannot be read or are not of this network.
    """
    arch = name.removeprefix(PREFIX)
    if arch not in ARCHS or not name.startswith(PREFIX):
        raise ValueError(f'{name!r}: unknown; known are {", ".join(PREFIX + arch for arch in ARCHS)}')
    check_integer('num_classes', num_classes, 0)
    check_integer('in_chans', in_chans, 1)
    read = load_weights(weights) if weights is not None else None
    net = MobileOneNet(arch, in_chans, **_branches_of(read) if read else {})
    _initialize(net)
    model = Features(net, out_indices) if features_only else Classifier(net, num_classes)
    if read:
        has_this_head = not features_only and read.num_classes == num_classes
        read.load_into(model, new_head=not has_this_head)
        model.metadata = read.said if has_this_head else replace(read.said, labels=None)
    return model


def _branches_of(weights: Weights) -> dict:
    """The form and the branches of a network with these weights."""
    found = weights.structure
    assert found, 'a MobileOne'
    if found.form == 'fused':
        return dict(deploy=True)
    return dict(num_conv_branches=found.num_conv_branches[1:], use_scale=found.use_scale, use_skip=found.use_skip)


def _initialize(net: nn.Module) -> None:
    """Kaiming's normal distribution in all convolutions, as the registered backbone's ``init_cfg`` has it."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            if module.bias is not None:
                nn.init.zeros_(module.bias)
