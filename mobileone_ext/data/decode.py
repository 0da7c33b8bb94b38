"""A photo's bytes as pixels: 8 bits, upright, BGR or gray, or a ValueError that says why not.

JPEGs are decoded by libjpeg-turbo, at a fraction of their size if that is enough. Pillow
decodes the rest: other formats, CMYK, photos that EXIF says to turn, files that
libjpeg-turbo complains about.
"""

import io
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from .images import register_readers

register_readers()

MAX_PIXELS = 2 * 89_478_485  # 178 million; above it Pillow takes an image for an attack, too
MAX_RATIO = 256  # of the sides: resized by its short one, a longer image fills the memory
_REDUCTIONS = (8, 4, 2)  # by which libjpeg-turbo decodes quickly
_CANVAS = (124, 117, 104)  # what mmcv puts behind gray with alpha


def check_size(height: int, width: int) -> None:
    """Raise ValueError for an image that no photo is, before memory is taken for it."""
    if height * width > MAX_PIXELS:
        raise ValueError(f'{width} x {height} pixels, more than {MAX_PIXELS / 1e6:.0f} million')
    if not 0 < max(height, width) <= MAX_RATIO * min(height, width):
        raise ValueError(f'{width} x {height} pixels: one side is more than {MAX_RATIO} times the other')


class Jpeg:
    """A JPEG file, still to be decoded; ``shape`` (H, W, 3) is the whole image's."""

    def __init__(self, data: bytes, size: tuple[int, int]):
        self.data, self.shape = data, (*size, 3)

    def decode(self, reduction: int = 1) -> np.ndarray:
        """BGR pixels (ceil(H / reduction), ceil(W / reduction), 3), uint8; of a damaged file perhaps all of them.

        Raises:
            OSError: for a file that is cut off.
        """
        height, width = (-(-side // reduction) for side in self.shape[:2])
        try:
            return simplejpeg.decode_jpeg(self.data, 'BGR', min_height=height, min_width=width, min_factor=reduction)
        except ValueError:  # raised for oddities as well: let Pillow judge
            return decode(self.data)

    def copy(self) -> np.ndarray:
        """The whole image, for those who keep what each step of a pipeline makes (mmpretrain's browse_dataset)."""
        return self.decode()


def reduction(crop: tuple[int, int], size: tuple[int, int]) -> int:
    """The largest of 1, 2, 4, 8 by which a crop (h, w) can shrink and still be no smaller than ``size``."""
    return next((n for n in _REDUCTIONS if crop[0] >= n * size[0] and crop[1] >= n * size[1]), 1)


def open_jpeg(data: bytes) -> Jpeg | None:
    """``data`` as a JPEG file for libjpeg-turbo; None if it has to be decoded otherwise.

    Raises:
        ValueError: for a size that no photo has.
    """
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    check_size(height, width)
    if colors not in ('YCbCr', 'Gray', 'RGB') or _is_turned(data):
        return None
    return Jpeg(data, (height, width))


def _is_turned(jpeg: bytes) -> bool:
    """Whether EXIF says that the image lies on its side or is mirrored."""
    if b'Exif\0' not in jpeg[: jpeg.find(b'\xff\xda')]:  # the start of the pixels
        return False
    return Image.open(io.BytesIO(jpeg)).getexif().get(ExifTags.Base.Orientation, 1) != 1


def open_image(data: bytes) -> Image.Image:
    """``data`` opened by Pillow, its pixels not read yet.

    Raises:
        OSError: if it is no image; ValueError for a size that no photo has.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError:
        if data[4:12] in (b'ftypheic', b'ftypheix', b'ftypmif1', b'ftyphevc', b'ftypheim'):
            raise ValueError('HEIC, which pip install pillow-heif reads') from None
        raise OSError('not an image, or none that Pillow reads') from None
    except Image.DecompressionBombError:
        raise ValueError(f'more than {MAX_PIXELS / 1e6:.0f} million pixels') from None
    check_size(image.height, image.width)
    return image


def decode(data: bytes, gray: bool = False) -> np.ndarray:
    """Upright 8-bit pixels by Pillow, (H, W, 3) BGR or, ``gray``, (H, W); of an animation the first picture.

    Raises:
        OSError, ValueError: for what is no image, or whose range of values is not known.
    """
    image = ImageOps.exif_transpose(to_8_bits(open_image(data)))
    if image.mode == 'LA':
        canvas = Image.new('RGB', image.size, _CANVAS)
        canvas.paste(image.convert('RGBA'), mask=image.getchannel('A'))
        image = canvas
    if gray:
        return np.array(image.convert('RGB').convert('L'))
    return np.array(image.convert('RGB'))[:, :, ::-1]


def read_rgb(path: str | Path) -> Image.Image:
    """The photo at ``path``, upright, 8 bits, RGB.

    Raises:
        OSError, ValueError: naming the file that cannot be read.
    """
    data = Path(path).read_bytes()
    try:
        return Image.fromarray(np.ascontiguousarray(decode(data)[:, :, ::-1]))
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: not a readable image ({error})') from error


def to_8_bits(image: Image.Image) -> Image.Image:
    """``image`` with 8 bits a channel: 16 bits are scaled, so that 65535 is white; Pillow would cut them off at 255.

    Raises:
        ValueError: for floating point and 32 bits, where nobody knows which value is white.
    """
    # PNG and PGM have no more than 16 bits, whatever Pillow keeps them in.
    if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
        exif = image.getexif()
        scaled = Image.fromarray(np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8))
        if ExifTags.Base.Orientation in exif:
            scaled.getexif()[ExifTags.Base.Orientation] = exif[ExifTags.Base.Orientation]
        return scaled
    if image.mode in ('I', 'F'):
        kind = 'floating point' if image.mode == 'F' else '32-bit integers'
        raise ValueError(f'pixels are {kind}, of which the range is not known; save it with 8 or 16 bits')
    return image
