"""Images on their way into a deployed network: decoded by the config's test pipeline, normalized, in batches."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from torch import Tensor, nn

from . import reading
from .nested import datasets_of


class Preprocessing:
    """How images get into the config's network: built once, handed on.

    Attributes:
        mean, std: one for each channel, in gray levels.
        to_rgb: channels in the order RGB.
        normalize: pixels (N, C, H, W), in the file's channel order -> ``(x - mean) / std``.
    """

    def __init__(self, config: Config):
        settings = config.model.get('data_preprocessor') or config.get('data_preprocessor') or {}
        self.config = config
        self.mean: list[float] = list(settings.get('mean') or [0.0])
        self.std: list[float] = list(settings.get('std') or [1.0])
        self.to_rgb: bool = settings.get('to_rgb', False)
        self.normalize = Normalize(self.mean, self.std)

    @cached_property
    def pipeline(self) -> list[dict]:
        """The pipeline config of the test set's images.

        Raises:
            ValueError: for a config without one.
        """
        for dataset, _ in datasets_of(self.config, 'test_dataloader'):
            if dataset.get('pipeline'):
                return dataset.pipeline
        raise ValueError(f'{self.config.filename}: has no test_dataloader whose pipeline says how to prepare an image')

    @cached_property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that the test pipeline gives an image; None if that depends on the image."""
        sizes = set()
        pipeline = Compose([step for step in self.pipeline if 'LoadImage' not in str(step['type'])])
        for shape in ((300, 400, 3), (500, 350, 3)):
            blank = torch.zeros(shape, dtype=torch.uint8).numpy()
            packed = pipeline(dict(img=blank, img_shape=shape[:2], ori_shape=shape[:2], img_path=''))
            sizes.add(tuple(packed['inputs'].shape[-2:]))
        return sizes.pop() if len(sizes) == 1 else None

    def side(self) -> int | tuple[int, int]:
        """Pixels that an exported file takes if nobody says, of a square or height and width: the test pipeline's, else
        ImageNet's 224."""
        try:
            height, width = self.image_size or (224, 224)
        except ValueError:  # no pipeline
            return 224
        return height if height == width else (height, width)

    def read(self, paths: Iterable[Path], skipped: list[str] | None) -> Iterator[tuple[Path, Tensor]]:
        """Each readable image and its pixels (C, H, W), 0 .. 255, RGB where the config says ``to_rgb``.

        The config's test pipeline resizes and crops. A file that is not an image
        adds its message to ``skipped``.

        Raises:
            ValueError: as of :func:`mobileone_ext.data.reading.read_each`.
        """
        pipeline = Compose(self.pipeline)

        def pixels(path: Path) -> Tensor:
            inputs = pipeline(dict(img_path=str(path)))['inputs']
            return (inputs.flip(0) if self.to_rgb else inputs).float()

        return reading.read_each(paths, pixels, skipped)


class Normalize(nn.Module):
    """``(x - mean) / std`` of x (N, C, H, W)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def in_batches(images: Iterable[tuple[Path, Tensor]], size: int) -> Iterator[tuple[list[Path], Tensor]]:
    """As :func:`mobileone_ext.data.reading.in_batches`, of tensors."""
    return reading.in_batches(images, size, torch.stack)
