"""Images on their way into a deployed network: found, decoded by the config's test pipeline, normalized."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmpretrain.registry import DATASETS
from torch import Tensor, nn

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')


class Normalize(nn.Module):
    """``(x - mean) / std`` by the config's data preprocessor; x (N, 3, H, W) in the file's channel order."""

    def __init__(self, config: Config):
        super().__init__()
        settings = config.model.data_preprocessor
        self.register_buffer('mean', torch.tensor(settings.mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer('std', torch.tensor(settings.std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The image files among ``paths`` and, sorted, below those that are folders.

    Raises:
        OSError: for a path that is not there.
        ValueError: for a folder without images.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob('*') if file.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f'{path}: no images in this folder (looked for {", ".join(SUFFIXES)})')
            found.extend(inside)
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f'{path}: no such file or folder')
    return found


def read_images(config: Config, paths: Sequence[Path], skipped: list[str]) -> Iterator[tuple[Path, Tensor]]:
    """Each readable image and its pixels (3, H, W), 0 .. 255, RGB where the config says ``to_rgb``.

    The config's test pipeline resizes and crops. A file that is not an image
    adds its message to ``skipped``.
    """
    pipeline = Compose(config.test_dataloader.dataset.pipeline)
    flip = config.model.data_preprocessor.get('to_rgb', False)
    for path in paths:
        try:
            pixels = pipeline(dict(img_path=str(path)))['inputs']
        except (ValueError, OSError) as error:
            skipped.append(str(error) if isinstance(error, FileNotFoundError) else f'{path}: not a readable image')
            continue
        yield path, (pixels.flip(0) if flip else pixels).float()


def in_batches(images: Iterable[tuple[Path, Tensor]], size: int) -> Iterator[tuple[list[Path], Tensor]]:
    """Lists of ``size`` paths (the last may be shorter) and their images (n, 3, H, W)."""
    paths, pixels = [], []
    for path, image in images:
        paths.append(path)
        pixels.append(image)
        if len(paths) == size:
            yield paths, torch.stack(pixels)
            paths, pixels = [], []
    if paths:
        yield paths, torch.stack(pixels)


def class_names(config: Config) -> list[str]:
    """Names of the config's classes: the data set's own, ImageNet's for 1000 classes, or else numbers."""
    from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

    count = config.model.head.num_classes
    dataset = DATASETS.get(config.test_dataloader.dataset.type)
    for names in (dataset.METAINFO.get('classes', ()) if dataset else (), IMAGENET_CATEGORIES):
        if len(names) == count:
            return list(names)
    return [str(index) for index in range(count)]
