"""Where a network looked: the class activation map, exact where average pooling and a linear layer follow the last map.

Such a network's logit of class k is the mean over the places of sum_c w[k, c] map[c, place], and the bias. The sum at
each place is what that place says for the class (Zhou et al., Learning Deep Features for Discriminative Localization,
CVPR 2016).
"""

from collections.abc import Callable

import numpy as np
import torch
from mmpretrain.models.heads import LinearClsHead, MultiLabelLinearClsHead
from mmpretrain.models.necks import GlobalAveragePooling
from PIL import Image
from torch import Tensor, nn

from ..metadata import Metadata

_COLOR, _OPACITY = (255, 90, 20), 190  # of the largest value; as in the page for browsers


def is_pooled(model: nn.Module) -> bool:
    """Whether average pooling and a linear layer follow the last map of one of mmpretrain's classifiers."""
    neck, head = getattr(model, 'neck', None), getattr(model, 'head', None)
    return type(neck) is GlobalAveragePooling and type(head) in (LinearClsHead, MultiLabelLinearClsHead)


def class_maps(maps: Tensor, weight: Tensor, classes: Tensor) -> Tensor:
    """The part that each place has in the logit of one class an image, (N, h, w); its mean lacks but the bias.

    Args:
        maps: (N, C, h, w), the backbone's last.
        weight: (K, C), the linear layer's.
        classes: (N,), indices.
    """
    return torch.einsum('nchw,nc->nhw', maps, weight[classes])


def gray_levels(maps: Tensor) -> np.ndarray:
    """Maps of :func:`class_maps` as 0 .. 255, uint8: the largest value of each is 255, what speaks against is 0."""
    largest = maps.amax((1, 2), keepdim=True).clamp_min(1e-9)
    return (255 * maps / largest).clamp_min(0).round().to(torch.uint8).cpu().numpy()


def watch(model: nn.Module) -> Callable[[Tensor], np.ndarray]:
    """A function that gives :func:`gray_levels` of classes (N,) for the images that went through ``model`` last.

    Raises:
        ValueError: for a network that :func:`is_pooled` is not true of.
    """
    if not is_pooled(model):
        raise ValueError('where it looked is known of networks that end in average pooling and a linear layer')
    last: list[Tensor] = []
    model.backbone.register_forward_hook(lambda backbone, images, maps: last.__setitem__(slice(None), maps[-1:]))
    return lambda classes: gray_levels(class_maps(last[0], model.head.fc.weight, classes))


def seen_part(told: Metadata, width: int, height: int) -> tuple[float, float, float, float] | None:
    """Left, top, width and height of what a network sees of a photo of ``width`` x ``height``, as shares of its sides.

    Beyond 0 .. 1 where a photo is padded; None where it is not said how it gets its size.
    """
    if told.size is None or told.fit is None:
        return None
    tall, wide = told.size
    scale = dict(crop=told.edge / min(width, height), pad=min(wide / width, tall / height)).get(told.fit)
    sides = (wide / width / scale, tall / height / scale) if scale else (1.0, 1.0)
    return (1 - sides[0]) / 2, (1 - sides[1]) / 2, *sides


def lay_over(picture: Image.Image, levels: np.ndarray, part: tuple[float, float, float, float]) -> Image.Image:
    """``picture`` (RGB) with gray levels (h, w) of :func:`gray_levels` over the ``part`` that was seen."""
    left, top, width, height = (share * side for share, side in zip(part, picture.size * 2))
    opacity = Image.fromarray(levels).resize((max(1, round(width)), max(1, round(height))), Image.Resampling.BICUBIC)
    mask = Image.new('L', picture.size)
    mask.paste(opacity.point(lambda level: level * _OPACITY // 255), (round(left), round(top)))
    return Image.composite(Image.new('RGB', picture.size, _COLOR), picture, mask)
