"""The classifier that all benchmarks measure."""

from types import SimpleNamespace

from torch import nn

from mobileone_ext.arch import ARCHS, stage_widths
from mobileone_ext.deploy.export import PooledClassifier

CLASSES = 1000


class Classifier(PooledClassifier):
    """The classifier of ImageNet on a MobileOne, with the attributes of mmpretrain's that export and int8 read.

    Args:
        backbone: of this variant; ours or another one's.
        arch: its name.
    """

    def __init__(self, backbone: nn.Module, arch: str):
        super().__init__(backbone, nn.Linear(stage_widths(ARCHS[arch])[-1], CLASSES))
        self.head = SimpleNamespace(fc=self.fc)
