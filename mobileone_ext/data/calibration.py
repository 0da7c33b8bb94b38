"""Photos as ImageNet's networks see them, for statistics of batch norm."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..metadata import IMAGENET_MEAN, IMAGENET_STD
from .decode import read_rgb
from .images import find_images, spread


def calibration_batches(
    folder: str | Path, num_images: int, image_size: int = 224, batch_size: int = 32, channels: int = 3
) -> Iterator[Tensor]:
    """Batches (N, ``channels``, ``image_size``, ``image_size``) of images from below ``folder``.

    Normalized as for ImageNet; one channel is gray, with the means of the three. Images are spread
    evenly over the sorted files, so that every class folder has its share.

    Raises:
        ValueError: if ``folder`` holds no images, or one cannot be read, or for another number
            of channels than 1 or 3.
    """
    if channels not in (1, 3):
        raise ValueError(f'images of {channels} channels cannot be made from photos, only 1 (gray) or 3')
    gray = channels == 1
    mean, std = ([sum(values) / 3] if gray else values for values in (IMAGENET_MEAN, IMAGENET_STD))
    files = spread(find_images([folder]), num_images)
    prepare = v2.Compose(
        [
            v2.Resize(round(image_size * 256 / 224)),
            v2.CenterCrop(image_size),
            v2.PILToTensor(),
            *([v2.Grayscale()] if gray else []),
            v2.ToDtype(torch.float32),
            v2.Normalize(mean, std),
        ]
    )
    for start in range(0, len(files), batch_size):
        yield torch.stack([prepare(read_rgb(file)) for file in files[start : start + batch_size]])
