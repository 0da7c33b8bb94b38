"""Random flips that a loader's workers draw and the network's device carries out: less work for the cores that feed it.

    --cfg-options train_dataloader.dataset.pipeline.RandomFlip.type=mobileone_ext.DrawFlip \\
        model.data_preprocessor.type=mobileone_ext.FlippingDataPreprocessor
"""

from collections.abc import Sequence

import torch
from mmcv.transforms import RandomFlip
from mmpretrain.models import ClsDataPreprocessor
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..registry import MODELS, TRANSFORMS
from .nested import innermost

ON_DEVICE = 'horizontal_on_device'  # a flip_direction, which mmpretrain's PackInputs takes along


@TRANSFORMS.register_module()
class DrawFlip(RandomFlip):
    """mmcv's horizontal ``RandomFlip``, the same draws, which leaves the pixels to :class:`FlippingDataPreprocessor`.

    Args:
        prob: of a flip, 0 .. 1.
        direction: horizontal.
    """

    def __init__(self, prob: float = 0.5, direction: str = 'horizontal'):
        if direction != 'horizontal':
            raise ValueError(f'DrawFlip: direction={direction!r}, only horizontal flips are left to the device')
        super().__init__(prob=float(prob))

    def _flip(self, results: dict) -> None:
        results['flip_direction'] = ON_DEVICE


@MODELS.register_module()
class FlippingDataPreprocessor(ClsDataPreprocessor):
    """mmpretrain's, which first flips the images that :class:`DrawFlip` has drawn."""

    def forward(self, data: dict, training: bool = False) -> dict:
        flips = [sample.get('flip_direction') == ON_DEVICE for sample in data.get('data_samples') or ()]
        if any(flips):
            data = dict(data, inputs=flipped(self.cast_data(data['inputs']), flips))
        return super().forward(data, training)


def flipped(images: Tensor | Sequence[Tensor], flips: Sequence[bool]) -> Tensor | list[Tensor]:
    """``images`` (N, C, H, W), or a list of (C, H, W), those of ``flips`` mirrored left to right."""
    if isinstance(images, Tensor):
        mask = torch.tensor(flips, device=images.device)
        return torch.where(mask[:, None, None, None], images.flip(-1), images)
    return [image.flip(-1) if flip else image for image, flip in zip(images, flips)]


def check_flips(loader: DataLoader, model: nn.Module) -> None:
    """Raise ValueError for flips that ``loader`` draws and that ``model`` does not carry out."""
    drawn = any(DrawFlip.__name__ in repr(getattr(dataset, 'pipeline', '')) for dataset in innermost(loader.dataset))
    if drawn and not isinstance(getattr(model, 'data_preprocessor', None), FlippingDataPreprocessor):
        raise ValueError(
            'train_dataloader draws flips by DrawFlip, and nothing carries them out: set '
            'model.data_preprocessor.type=mobileone_ext.FlippingDataPreprocessor'
        )
