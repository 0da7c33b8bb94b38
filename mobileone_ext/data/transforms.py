"""Image transforms under the names that mmcv and mmpretrain give them, with the same pixels, but faster.

A JPEG is decoded straight into mmcv's BGR. For training that waits until its random
crop is known: a crop twice, four or eight times as large as the image that it becomes
is decoded at half, a quarter or an eighth of its size, which takes less time
than decoding all of it. There ``backend='pillow'`` means Pillow's bilinear, antialiased
resizing, by a kernel of torch that rounds otherwise: a gray level here and there.
"""

import cv2
import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmcv.transforms import LoadImageFromFile as _LoadImageFromFile
from mmengine import fileio
from mmpretrain.datasets.transforms import RandomResizedCrop as _RandomResizedCrop
from mmpretrain.datasets.transforms import ResizeEdge as _ResizeEdge

from ..registry import TRANSFORMS
from .decode import Jpeg, decode, open_jpeg, reduction
from .reading import padded


@TRANSFORMS.register_module()
class LoadImageFromFile(_LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, faster, and aware of a file that is cut off.

    An image that is in memory already, as in mmpretrain's inferencers, stays as it is.

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

    def transform(self, results: dict) -> dict | None:
        if 'img' in results:
            return results
        path = results['img_path']
        try:
            image = self._decode(fileio.get(path, backend_args=self.backend_args))
        except Exception as error:
            if self.ignore_empty:
                return None
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f'{path}: not a readable image ({error})') from error
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def _decode(self, data: bytes) -> np.ndarray | Jpeg:
        jpeg = open_jpeg(data) if self.color_type == 'color' else None
        if jpeg and self.lazy and not self.to_float32:
            return jpeg
        if jpeg:
            image = jpeg.decode()
        elif self.imdecode_backend == 'pillow' and self.color_type in ('color', 'grayscale'):
            image = decode(data, gray=self.color_type == 'grayscale')
        else:
            image = mmcv.imfrombytes(data, self.color_type, backend=self.imdecode_backend)
            if image is None:
                raise ValueError(f'{self.imdecode_backend} does not read it')
        return image.astype(np.float32) if self.to_float32 else image


@TRANSFORMS.register_module()
class RandomResizedCrop(_RandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop``, with the same arguments and the same crops for a seed.

    Takes arrays and, decoding no more of them than it needs, the images of
    ``LoadImageFromFile(lazy=True)``.
    """

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
            top, height = round(top * ratio_y), round(height * ratio_y)
            left, width = round(left * ratio_x), round(width * ratio_x)
        crop = image[top : top + height, left : left + width]
        results['img'] = resize(crop, self.scale, self.interpolation, self.backend)
        results['img_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class ResizeEdge(_ResizeEdge):
    """mmpretrain's ``ResizeEdge``, with the same arguments, faster where ``backend='pillow'``.

    Its pixels are then within a gray level of Pillow's, so that figures compare with each other,
    but not to the last digit with those by Pillow itself: the configs keep mmpretrain's.
    """

    def _resize_img(self, results: dict) -> None:
        height, width = results['img'].shape[:2]
        size = results['scale'][::-1]
        results['img'] = resize(results['img'], size, self.interpolation, self.backend)
        results['img_shape'] = size
        results['scale_factor'] = (size[1] / width, size[0] / height)


@TRANSFORMS.register_module()
class ResizePad(BaseTransform):
    """A photo whole, as large as fits into ``scale``, in its middle; around it ``mobileone_ext.metadata.PAD``.

    Args:
        scale: width and height in pixels, or one number for both.
        interpolation, backend: as of ``mmcv.imresize``.
    """

    def __init__(self, scale: int | tuple[int, int], interpolation: str = 'bilinear', backend: str = 'pillow'):
        self.scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
        self.how = dict(interpolation=interpolation, backend=backend)

    def transform(self, results: dict) -> dict:
        def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
            return mmcv.imresize(image, size, **self.how)

        results['img'] = padded(results['img'], self.scale, resized)
        results['img_shape'] = results['img'].shape[:2]
        return results


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str, backend: str) -> np.ndarray:
    """``mmcv.imresize`` of (H, W, C), or gray (H, W), to ``size`` (h, w); faster for Pillow's bilinear of uint8."""
    if (interpolation, backend, image.dtype) != ('bilinear', 'pillow', np.uint8):
        return mmcv.imresize(image, size[::-1], interpolation=interpolation, backend=backend)
    if image.shape[0] <= size[0] and image.shape[1] <= size[1]:  # nothing to antialias
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    pixels = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image))).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size, mode='bilinear', antialias=True)[0].permute(1, 2, 0).numpy()
    return resized if image.ndim == 3 else resized[..., 0]
