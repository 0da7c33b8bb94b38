"""Image transforms, registered under the names that mmcv and mmpretrain give them, fast for JPEG files.

libjpeg-turbo decodes a JPEG straight into mmcv's BGR. For training a file is
decoded when its random crop is known: a crop twice, four or eight times as large
as the image that it becomes is decoded at half, a quarter or an eighth of its size,
which costs less than decoding all of it and averages pixels as the resize would.
Pillow decodes everything else, as do mmpretrain's own configs: other formats, CMYK, photos
that EXIF says to rotate, and files that libjpeg-turbo complains about.
"""

from typing import Optional, Tuple, Union

import cv2
import mmcv
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile
from mmengine import fileio
from mmpretrain.datasets.transforms import RandomResizedCrop as _RandomResizedCrop

from .registry import TRANSFORMS

_REDUCTIONS = (8, 4, 2)  # the sizes at which libjpeg-turbo decodes quickly


class Jpeg:
    """A JPEG file, still to be decoded; ``shape`` (H, W, 3) is the whole image's."""

    def __init__(self, data: bytes, shape: Tuple[int, int, int]):
        self.data, self.shape = data, shape

    def decode(self, reduction: int = 1) -> np.ndarray:
        """BGR pixels (ceil(H / reduction), ceil(W / reduction), 3), uint8; perhaps the whole image where it is damaged.

        Raises:
            OSError: for a file that is cut off.
        """
        height, width = (-(-side // reduction) for side in self.shape[:2])
        size = dict(min_height=height, min_width=width, min_factor=reduction)
        try:
            return simplejpeg.decode_jpeg(self.data, 'BGR', **size)
        except ValueError:  # also raised for what is no more than odd: let Pillow judge
            return mmcv.imfrombytes(self.data, backend='pillow')


def open_jpeg(data: bytes) -> Optional[Jpeg]:
    """``data`` as a JPEG file for libjpeg-turbo; None if Pillow has to decode it."""
    if not simplejpeg.is_jpeg(data) or b'Exif\0' in data[:65536]:  # EXIF may say to rotate it
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return Jpeg(data, (height, width, 3)) if space in ('YCbCr', 'Gray', 'RGB') else None


@TRANSFORMS.register_module()
class LoadImageFromFile(_LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, faster, and aware of a file that is cut off.

    OpenCV would fill the missing part with grey. An image that is in memory
    already, as in mmpretrain's inferencers, stays as it is.

    Args:
        lazy: leave a JPEG to be decoded by the next transform, our ``RandomResizedCrop``.
        imdecode_backend: what decodes other images, and all of another ``color_type``.

    Raises (when called):
        ValueError: naming the file that is not a whole image.
        FileNotFoundError: naming the file that is not there.
    """

    def __init__(self, lazy: bool = False, imdecode_backend: str = 'pillow', **kwargs):
        super().__init__(imdecode_backend=imdecode_backend, **kwargs)
        self.lazy = lazy

    def transform(self, results: dict) -> Optional[dict]:
        if 'img' in results:
            return results
        path = results['img_path']
        try:
            image = self._decode(fileio.get(path, backend_args=self.backend_args))
        except FileNotFoundError:
            if self.ignore_empty:
                return None
            raise
        except Exception as error:
            if self.ignore_empty:
                return None
            raise ValueError(f'{path}: not a readable image ({error})') from error
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def _decode(self, data: bytes) -> Union[np.ndarray, Jpeg]:
        jpeg = open_jpeg(data) if self.color_type == 'color' else None
        if jpeg and self.lazy:
            return jpeg
        image = jpeg.decode() if jpeg else mmcv.imfrombytes(data, self.color_type, backend=self.imdecode_backend)
        return image.astype(np.float32) if self.to_float32 else image


@TRANSFORMS.register_module()
class RandomResizedCrop(_RandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop``: the same crops for the same seed, with a faster resize.

    Resizes like Pillow (bilinear, antialiased), but for rounding. Takes the images of
    ``LoadImageFromFile(lazy=True)``, and arrays.
    """

    def __init__(self, scale, **kwargs):
        for key in ('backend', 'interpolation'):
            if key in kwargs:
                raise ValueError(f'{key}={kwargs[key]!r}: it is always bilinear as in Pillow; leave {key} out')
        super().__init__(scale, **kwargs)

    def transform(self, results: dict) -> dict:
        image = results['img']
        top, left, height, width = self.rand_crop_params(image)
        if isinstance(image, Jpeg):
            whole = image.shape
            try:
                image = image.decode(reduction((height, width), self.scale))
            except OSError as error:
                raise ValueError(f'{results["img_path"]}: not a readable image ({error})') from error
            ratio_y, ratio_x = image.shape[0] / whole[0], image.shape[1] / whole[1]
            top, height, left, width = (
                round(value) for value in (top * ratio_y, height * ratio_y, left * ratio_x, width * ratio_x)
            )
        results['img'] = resize(image[top : top + height, left : left + width], self.scale)
        results['img_shape'] = self.scale
        return results


def reduction(crop: Tuple[int, int], size: Tuple[int, int]) -> int:
    """The largest of 1, 2, 4, 8 by which a crop (h, w) can shrink and still be no smaller than ``size``."""
    return next((n for n in _REDUCTIONS if crop[0] >= n * size[0] and crop[1] >= n * size[1]), 1)


def resize(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Bilinear, antialiased, as Pillow does it: uint8 (H, W, C) to (*size, C)."""
    if image.shape[0] <= size[0] and image.shape[1] <= size[1]:  # nothing to antialias
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size, mode='bilinear', antialias=True)[0].permute(1, 2, 0).numpy()
