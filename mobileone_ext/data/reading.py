"""Photos on their way into a network, without torch: read one by one, resized as a network says itself, in batches.

Needs numpy and Pillow, and OpenCV where a network was trained with its resizing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..metadata import PAD, Metadata
from ..text import one_line
from .decode import check_size, decode, open_jpeg

Pixels = TypeVar('Pixels')

# mmcv's names -> OpenCV's.
_OPENCV = dict(nearest='NEAREST', bilinear='LINEAR', bicubic='CUBIC', area='AREA', lanczos='LANCZOS4')


def read_each(
    paths: Iterable[Path], read: Callable[[Path], Pixels], skipped: list[str] | None
) -> Iterator[tuple[Path, Pixels]]:
    """Each readable image and what ``read`` makes of it; a file that is not an image adds its message to ``skipped``.

    Raises:
        ValueError: if none of the files is an image; with ``skipped`` None if one is not.
    """
    num_read = 0
    for path in paths:
        try:
            _check_file(path)
            pixels = read(path)
        except Exception as error:  # a damaged file fails in Pillow, OpenCV or a transform, each in its own way
            reason = one_line(error).removeprefix(f'{path}: ')
            unreadable = 'not a readable image'
            message = f'{path}: {reason if reason.startswith(unreadable) else f"{unreadable} ({reason})"}'
            if skipped is None:
                raise ValueError(message) from error
            skipped.append(message)
        else:
            num_read += 1
            yield path, pixels
    if not num_read:
        raise ValueError('; '.join(['none of the files is a readable image', *(skipped or ())[:1]]))


def _check_file(path: Path) -> None:
    """Raise ValueError for a size that would fill the memory, whatever the file is read with."""
    try:
        with Image.open(path) as image:
            size = image.height, image.width
    except Exception:
        return  # who reads it says what is wrong, or knows better
    check_size(*size)


def in_batches(
    images: Iterable[tuple[Path, Any]], size: int, stack: Callable[[list], Any] = np.stack
) -> Iterator[tuple[list[Path], Any]]:
    """Lists of ``size`` paths and their images (n, C, H, W); fewer at the end and where the images' size changes."""
    paths, pixels = [], []
    for path, image in images:
        if pixels and (len(pixels) == size or image.shape != pixels[0].shape):
            yield paths, stack(pixels)
            paths, pixels = [], []
        paths.append(path)
        pixels.append(image)
    if paths:
        yield paths, stack(pixels)


class Photos:
    """How photos get into the network that ``metadata`` describes: the pixels of its :meth:`Metadata.pipeline`.

    Raises:
        ValueError: for an interpolation that no library here knows.
    """

    def __init__(self, metadata: Metadata):
        self.metadata = metadata
        self.mean, self.std = (np.float32(values)[:, None, None] for values in (metadata.mean, metadata.std))
        self._resize = _resizing(metadata.interpolation or 'bilinear', metadata.backend or 'pillow')

    @property
    def pipeline(self) -> list[dict] | None:
        return self.metadata.pipeline()

    @property
    def to_rgb(self) -> bool:
        return self.metadata.channels == 'RGB'

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width in pixels."""
        return tuple(self.metadata.size)

    def read(self, paths: Iterable[Path], skipped: list[str] | None) -> Iterator[tuple[Path, np.ndarray]]:
        """Each readable image and its pixels (C, H, W), 0 .. 255; errors as of :func:`read_each`."""
        return read_each(paths, self._pixels, skipped)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels - self.mean) / self.std

    def _pixels(self, path: Path) -> np.ndarray:
        data, gray = Path(path).read_bytes(), self.metadata.channels == 'gray'
        jpeg = None if gray else open_jpeg(data)
        image = jpeg.decode() if jpeg else decode(data, gray)
        height, width = self.metadata.size
        if self.metadata.fit == 'squash':
            image = self._resize(image, (width, height))
        elif self.metadata.fit == 'pad':
            image = padded(image, (width, height), self._resize)
        else:
            tall, wide = image.shape[:2]
            edge = self.metadata.edge
            size = (edge, int(edge * tall / wide)) if wide < tall else (int(edge * wide / tall), edge)
            image = self._resize(image, size)
            top, left = (max(0, round((a - b) / 2)) for a, b in zip(image.shape, (height, width)))
            image = image[top : top + height, left : left + width]
        channels = np.atleast_3d(image).transpose(2, 0, 1)  # C, H, W
        return np.float32(channels[::-1] if self.to_rgb else channels)


def padded(image: np.ndarray, size: Sequence[int], resize: Callable[[np.ndarray, Sequence[int]], np.ndarray]):
    """``image`` (H, W, C), BGR, or gray (H, W), resized to fit into ``size`` (w, h), in the middle, and PAD around it.

    To the pixel as timm has it with ``crop_mode='border'``.
    """
    (width, height), (tall, wide) = size, image.shape[:2]
    ratio = max(tall / height, wide / width)
    image = resize(image, (max(1, round(wide / ratio)), max(1, round(tall / ratio))))
    top, left = ((a - b) // 2 for a, b in zip((height, width), image.shape))
    color = PAD[::-1] if image.ndim == 3 else round(sum(PAD) / 3)
    whole = np.full((height, width, *image.shape[2:]), color, image.dtype)
    whole[top : top + image.shape[0], left : left + image.shape[1]] = image
    return whole


def _resizing(interpolation: str, backend: str) -> Callable[[np.ndarray, Sequence[int]], np.ndarray]:
    """``mmcv.imresize`` to a size (w, h), by Pillow or OpenCV alone."""
    if backend == 'pillow' and interpolation.upper() in Image.Resampling.__members__:
        how = Image.Resampling[interpolation.upper()]
        return lambda image, size: np.array(Image.fromarray(np.ascontiguousarray(image)).resize(size, how))
    if backend == 'cv2' and interpolation in _OPENCV:
        import cv2

        flag = getattr(cv2, f'INTER_{_OPENCV[interpolation]}')
        return lambda image, size: cv2.resize(image, size, interpolation=flag)
    raise ValueError(f'resizing {interpolation!r} by {backend!r} is not known')
