"""A backbone with pooling and a linear layer, as all benchmarks measure it."""

from torch import Tensor, nn

from mobileone_ext.arch import ARCHS, stage_widths

CLASSES = 1000


class Classifier(nn.Module):
    """The classifier of ImageNet on a MobileOne, with the attributes of mmpretrain's that export and int8 read.

    Args:
        backbone: of this variant; ours or another one's.
        arch: its name.
    """

    def __init__(self, backbone: nn.Module, arch: str):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Module()
        self.head.fc = nn.Linear(stage_widths(ARCHS[arch])[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head.fc(self.backbone(images)[-1].mean((2, 3)))
